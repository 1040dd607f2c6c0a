"""docs/serve.md: what it shows of curl and tritonclient is run, in its order, and prints what stands there."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from serving import Running

from convzoo import cli
from convzoo.data.datasets.digits import digits
from helpers import REPO

BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.M | re.S)


def steps() -> list[tuple[str, str, str]]:
    """Return the document's ("curl" or "python", command, output) in order; the output follows its command."""
    found: list[tuple[str, str, str]] = []
    document = (REPO / "docs/serve.md").read_text(encoding="utf-8")
    for language, text in BLOCK.findall(
        re.sub(r"32(, ?)32", r"8\g<1>8", document)
    ):  # this test's classifier is smaller
        if language == "python":
            found.append(("python", text, ""))
        elif text.startswith("$ "):
            for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
                command, _, output = part.partition("\n")
                found.append(("curl", command, output.strip()))
        else:
            found[-1] = (*found[-1][:2], text.strip())
    return found


def form(value: object) -> object:
    """Return JSON without its numbers and texts: what a model does not decide."""
    if isinstance(value, dict):
        return {key: form(part) for key, part in value.items()}
    return [form(part) for part in value] if isinstance(value, list) else type(value).__name__


def printed(kind: str, command: str, port: int, folder: Path, capsys: pytest.CaptureFixture) -> str:
    command = command.replace("localhost:8000", f"localhost:{port}")
    if kind == "curl":
        done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()
    capsys.readouterr()
    exec(compile(command, "docs/serve.md", "exec"), {})
    return capsys.readouterr().out.strip()


def check(command: str, expected: str, actual: str) -> None:
    """Compare an output with the document's: exactly where no model has a say in it, else by its form."""
    if "/metrics" in command:
        assert actual.splitlines() == expected.splitlines()
    elif "-i" in command.split():
        head, body = actual.splitlines()[0], actual.splitlines()[-1]
        assert [head, "...", body] == expected.splitlines()
    elif "triton" in command:
        hide = lambda text: re.sub(r"\[\d( \d)*\]", "[labels]", text)
        assert hide(actual) == hide(expected)
    elif "/v2/models" in command:
        assert json.loads(actual) == json.loads(expected)
    else:
        assert form(json.loads(actual)) == form(json.loads(expected)), actual


def test_the_document_shows_what_is_printed(digits_run, tmp_path, capsys):
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    try:
        import tritonclient.http  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"tritonclient[http]: {error}")
    float_, onnx = tmp_path / "digits.safetensors", tmp_path / "digits-onnx.onnx"
    shutil.copy(digits_run / "checkpoints/last.safetensors", float_)
    assert cli.main(["export", str(float_), "--format", "onnx", "--out", str(onnx)]) == 0
    Image.fromarray(digits(None, "val").load(0).image.permute(1, 2, 0).numpy()).save(tmp_path / "7.png")
    (tmp_path / "note.txt").write_text("hello\n")
    with Running([float_, onnx], replaceable=True) as server:
        ran = [
            (command, expected, printed(kind, command, server.port, tmp_path, capsys))
            for kind, command, expected in steps()
        ]
    assert len(ran) == 7
    for command, expected, actual in ran:
        check(command, expected, actual)
