"""docs/from-darknet.md: its lines for OpenCV give our boxes, its table has every key that is read and no other."""

import json
import re
import shlex

import numpy as np
import pytest
import typer
from PIL import Image
from typer.core import TyperCommand, TyperGroup

from convzoo import cli
from convzoo.models import darknet_cfg
from helpers import REPO, SHARED

DOCUMENT = REPO / "docs/from-darknet.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
TABLE = re.compile(r"(?<=<!-- keys -->\n).*?(?=<!-- end -->)", re.S)
COMMANDS = re.findall(r"^convzoo .*$", "".join(re.findall(r"^```\n(.*?)^```$", TEXT, re.M | re.S)), re.M)
SLIM = SHARED / "fixtures/darknet/zoo/yolov3-tiny"
EVERY_OTHER = "every other"


def keys_table() -> str:
    """Return the table of every section and key, from what the reader itself looks at."""
    short = {name: alias for alias, name in darknet_cfg.SHORT_NAMES.items()}
    lines = ["| section | keys | only with this value | ignored |", "| --- | --- | --- | --- |"]
    for name, options in darknet_cfg.OPTIONS.items():
        fixed = [f"{key}={value}" for key, value in darknet_cfg.NEUTRAL.get(name, {}).items()]
        training = [EVERY_OTHER] if name in ("net", "cost") else sorted(darknet_cfg.TRAINING.get(name, ()))
        title = f"`[{name}]`" + (f", `[{short[name]}]`" if name in short else "")
        cells = [_cell(cell) for cell in (list(options), fixed, training)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(words: list[str]) -> str:
    return words[0] if words == [EVERY_OTHER] else f"`{' '.join(words)}`" if words else ""


def test_the_table_has_every_section_and_key_that_is_read():
    match = TABLE.search(TEXT)
    assert match and match[0] == keys_table(), f"the table of {DOCUMENT} should be\n{keys_table()}"


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_document_is_one_of_ours(line):
    verb, *words = shlex.split(line, comments=True)[1:]
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    context = group.make_context("convzoo", [verb, *words], resilient_parsing=True)
    _, command, rest = group.resolve_command(context, [verb, *words])
    assert isinstance(command, TyperCommand)
    command.make_context(verb, rest)


def clipped(box_xywh: np.ndarray, width: int, height: int) -> list[float]:
    """Return the corners of a box, inside the picture."""
    x, y, w, h = map(float, box_xywh)
    return [min(max(value, 0), side) for value, side in zip((x, y, x + w, y + h), 2 * (width, height), strict=True)]


def test_the_lines_for_opencv_give_the_boxes_of_predict(tmp_path, monkeypatch, run, shared):
    pytest.importorskip("cv2", reason="opencv-python is not installed: the document's lines were not run")
    source = [SLIM / "slim.weights", "--cfg", SLIM / "slim.cfg"]
    assert run("convert", *source, "--out", tmp_path / "my.safetensors")[0] == 0
    exported = run("export", tmp_path / "my.safetensors", "--format", "onnx", "--stage", "decoded")
    assert exported[0] == 0, exported[2]
    # Whole multiples of the input's sides, of repeated pixels: resized alike to the last grey level, which a network of
    # random weights makes much of.
    dog = Image.open(shared / "fixtures/darknet/decoded/dog.jpg").resize((96, 96))
    street = Image.fromarray(np.asarray(dog).repeat(2, 0).repeat(3, 1))
    street.save(tmp_path / "street.png")
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
    assert lines.count("(416, 416)") == 1 and "\n    print(" in lines
    rows = []
    names = {"print": lambda *values: rows.append(values)}
    exec(lines.replace("(416, 416)", "(96, 96)"), names)
    code, stdout, stderr = run("predict", "my.safetensors", "street.png", "--min-score", "0.25", "--json")
    assert code == 0, stderr
    theirs = sorted((float(score), int(label), *clipped(box, *street.size)) for label, score, box in rows)
    detections = json.loads(stdout)["detections"]
    ours = sorted((row["score"], int(row["class"]), *row["box_xyxy"]) for row in detections)
    # predict keeps the hundred best, without those wholly outside
    theirs = [row for row in theirs if row[2] < row[4] and row[3] < row[5]][-100:]
    assert len(ours) > 20
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=0.05)
    np.testing.assert_allclose(np.array(theirs)[:, 0], np.array(ours)[:, 0], rtol=0, atol=1e-4)
