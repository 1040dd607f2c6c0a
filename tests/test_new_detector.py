"""A detector of another kind - one scale, no anchors - is a network, a task and a recipe: nothing else knows of it."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convzoo
from convzoo import build, cli
from convzoo.config import registry
from convzoo.config.registry import register
from convzoo.deploy.export import ExportOptions, export
from convzoo.deploy.exported import open_exported
from convzoo.deploy.metadata import UNSEALED
from convzoo.deploy.quantize import schemes
from convzoo.deploy.quantize.calibration import find_calibration
from convzoo.inference.torch_model import open_model
from convzoo.tasks.detect import BoxTask
from convzoo.types import Batch, Key
from helpers import rows, skip_without_openvino

STRIDE = 16
RECIPE = """
task: toy
data: {name: digit_scenes, canvas_px: 64, digit_px: [14, 30], most_digits: 3, max_train_images: 240}
transform: {train: [{letterbox: {size_px: 64}}], eval: [{letterbox: {size_px: 64}}], mean: [0.5, 0.5, 0.5]}
model: {name: toy, num_classes: 10}
optim: {lr: 0.05}
train: {epochs: 3, batch_size: 16, precision: fp32, clip_grad_norm: 10.0, eval_every_epochs: 3}
loss: {size_weight: 0.5}
postprocess: {score_threshold: 0.02}
"""


def toy(*, num_classes: int) -> nn.Module:
    """Build a network that gives a map [B, 4 + K, H/16, W/16]: a cell's distances to a box's sides, and classes."""
    channels = [3, 16, 32, 64, 64]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(channels[-1], 4 + num_classes, 1))


def toy_loss(*, size_weight: float = 1.0) -> dict[str, Any]:
    return {"size_weight": size_weight}


class ToyTask(BoxTask):
    """Each cell answers for the box whose centre it holds."""

    def __init__(self, class_names: list[str], size_weight: float, **options: Any):
        super().__init__(class_names, STRIDE, options)
        self.size_weight = size_weight

    def raw_shapes(self, size_hw: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        return {"map": (4 + len(self.class_names), size_hw[0] // STRIDE, size_hw[1] // STRIDE)}

    def decode(self, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        (map_BCHW,) = outputs
        left, top, right, bottom = (STRIDE * F.softplus(map_BCHW[:, :4])).unbind(1)
        y, x = (STRIDE * (torch.arange(n).to(map_BCHW) + 0.5) for n in map_BCHW.shape[2:])
        boxes_xyxy = torch.stack([x - left, y[:, None] - top, x + right, y[:, None] + bottom], -1).flatten(1, 2)
        return boxes_xyxy, map_BCHW[:, 4:].sigmoid().flatten(2).transpose(1, 2)

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        map_BCHW: Tensor = outputs
        boxes_xyxy, labels, image = batch.targets
        column, row = ((boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2 / STRIDE).long().clamp(max=3).unbind(1)
        objects = torch.zeros_like(map_BCHW[:, 4:])
        objects[image, labels, row, column] = 1
        decoded, _ = self.decode([map_BCHW])
        errors = decoded.unflatten(1, map_BCHW.shape[2:])[image, row, column] - boxes_xyxy
        loss_class = F.binary_cross_entropy_with_logits(map_BCHW[:, 4:], objects, reduction="sum") / len(batch)
        loss_size = self.size_weight * (errors / STRIDE).abs().sum() / len(batch)
        return {"loss": loss_class + loss_size, "loss_class": loss_class.detach(), "loss_size": loss_size.detach()}


def toy_task(class_names: list[str], recipe: Any, loss: dict[str, Any], *, score_threshold: float = 0.1) -> ToyTask:
    return ToyTask(class_names, **loss, score_threshold=score_threshold)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    """Register the detector, and forget it after this file."""
    with pytest.MonkeyPatch.context() as patch:
        for kind, name, builder in (("model", "toy", toy), ("loss", "toy", toy_loss), ("task", "toy", toy_task)):
            registry.names(kind)
            patch.setitem(registry._builders, kind, dict(registry._builders[kind]))
            register(kind, name)(builder)
        yield
    assert "toy" not in registry.names("task")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Return the run folder of 45 steps."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.yaml").write_text(RECIPE)
    return convzoo.train(folder / "toy.yaml", out=folder / "run", device="cpu", workers=0)


@pytest.fixture(scope="module")
def model(trained) -> Path:
    return trained / "checkpoints/last.safetensors"


def test_it_learns_and_is_measured(trained, model):
    epochs = rows(trained, "epoch")
    assert epochs[-1]["loss"] < 0.8 * epochs[0]["loss"]
    assert epochs[-1]["loss"] == pytest.approx(epochs[-1]["loss_class"] + epochs[-1]["loss_size"], rel=1e-5)
    assert epochs[-1]["images"] == 120 and "AP" in epochs[-1]
    assert convzoo.load(model, device="cpu").evaluate(workers=0)["AP"] == epochs[-1]["AP"]


@pytest.mark.parametrize(
    ("format", "stage", "outputs"),
    [
        ("onnx", "raw", {"map": (14, 4, 4)}),
        ("onnx", "decoded", {"boxes_xyxy": (16, 4), "scores": (16, 10)}),
        ("onnx", "nms", {"boxes_xyxy": (100, 4), "scores": (100,), "labels": (100,)}),
        ("openvino", "raw", {"map": (14, 4, 4)}),
        ("pt2", "nms", {"boxes_xyxy": (100, 4), "scores": (100,), "labels": (100,)}),
    ],
)
def test_it_is_exported_and_compared(model, tmp_path, format, stage, outputs):
    skip_without_openvino(format)
    opened = open_model(model)
    report = export(opened, ExportOptions(format, out=tmp_path, stage=stage, dynamic_size=format == "onnx"))
    assert report.info.output_shapes() == outputs and report.parity.agreed == report.parity.predictions
    assert report.parity.largest < 1e-4 and report.info.tolerance == 1e-4
    scenes = build.build_dataset(opened.recipe, None, "val")
    batch = opened.task().collate([opened.pipeline()(scenes.load(i), Key(0, i)) for i in range(4)])
    answers = [m.task().postprocess(m.runner()(batch.images), batch) for m in (open_exported(report.path), opened)]
    for a, b in zip(*answers, strict=True):
        assert len(a.labels) == len(b.labels) > 0
        np.testing.assert_allclose(np.sort(a.scores), np.sort(b.scores), atol=1e-4)


def test_it_predicts_boxes_and_draws_them(model, tmp_path):
    assert cli.main(["data", "save", "digit_scenes", "--out", str(tmp_path / "scenes"), "--count", "4"]) == 0
    exported = export(open_model(model), ExportOptions("onnx", out=tmp_path, stage="decoded")).path
    ours, theirs = (
        list(convzoo.load(path, device="cpu").predict(tmp_path / "scenes", min_score=0.02, save=tmp_path / path.suffix))
        for path in (model, exported)
    )
    assert len(ours) == len(theirs) == 4
    for a, b in zip(ours, theirs, strict=True):
        assert a.names == b.names and a.boxes_xyxy is not None and b.boxes_xyxy is not None and len(a.names) > 0
        assert set(a.names) <= {str(digit) for digit in range(10)}
        np.testing.assert_allclose(a.boxes_xyxy, b.boxes_xyxy, atol=1e-2)


def test_it_is_quantised(model, tmp_path):
    before = open_exported(export(open_model(model), ExportOptions("onnx", out=tmp_path)).path)
    calibration = find_calibration(before, None, None, 30, before.info.size)
    network = schemes.quantised(before.path, "onnx", schemes.SCHEMES["onnx"][0], calibration)
    schemes.write(network, "onnx", before.info.model_copy(update={"seal": UNSEALED}), tmp_path / "int8.onnx")
    after, images = open_exported(tmp_path / "int8.onnx"), torch.from_numpy(np.concatenate(list(calibration)))
    (a,), (b,) = after.runner()(images), before.runner()(images)
    assert 0 < (a - b).square().mean() < 0.01 * b.square().mean()
    assert after.task().predicts == "boxes"
