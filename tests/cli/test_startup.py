"""What starts quickly: verbs import what they use, and what replaces a slow import gives the same numbers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import VGG16_Weights
from torchvision.ops import batched_nms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from convzoo.config import registry
from convzoo.data import imagenet
from convzoo.data.transforms.image import center_crop
from convzoo.data.transforms.pipeline import interpolated
from convzoo.deploy.export import ExportOptions, export
from convzoo.inference.torch_model import open_model
from convzoo.tasks import postprocess
from convzoo.types import Sample
from helpers import openvino_runs
from networks import SMALL_YOLO, write_model

SLOW = ("torchvision", "sklearn", "matplotlib")
RUN = """
import contextlib, io, json, sys
from convzoo.cli import main
outputs = []
for argv in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        code = main(argv)
    outputs.append([code, stdout.getvalue()])
print(json.dumps([outputs, sorted(sys.modules)]))
"""


def in_a_process(*commands: list) -> tuple[list, set[str]]:
    """Run command lines in one fresh process; return what each gave and printed, and what was imported."""
    argv = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run([sys.executable, "-c", RUN, argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outputs, modules = json.loads(done.stdout)
    assert all(code == 0 for code, _ in outputs), done.stderr
    return outputs, set(modules)


def test_help_and_list_wait_for_no_torch():
    """A verb's own help too, for which typer itself imports pydantic."""
    verbs = [
        [verb, "--help"] for verb in ("train", "eval", "predict", "export", "quantize", "bench", "serve", "convert")
    ]
    outputs, modules = in_a_process(["--help"], *verbs, ["data", "--help"])
    assert not modules & {"torch", "numpy", "PIL", "yaml", "tqdm"} and "Usage" in outputs[0][1]
    outputs, modules = in_a_process(["list"], ["list", "--json"])
    assert "torch" not in modules and "numpy" not in modules
    assert json.loads(outputs[1][1])["models"] == registry.names("model")


@pytest.mark.parametrize("kind", registry.PACKAGES)
def test_what_files_declare_is_what_is_registered(kind):
    assert registry.declared(kind) == registry.names(kind)


def test_exported_files_wait_for_no_training_packages(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(4):
        folder = tmp_path / f"data/val/{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    transform = "transform.eval=[{resize: {size_px: 36}}, {center_crop: {size_px: 32}}]"
    overrides = ["data={name: image_folder}", "model.num_classes=2", transform]
    classifier = open_model(write_model(tmp_path, "tinydarknet-digits", overrides))
    detector = open_model(write_model(tmp_path, "yolov3-digits", SMALL_YOLO))
    formats = ["onnx", "ncnn", *["openvino"] * openvino_runs()]
    files = [export(classifier, ExportOptions(format)).path for format in formats]
    boxes = export(detector, ExportOptions("onnx")).path
    evaluated = [["eval", file, "--data", tmp_path / "data", "--workers", "0", "--json"] for file in files]
    asked = [["predict", file, tmp_path / "data/val/0", "--json"] for file in (*files, boxes)]
    outputs, modules = in_a_process(*evaluated, *asked)
    assert not modules & set(SLOW)
    assert all(json.loads(text)["images"] == 4 for _, text in outputs[: len(files)])
    assert json.loads(outputs[-1][1].splitlines()[0])["detections"]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest-exact"])
@pytest.mark.parametrize("antialias", [True, False])
def test_pictures_are_resized_as_torchvision_does(interpolation, antialias):
    rng = np.random.default_rng(1)
    for height, width, size in [(37, 53, [24, 31]), (20, 31, [45, 64]), (64, 64, [64, 64]), (33, 80, [33, 17])]:
        rows = torch.from_numpy(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        picture = rows.permute(2, 0, 1)
        for image in (picture, picture.contiguous(), picture[:, 3:, 5:-2]):
            expected = F.resize(image, size, InterpolationMode(interpolation), antialias=antialias)
            assert interpolated(image, size, interpolation, antialias).equal(expected)


@pytest.mark.parametrize("size_px", [8, 9, 20, 33, 48])
def test_pictures_are_cropped_as_torchvision_does(size_px):
    rng = np.random.default_rng(2)
    for height, width in [(20, 33), (33, 20), (9, 8), (48, 47)]:
        image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
        cropped = center_crop(Sample(image, 0, 0, "", (height, width)), rng, size_px=size_px).image
        assert cropped.equal(F.center_crop(image, [size_px, size_px]))


@pytest.mark.parametrize("count", [0, 1, 300, 3000])
def test_boxes_are_suppressed_as_torchvision_does(count):
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 100, (count, 2))
    boxes = torch.from_numpy(np.concatenate([corners, corners + rng.uniform(5, 50, (count, 2))], 1))
    boxes = boxes - boxes.amin() if count else boxes
    score = torch.from_numpy(np.sort(rng.permutation(count) / max(count, 1))[::-1].copy())
    label = torch.from_numpy(rng.integers(0, 5, count))
    survivors = postprocess._suppress_by_class(boxes, score, label, 0.5).sort().values
    assert survivors.equal(batched_nms(boxes, score, label, 0.5).sort().values) and len(survivors) >= min(count, 20)


def test_titles_are_torchvisions():
    assert imagenet.titles(imagenet.wnids()) == list(VGG16_Weights.IMAGENET1K_V1.meta["categories"])
