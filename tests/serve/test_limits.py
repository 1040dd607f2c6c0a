"""What a server does not take: every limit hit on purpose, and clients that mean harm or just go away."""

import concurrent.futures
import contextlib
import io
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image
from serving import Running, form, until

from convzoo.serve.limits import Limits
from helpers import REPO, one_line

TINY = Limits(body_bytes=20_000, pixels=10_000, pictures=3, queue=2, seconds=0.7, head_seconds=0.6)


@pytest.fixture(scope="module")
def model(digits_run, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "digits.safetensors"
    shutil.copy(digits_run / "checkpoints/last.safetensors", path)
    return path


@pytest.fixture(scope="module")
def server(model):
    with Running([model], TINY) as running:
        yield running


def encoded(size: tuple[int, int] = (8, 8), format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(buffer, format)
    return buffer.getvalue()


PICTURE = encoded()


def bomb(side: int) -> bytes:
    """Return a small PNG that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")
    )


def is_well(server: Running) -> bool:
    """Tell whether a server answers as ever, and holds nothing of the requests before."""
    text = server.service.metrics.text()
    free = all(
        line.endswith(" 0") for line in text.splitlines() if line.startswith(("convzoo_waiting{", "convzoo_held"))
    )
    return free and "class" in server.predict("digits", PICTURE)


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (bomb(100_000), 422, "more than the 10,000 pixels that are read"),
        (bomb(101), 422, "101x101 pixels, more than the 10,000"),
        (encoded((90, 90), "JPEG")[:400], 422, "damaged picture"),
        (PICTURE[:100], 422, "damaged picture"),
        (b"", 422, "empty file"),
        (b"<svg onload=alert(1)>", 422, "not a picture"),
        (bytes(20_001), 413, "more than 20,000 bytes"),
    ],
)
def test_a_body_that_is_no_picture(server, content, status, message):
    answer = server.ask("POST", "/predict/digits", content)
    assert answer.status == status and message in answer.error
    assert is_well(server)


def test_a_body_of_unknown_length_is_cut_off(server):
    def chunks():
        for _ in range(30):
            yield bytes(1000)

    answer = server.ask("POST", "/predict/digits", chunks())
    assert answer.status == 413 and answer.headers["connection"] == "close"
    assert is_well(server)


def test_a_client_that_asks_first_is_told_before_it_sends(server):
    with server.connect() as client:
        head = b"POST /predict/digits HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        client.sendall(head + b"Content-Length: 99999999\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_form_has_its_limits(server):
    many = server.ask("POST", "/predict/digits", *form([("a.png", PICTURE)] * 4))
    assert many.status == 422 and "Too many files" in many.error
    other = server.ask("POST", "/predict/digits", *form([("a.png", PICTURE)], field="picture"))
    assert other.status == 400 and "`file`" in other.error
    broken = server.ask("POST", "/predict/digits", b"none", {"Content-Type": "multipart/form-data"})
    assert broken.status == 400 and "boundary" in broken.error
    assert is_well(server)


def test_a_full_queue_says_so_at_once(server):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        with server.held("digits"):
            waiting = [pool.submit(server.ask, "POST", "/predict/digits", PICTURE) for _ in range(2)]
            until(lambda: server.waiting("digits") == 2)
            answer = server.ask("POST", "/predict/digits", PICTURE)
        assert answer.status == 429 and answer.headers["retry-after"] == "1"
        assert [future.result().status for future in waiting] == [200, 200]
    assert is_well(server)


def test_all_requests_together_have_a_limit(model):
    with Running([model], Limits(held_bytes=10_000)) as server, server.connect() as client:
        client.sendall(
            b"POST /predict/digits HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n" + bytes(8000)
        )
        until(lambda: "convzoo_held_bytes 8000" in server.service.metrics.text())
        answer = server.ask("POST", "/predict/digits", bytes(5000))
        assert answer.status == 429 and "holds" in answer.error
        assert server.predict("digits", PICTURE)["class"]


def test_no_answer_in_time(server):
    with server.held("digits"):
        answer = server.ask("POST", "/predict/digits", PICTURE)
        assert answer.status == 503 and "0.7 s" in answer.error
        until(lambda: len(server.service.models.get("digits").batcher) == 0)  # it has left the queue, too
    assert is_well(server)


@pytest.mark.parametrize("asked", ["predict/digits", "v2/models/digits/infer"])
def test_who_goes_away_leaves_the_queue(model, asked):
    with Running([model]) as server, server.held("digits"):
        for _ in range(3):
            with server.connect() as client:
                tensor = (
                    b'{"inputs":[{"name":"images","datatype":"UINT8","shape":[1,3,8,8],"data":['
                    + b"0," * 191
                    + b"0]}]}"
                )
                body = PICTURE if "predict" in asked else tensor
                head = f"POST /{asked} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
                client.sendall(head.encode() + body)
                until(lambda: len(server.service.models.get("digits").batcher) == 1)
            until(lambda: server.waiting("digits") == 0)
        assert len(server.service.models.get("digits").batcher) == 0
        assert re.search(r'status="499"\} 3', server.service.metrics.text())


def closed_after(client: socket.socket) -> float:
    """Return for how long the other side keeps a connection open."""
    started = time.monotonic()
    with client, contextlib.suppress(ConnectionResetError):
        assert client.recv(1000) == b""
    return time.monotonic() - started


@pytest.mark.parametrize("count", [300, pytest.param(1000, marks=pytest.mark.slow)])
def test_silent_connections_are_closed_and_keep_nobody_out(server, count):
    clients = [server.connect() for _ in range(count)]
    assert server.predict("digits", PICTURE)["class"]
    assert max(closed_after(client) for client in clients) < TINY.head_seconds + 5
    assert is_well(server)
    until(lambda: len(server.server.server_state.connections) == 0)


def test_a_head_that_trickles_is_not_waited_for(server):
    with server.connect() as client:
        started = time.monotonic()
        try:
            for byte in b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 1000:
                client.sendall(bytes([byte]))
                time.sleep(0.05)
            pytest.fail("a head of one byte at a time was read to its end")
        except (BrokenPipeError, ConnectionResetError):
            assert TINY.head_seconds * 0.5 < time.monotonic() - started < TINY.head_seconds + 5


def test_the_second_head_of_a_connection_is_not_waited_for_either(server):
    with server.connect() as client:
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while b'"live":true' not in answer:
            answer += client.recv(5000)
        time.sleep(1.5 * TINY.head_seconds)  # a connection that is open, and asks nothing, may stay
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\n")
        assert TINY.head_seconds * 0.5 < closed_after(client) < TINY.head_seconds + 5


def test_a_body_that_trickles_is_not_waited_for(server):
    with server.connect() as client:
        client.sendall(b"POST /predict/digits HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        answer = b""
        client.settimeout(0.05)
        started = time.monotonic()
        while not answer and time.monotonic() - started < 10:
            client.sendall(b"a")
            try:
                answer = client.recv(1000)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 503") and b"connection: close" in answer.lower()
    assert is_well(server)


def test_a_body_that_is_shorter_than_it_says(server):
    with server.connect() as client:
        client.sendall(b"POST /predict/digits HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n" + PICTURE)
        until(lambda: server.waiting("digits") == 1)
    until(lambda: server.waiting("digits") == 0)
    assert is_well(server)


def test_a_body_that_is_longer_than_it_says(server):
    """What comes after is no part of the picture, and no request."""
    with server.connect() as client:
        head = f"POST /predict/digits HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(PICTURE)}\r\n\r\n"
        client.sendall(head.encode() + PICTURE + b"\x00 rest\r\n\r\n")
        received = b""
        while chunk := client.recv(10_000):
            received += chunk
    first, rest = received.split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200") and rest.startswith(b"400")
    for length in (b"-1", b"1, 2", b"12x"):
        with server.connect() as client:
            client.sendall(
                b"POST /predict/digits HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + length + b"\r\n\r\n"
            )
            assert client.recv(1000).startswith(b"HTTP/1.1 400")
    assert is_well(server)


@pytest.mark.parametrize(
    "path",
    [
        "/predict/../../etc/passwd",
        "/predict/..%2F..%2Fetc%2Fpasswd",
        "/predict/%2Fetc%2Fpasswd",
        "/predict/digits.safetensors",
        "/v2/models/..%2Fdigits/infer",
        "/v2/models/digits/versions/2/infer",
        "/models/..%2Fdigits",
    ],
)
def test_a_name_is_a_name_and_no_path(server, path):
    answer = server.ask("POST", path, PICTURE)
    assert answer.status in (404, 405) and answer.error
    assert "passwd" not in answer.error


def test_a_token_is_needed_where_one_was_given(model):
    with Running([model], token="s3cret") as server:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "s3cret"},
            {"Authorization": "Bearer \xe9"},
        ):
            for method, path in (
                ("POST", "/predict/digits"),
                ("GET", "/metrics"),
                ("GET", "/v2"),
                ("GET", "/openapi.json"),
            ):
                answer = server.ask(method, path, PICTURE if method == "POST" else None, headers)
                assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
        right = {"Authorization": "Bearer s3cret"}
        assert server.ask("POST", "/predict/digits", PICTURE, right).status == 200
        assert server.ask("GET", "/v2/health/live").status == 200


def test_other_names_and_other_pages_are_refused(model):
    with Running([model], hosts={"127.0.0.1", "localhost"}) as server:
        assert server.ask("POST", "/predict/digits", PICTURE, {"Host": "localhost:1"}).status == 200
        assert server.ask("POST", "/predict/digits", PICTURE, {"Host": "evil.example"}).status == 421
        own = {"Origin": f"http://127.0.0.1:{server.port}"}
        assert server.ask("POST", "/predict/digits", PICTURE, own).status == 200
        assert server.ask("POST", "/predict/digits", PICTURE, {"Origin": "https://evil.example"}).status == 403


def test_a_failure_of_the_server_says_where_and_not_what(model, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("convzoo"), "propagate", True)
    with Running([model]) as server:
        monkeypatch.setattr(server.service.models.get("digits"), "task", None)
        answer = server.ask("POST", "/predict/digits", *form([("secret.png", PICTURE)]))
        until(lambda: "AttributeError in " in caplog.text)
        assert answer.status == 500 and "secret" not in caplog.text
        assert server.ask("GET", "/v2/health/ready").status == 200


def refuses(port: int) -> bool:
    """Tell whether nobody takes connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=20).close()
    except ConnectionRefusedError:
        return True
    return False


def test_sigterm_answers_what_was_asked_and_ends_with_0(model):
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-m", "convzoo", "serve", str(model), "--port", "0"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = []
        while not any("their page is" in line for line in lines):
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        port = int(re.findall(r":(\d+)/$", lines[-1].strip())[-1])
        silent = socket.create_connection(("127.0.0.1", port), timeout=20)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            length = f"Content-Length: {len(PICTURE)}\r\nExpect: 100-continue"
            client.sendall(f"POST /predict/digits HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 100")  # it is being served
            client.sendall(PICTURE[:20])
            process.send_signal(signal.SIGTERM)
            until(lambda: refuses(port))
            client.sendall(PICTURE[20:])
            assert client.recv(5000).startswith(b"HTTP/1.1 200")
        assert process.wait(30) == 0
        silent.close()
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in process.stderr.read()


def test_a_missing_package_is_named(run, model, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("convzoo.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    for name in [name for name in sys.modules if name.startswith("starlette.")]:
        monkeypatch.setitem(sys.modules, name, None)
    code, _, err = run("serve", model, "--port", 0)
    assert code == 5 and "convzoo[serve]" in one_line(err)
