"""A run is watched while it goes on: the page renews its numbers, and the server ends in peace."""

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from convzoo import cli
from convzoo.serve.limits import Limits
from convzoo.serve.server import Server, listen
from convzoo.serve.watch import Watched
from convzoo.training.run_report import Report


@pytest.fixture
def going(digits_run, tmp_path) -> Path:
    """A run that has two thirds of its steps."""
    for name in ("recipe.yaml", "data.json", "env.json", "command.txt"):
        shutil.copy(digits_run / name, tmp_path / name)
    lines = (digits_run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:46]))
    return tmp_path


def ask(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": f"{host}:{port}"})
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_it_serves_what_is_there_until_it_is_told_to_end(going, digits_run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = []

    def visit() -> None:
        for _ in range(300):
            try:
                answers.append(ask(port, "/version"))
                break
            except OSError:
                time.sleep(0.1)
        answers.append(ask(port, "/"))
        with open(going / "metrics.jsonl", "a") as file:
            file.write('{"kind": "step", "step": 46, "lr": 0.5, "loss": 7.25}\n')
        answers.extend([ask(port, "/version"), ask(port, "/"), ask(port, "/", "elsewhere.example"), ask(port, "/x")])
        os.kill(os.getpid(), signal.SIGTERM)

    visitor = threading.Thread(target=visit)
    visitor.start()
    code = cli.main(["report", str(going), "--watch", "--port", str(port)])
    visitor.join()
    assert code == 0 and [status for status, _ in answers] == [200, 200, 200, 200, 400, 404]
    assert answers[0][1] != answers[2][1] and "connect-src 'self'" in answers[1][1]
    assert "step 44 of 66, epoch 3 of 3" in answers[1][1] and "7.25" not in answers[1][1]
    assert "step 46 of 66, epoch 3 of 3" in answers[3][1] and "[46.0, 7.25]" in answers[3][1]


def test_the_page_renews_its_numbers_by_itself(going):
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium here: apt-get install chromium")
    watched, listener = Watched(Report([going])), listen("127.0.0.1", 0)
    server = Server(watched, watched.app(), Limits())
    thread = threading.Thread(target=asyncio.run, args=[server.serve([listener])])
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    try:
        with playwright.sync_playwright() as started:
            browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
            page, errors = browser.new_page(), []
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.goto(url)
            page.evaluate("window.mark = 1")
            page.wait_for_timeout(2500)  # the page has asked for the version
            with open(going / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"kind": "step", "step": 46, "lr": 0.5, "loss": 7.25}) + "\n")
            playwright.expect(page.locator(".chart .legend b").first).to_have_text("7.25", timeout=20_000)
            playwright.expect(page.locator(".state")).to_contain_text("step 46 of 66, epoch 3 of 3")
            slider = page.locator("input[type=range]").first
            assert slider.get_attribute("aria-valuetext").startswith("step 46: per step 7.25")
            assert page.locator(".live").inner_text() == "live"
            assert page.evaluate("window.mark") == 1 and not errors  # it was not loaded again
            browser.close()
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive()
