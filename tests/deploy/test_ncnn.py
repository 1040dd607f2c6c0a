"""NCNN files: what PyTorch does, float16 weights included; what they cannot have, and files that were changed."""

import json
import sys

import numpy as np
import pnnx
import pytest
import torch

from convzoo.data.transforms.pipeline import normalize
from convzoo.deploy import bench, export
from convzoo.deploy.export import ExportOptions
from convzoo.deploy.exported import open_any, open_exported
from convzoo.deploy.formats import ncnn
from convzoo.distributed import computes_bfloat16
from convzoo.errors import ConvzooError, UsageError
from convzoo.inference.torch_model import open_model
from convzoo.tasks.detect import Detect
from helpers import one_line
from networks import CPU, SMALL_YOLO, noise, off, write_model

TINY, YOLO = "tinydarknet-digits", "yolov3-digits"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("ncnn"), TINY)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("ncnn"), YOLO, SMALL_YOLO)


@pytest.fixture(scope="module")
def result(classifier):
    return export.export(open_model(classifier), ExportOptions("ncnn"))


def test_a_classifier(classifier, result):
    assert [file.name for file in sorted(result.path.parent.iterdir())] == [
        f"{TINY}.ncnn.{part}" for part in ("bin", "json", "param")
    ] + [classifier.name]
    assert result.path == classifier.with_name(f"{TINY}.ncnn.param") and result.parity.largest < 1e-4
    assert result.parity.agreed == result.parity.predictions == 11 and result.info.precision == "fp32"
    assert result.info.batch == 1 and set(result.info.versions) >= {"ncnn", "pnnx"}
    runner, network = open_any(result.path, CPU).runner(), open_model(classifier)
    for count in (1, 5):
        images = noise(count, 32, 32)
        x = normalize(images, network.recipe.transform.mean, network.recipe.transform.std)
        with torch.inference_mode():
            expected = network.model(x)
        for pictures in (images, x.numpy()):
            (outputs,) = runner(pictures)
            assert off(outputs, expected) < 1e-4 and outputs.argmax(1).equal(expected.argmax(1))


def test_weights_in_float16(run, classifier, result, tmp_path):
    code, out, err = run("export", classifier, "--format", "ncnn", "--precision", "fp16", "--out", tmp_path, "--json")
    assert code == 0, err
    plain = json.loads(out)
    assert plain["file"] == str(tmp_path / f"{TINY}.ncnn.param") and plain["precision"] == "fp16"
    assert plain["largest_difference"] < 1e-4 < plain["half_rounding"] < 2e-2
    assert 0.5 <= plain["bytes"] / result.bytes < 0.6
    images = noise(4, 32, 32)
    (half,), (whole,) = (open_exported(path).runner()(images) for path in (plain["file"], result.path))
    assert 1e-5 < off(half, whole) < 2e-2


def test_it_computes_in_bfloat16(result):
    images = noise(4, 32, 32)
    opened = open_exported(result.path)
    (coarse,), (fine,) = opened.runner("bf16")(images), opened.runner()(images)
    assert 1e-4 < off(coarse, fine) < 0.1


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_head_maps(detector, size):
    result = export.export(open_model(detector), ExportOptions("ncnn", size=size))
    assert list(result.parity.outputs) == ["head8", "head16", "head32"] and result.parity.largest < 1e-4
    images = noise(3, *size)
    for a, b in zip(open_any(result.path, CPU).runner()(images), open_model(detector).runner()(images), strict=True):
        assert off(a, b) < 1e-4


def test_decoded_boxes(detector):
    result = export.export(open_model(detector), ExportOptions("ncnn", stage="decoded"))
    assert list(result.parity.outputs) == ["boxes_xyxy", "scores"] and result.parity.largest < 1e-4
    opened, images = open_model(detector), noise(3, 64, 64)
    task = opened.task()
    assert isinstance(task, Detect)
    for a, b in zip(open_any(result.path, CPU).runner()(images), task.decode(opened.runner()(images)), strict=True):
        assert off(a, b) < 1e-4


def test_the_verbs_take_it(run, digits_run, tmp_path, monkeypatch):
    model = digits_run / "checkpoints/last.safetensors"
    assert run("export", model, "--format", "ncnn", "--out", tmp_path)[0] == 0
    file = tmp_path / "last.ncnn.param"
    ours, theirs = (json.loads(run("eval", path, "--json")[1]) for path in (file, model))
    assert ours["top1"] == theirs["top1"] and ours["images"] == 360
    assert len(run("eval", tmp_path, "--json")[1].splitlines()) == 1  # the .param opens, .bin and .json belong to it
    picture = tmp_path / "digit.png"
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(picture)
    a, b = (json.loads(run("predict", path, picture, "--json")[1]) for path in (file, model))
    assert a["classes"][0]["class"] == b["classes"][0]["class"]
    monkeypatch.setattr(bench, "peak_memory", lambda *_: 1)
    rows = json.loads(run("bench", file, "--rounds", 1, "--seconds", 0.01, "--json")[1])["rows"]
    forms = ["ncnn", *["ncnn-bf16"] * computes_bfloat16(CPU)]
    assert [row["form"] for row in rows] == forms and rows[0]["bytes"] == sum(
        file.with_suffix(suffix).stat().st_size for suffix in (".param", ".bin")
    )


REFUSALS = {
    ("--stage", "nms"): "use --stage decoded",
    ("--dynamic-size",): "pictures of one size",
    ("--preprocessing",): "float32 pictures, normalised",
    ("--batch", "4"): "one picture at a time",
    ("--precision", "bf16"): "has fp32, fp16",
}


@pytest.mark.parametrize("options", REFUSALS, ids="".join)
def test_what_it_cannot_have_is_refused(run, detector, options):
    code, _, err = run("export", detector, "--format", "ncnn", *options)
    assert code == 2 and REFUSALS[options] in one_line(err)


def test_precision_is_for_formats_that_have_it(run, classifier):
    code, _, err = run("export", classifier, "--format", "onnx", "--precision", "fp16")
    assert code == 2 and "--format onnx has fp32" in one_line(err)


@pytest.mark.parametrize("package", ["ncnn", "pnnx"])
def test_a_tool_that_is_missing(run, classifier, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = run("export", classifier, "--format", "ncnn", "--out", tmp_path)
    assert code == 5 and "pip install 'convzoo[deploy]'" in one_line(err) and not list(tmp_path.iterdir())


def script(tmp_path, text: str) -> str:
    path = tmp_path / "pnnx"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_pnnx_that_fails_or_never_ends(run, classifier, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    for text, message in (
        ("echo chatter; echo no luck >&2; exit 3", "(3) and says: no luck"),
        ("sleep 60", "after 0.2 s"),
    ):
        monkeypatch.setattr(pnnx, "EXEC_PATH", script(tmp_path, text))
        monkeypatch.setattr(ncnn, "LIMIT_S", 0.2 if "sleep" in text else 60)
        code, stdout, err = run("export", classifier, "--format", "ncnn", "--out", out)
        assert code == 1 and message in one_line(err) and not stdout and not list(out.iterdir())


@pytest.mark.parametrize("part", ["param", "bin", "json"])
def test_files_that_were_changed(result, tmp_path, part):
    for file in ("param", "bin", "json"):
        (tmp_path / f"x.ncnn.{file}").write_bytes(result.path.with_suffix(f".{file}").read_bytes())
    path, whole = tmp_path / "x.ncnn.param", (tmp_path / f"x.ncnn.{part}").read_bytes()
    open_exported(path)
    for place in range(5, len(whole), len(whole) // 7):
        for data in (whole[:place], whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]):
            (tmp_path / f"x.ncnn.{part}").write_bytes(data)
            with pytest.raises(ConvzooError) as refused:
                open_exported(path)
            assert "x.ncnn.param" in str(refused.value) and "\n" not in str(refused.value)
    (tmp_path / f"x.ncnn.{part}").unlink()
    with pytest.raises(ConvzooError, match="no such file" if part == "param" else "is not beside it"):
        open_exported(path)


def test_a_param_of_others(tmp_path):
    (tmp_path / "theirs.ncnn.param").write_text("7767517\n1 1\nInput images 0 1 images\n")
    (tmp_path / "theirs.ncnn.bin").write_bytes(b"")
    with pytest.raises(ConvzooError, match=r"theirs.ncnn.json, its metadata, is not beside it"):
        open_exported(tmp_path / "theirs.ncnn.param")
    with pytest.raises(UsageError, match="ncnn.param"):
        open_exported(tmp_path / "theirs.param")


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe_name",
    ["vgg16-imagenet", "densenet100-cifar10", "densenet121-imagenet", "tinydarknet-imagenet", "darknet53-imagenet"],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_classifiers_of_full_size(tmp_path, recipe_name, precision):
    model = write_model(tmp_path, recipe_name)
    size = (32, 32) if "cifar" in recipe_name else None
    result = export.export(open_model(model), ExportOptions("ncnn", size=size, precision=precision))
    assert result.parity.largest <= 1e-4 and result.parity.agreed == result.parity.predictions


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["raw", "decoded"])
def test_yolov3_of_full_size(tmp_path, stage):
    result = export.export(open_model(write_model(tmp_path, "yolov3-coco")), ExportOptions("ncnn", stage=stage))
    assert result.parity.largest <= 1e-4
