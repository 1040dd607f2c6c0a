"""INT8: accurate and faster, or not written; calibrated on pictures that are not evaluated."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convzoo import build, cli
from convzoo.deploy import export
from convzoo.deploy.exported import ExportRunner, open_any
from convzoo.deploy.quantize import comparison, layer_errors, quantize, schemes
from convzoo.deploy.quantize.calibration import Evaluated, find_calibration
from convzoo.deploy.quantize.comparison import QuantizeOptions
from convzoo.deploy.timing import alternate
from convzoo.inference import evaluate, torch_model
from convzoo.inference.torch_model import open_model
from helpers import QUICK, one_line

pytestmark = pytest.mark.slow  # NNCF is loaded, and training in the same process afterwards has crashed

CPU = torch.device("cpu")
SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
# Without these the product sums of 8-bit integers take three instructions, and INT8 gains little.
HAS_VNNI = bool(set(Path("/proc/cpuinfo").read_text().split()) & {"avx512_vnni", "avx_vnni", "amx_int8"})


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """tinydarknet trained on digits of 16x16; at 8x8 its last pooling gets one pixel, which OpenVINO refuses."""
    out = tmp_path_factory.mktemp("runs") / "digits16"
    sized = "=[{resize: {size_px: 16, mode: stretch}}]"
    options = [
        *QUICK,
        f"transform.train{sized}",
        f"transform.eval{sized}",
        "data.max_train_images=1024",
        "train.epochs=3",
    ]
    assert cli.main(["train", "tinydarknet-digits", *options, "--out", str(out)]) == 0
    return out / "checkpoints/last.safetensors"


@pytest.fixture(scope="module")
def floats(model, tmp_path_factory) -> dict[str, export.ExportResult]:
    """The float file of each format, written once."""
    folder = tmp_path_factory.mktemp("floats")
    return {format: export.export(open_model(model), export.ExportOptions(format, out=folder)) for format in SUFFIX}


@pytest.fixture
def short(monkeypatch, floats):
    """Time for moments only, and export nothing twice."""
    monkeypatch.setattr(comparison, "SECONDS", 0.02)
    monkeypatch.setattr(export, "export", lambda _, options: floats[options.format])


@pytest.fixture
def fast(monkeypatch, short):
    """INT8 that is twice as fast: on pictures of 16x16 that is no question of the numbers."""
    monkeypatch.setattr(comparison, "measure_speed", lambda *_: {"float32": 2e-3, "int8": 1e-3})


def save_pictures(folder: Path, images: list[np.ndarray]) -> Path:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("format", SUFFIX)
def test_int8_keeps_the_accuracy(run, fast, floats, model, tmp_path, format):
    code, out, err = run(
        "quantize", model, "--format", format, "--max-drop", 1, "--out", tmp_path, "--json", "--calibration-images", 100
    )
    assert code == 0, err
    said = json.loads(out)
    path = tmp_path / f"last-int8{SUFFIX[format]}"
    assert said["file"] == str(path) and said["calibration_images"] == 100 and said["int8"]["images"] == 360
    assert said["float"]["top1"] > 0.8 and said["drop_points"] <= 1 and said["speedup"] == 2
    low, points, high = (said["drops"]["top1"][key] for key in ("low", "points", "high"))
    assert low <= points <= high and points == pytest.approx(said["drop_points"], abs=1e-3)
    assert said["drop_points"] == pytest.approx(100 * (said["float"]["top1"] - said["int8"]["top1"]), abs=1e-3)
    assert said["bytes"] < 0.4 * said["float_bytes"]
    opened = open_any(path, CPU)
    assert evaluate.evaluate_open(opened, None).result == said["int8"] == opened.info.metrics
    assert opened.info.provenance["quantization"]["calibrated_on"] == "training split of digits"
    assert opened.info.class_names == open_any(floats[format].path, CPU).class_names
    images = torch.zeros(2, 3, 16, 16)
    assert not opened.runner()(images)[0].equal(open_any(floats[format].path, CPU).runner()(images)[0])
    assert sorted(file.suffix for file in tmp_path.iterdir()) == (
        [".bin", ".xml"] if format == "openvino" else [".onnx"]
    )


def test_a_part_of_the_evaluation_is_always_the_same(fast, model, tmp_path):
    report = quantize.quantize(
        open_model(model), QuantizeOptions("onnx", eval_images=100, max_drop=5, out=tmp_path, calibration_images=20)
    )
    assert report.plain["int8"]["images"] == 100 and "fixed random 100 of them" in report.text()
    opened = torch_model.open_model(model, CPU)
    dataset = build.build_dataset(opened.recipe, None, "val")
    calibration = find_calibration(opened, None, None, 20, (16, 16))
    parts = [Evaluated(dataset, 100, calibration).indices for _ in range(2)]
    assert parts[0] == parts[1] != list(range(100)) and len(set(parts[0])) == 100


@pytest.mark.parametrize("format", SUFFIX)
def test_too_great_a_loss_is_refused_with_the_layers(run, fast, monkeypatch, model, tmp_path, format):
    monkeypatch.setitem(schemes.SCHEMES, format, schemes.SCHEMES[format][:2])
    dark = [np.full((8, 8, 3), 80, np.uint8) for _ in range(4)]  # next to one colour: no range of anything is right
    for image in dark:
        image[0, 0] = 79
    pictures = save_pictures(tmp_path / "dark", dark)
    out = tmp_path / "out"
    out.mkdir()
    code, _, err = run("quantize", model, "--format", format, "--calibration", pictures, "--out", out)
    assert code == 4 and not list(out.iterdir())
    message = one_line(err)
    assert re.search(r"loses \d\d\.\d\d \([\d. to]+\) points of top1.*largest errors: node_conv2d", message)
    layers = re.findall(r"^  (node_\w+) +([\d.]+) %$", err, re.M)
    errors = [float(error) for _, error in layers]
    assert len(errors) >= 16 and errors == sorted(errors, reverse=True)


def test_slower_than_float_is_refused(run, short, monkeypatch, model, tmp_path):
    call = ExportRunner.__call__

    def slowed(self, images):
        time.sleep(0.01 * self.path.name.startswith("trial"))
        return call(self, images)

    monkeypatch.setattr(ExportRunner, "__call__", slowed)
    monkeypatch.setitem(schemes.SCHEMES, "onnx", schemes.SCHEMES["onnx"][:1])
    out = tmp_path / "x.onnx"
    code, _, err = run("quantize", model, "--format", "onnx", "--out", out, "--calibration-images", 8)
    assert code == 4 and "slower than float (float32" in one_line(err) and not list(tmp_path.iterdir())


def test_bfloat16_that_is_faster_still_is_a_note_and_no_reason_to_refuse(run, model, tmp_path, monkeypatch):
    seconds = {"float32": 4e-3, "bfloat16": 1e-3, "int8": 2e-3}
    monkeypatch.setattr(comparison, "measure_speed", lambda *files: seconds)
    calibrated = ["--calibration-images", 8, "--max-drop", 100]
    code, out, err = run("quantize", model, "--format", "openvino", "--out", tmp_path / "x.xml", *calibrated)
    assert code == 0, err
    assert ": 2.00 times float32" in out and "the float file in bfloat16 is faster here" in out
    seconds["bfloat16"] = 3e-3
    code, out, _ = run("quantize", model, "--format", "openvino", "--out", tmp_path / "y.xml", *calibrated)
    assert code == 0 and "note" not in out


def test_variants_take_turns():
    calls = []
    variants = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = alternate(variants, rounds=2, seconds=0)
    assert "".join(calls) == 2 * ("aaaaa" + "bbbbb") and [len(one) for one in times["a"]] == [3, 3]


def test_pictures_that_are_evaluated_are_not_calibrated_on(run, fast, model, tmp_path):
    opened = torch_model.open_model(model, CPU)
    images = [build.build_dataset(opened.recipe, None, "val").load(i).image.permute(1, 2, 0).numpy() for i in (3, 7)]
    code, _, err = run("quantize", model, "--format", "onnx", "--calibration", save_pictures(tmp_path / "val", images))
    assert code == 3 and "would be evaluated, and is also in the calibration" in one_line(err)
    assert "on-bad-sample" not in err and not list(model.parent.glob("*int8*"))


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("empty", 3, "no pictures in this folder"),
        ("black", 3, "of 2 pictures 2 of one colour"),
        ("broken", 3, "of 1 pictures 1 unreadable"),
        ("missing", 2, "no such folder"),
    ],
)
def test_nothing_to_calibrate_on(run, fast, model, tmp_path, kind, code, message):
    folder = tmp_path / kind
    if kind != "missing":
        save_pictures(folder, [np.zeros((8, 8, 3), np.uint8)] * 2 if kind == "black" else [])
    if kind == "broken":
        (folder / "a.png").write_bytes(b"no picture")
    found, _, err = run("quantize", model, "--format", "openvino", "--calibration", folder)
    assert found == code and message in one_line(err)


def test_calibration_reads_one_picture_at_a_time(model, tmp_path):
    rng = np.random.default_rng(0)
    folder = save_pictures(tmp_path / "few", [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(5)])
    calibration = find_calibration(torch_model.open_model(model, CPU), None, folder, 3, (16, 16))
    first, again = list(calibration), list(calibration)
    assert len(calibration) == len(first) == 3 and all((a == b).all() for a, b in zip(first, again, strict=True))
    assert first[0].shape == (1, 3, 16, 16) and first[0].dtype == np.float32
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(Exception, match="cannot be read"):
        next(iter(calibration))  # nothing was kept


@pytest.mark.parametrize("format", SUFFIX)
def test_the_report_of_a_file_and_itself_is_zero(floats, format):
    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    errors = layer_errors.layer_errors(format, floats[format].path, floats[format].path, [image])
    assert len(errors) == 16 and all(error == 0 for _, error in errors)


def test_mistakes_are_one_line(run, model):
    assert "no INT8 in it; there are: openvino, onnx" in one_line(run("quantize", model, "--format", "pt2")[2])
    code, _, err = run("quantize", model, "--format", "onnx", "--out", "x.xml")
    assert code == 2 and "ends in .onnx" in one_line(err)


# --- real networks


@pytest.mark.slow
def test_the_real_tiny_darknet_loses_two_hits_at_most(shared, run, tmp_path):
    model, data = tmp_path / "tiny.safetensors", shared / "data/imagenet-sample"
    names = ["--classes", data / "darknet_wnids.txt"]
    assert run("convert", shared / "data/weights/tiny.weights", *names, "--out", model)[0] == 0
    options = ["--data", data, "--calibration", shared / "data/tiny-coco/train2017", "--max-drop", 1, "--json"]
    code, out, err = run("quantize", model, "--format", "openvino", *options)
    assert code == 0, err
    said = json.loads(out)
    assert round(200 * said["float"]["top1"]) == 137 and round(200 * said["int8"]["top1"]) >= 135
    assert said["int8"]["images"] == 200 and said["speedup"] > (1.8 if HAS_VNNI else 1.2)


@pytest.mark.slow
def test_what_onnxruntime_runs_slower_than_float_is_refused(shared, run, tmp_path, monkeypatch):
    """Measured, not made up: it does not fuse what NNCF puts around a leaky ReLU."""
    model, data = tmp_path / "tiny.safetensors", shared / "data/imagenet-sample"
    names = ["--classes", data / "darknet_wnids.txt"]
    assert run("convert", shared / "data/weights/tiny.weights", *names, "--out", model)[0] == 0
    monkeypatch.setitem(schemes.SCHEMES, "onnx", [schemes.QuantizationScheme("nncf")])
    options = ["--data", data, "--calibration", shared / "data/tiny-coco/train2017", "--calibration-images", 4]
    code, _, err = run("quantize", model, "--format", "onnx", *options, "--max-drop", 100)
    assert code == 4 and "nncf mixed, nothing in float: slower than float (float32" in one_line(err)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.safetensors"]
