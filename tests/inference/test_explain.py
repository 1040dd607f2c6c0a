"""LayerCAM: its equations on a network whose answer is known, and where its heat lies in the picture."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convzoo.data.transforms.boxes import letterbox
from convzoo.data.transforms.image import center_crop
from convzoo.inference.explain import MIN_CELLS, _in_picture, explain, explain_worst, layer_cam
from convzoo.inference.torch_model import open_model
from convzoo.report.draw import heated
from convzoo.tasks.classify import Classify
from convzoo.types import ComparedBoxes, Sample, WorstPicture
from helpers import one_line
from networks import SMALL_YOLO, noise, write_model


class Small(nn.Module):
    """A convolution, its positive part, the mean over the map, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.pool(self.act(self.conv(x))).flatten(1))


def test_the_heat_is_the_papers_sum():
    torch.manual_seed(0)
    network, x = Small().eval(), torch.randn(1, 3, 16, 16)
    activations = network.act(network.conv(x))[0].detach()
    for label in range(4):
        weights = network.fc.weight[label].detach().clamp(min=0) / 64  # the mean's slope, its positive part
        expected = (weights[:, None, None] * activations).sum(0)
        heat = layer_cam(network, x.clone(), lambda outputs, label=label: (outputs[0][0, label], None))
        assert torch.allclose(heat, expected / expected.max(), atol=1e-6) and min(heat.shape) >= MIN_CELLS
    assert not any(module._forward_hooks for module in network.modules())


def test_heat_lies_where_the_picture_lies_in_the_input():
    """A hot spot in the input is at the same place of the picture, whatever was cut off or put around it."""
    rng = np.random.default_rng(0)
    for transform, keys, size in (
        (letterbox, {"size_px": 64}, (60, 120)),
        (letterbox, {"size_px": (96, 64)}, (200, 30)),
        (center_crop, {"size_px": 64}, (100, 80)),
    ):
        image = torch.zeros(3, *size, dtype=torch.uint8)
        sample = transform(Sample(image, 0, 0, "", size), rng, **keys)
        batch = Classify(["a"]).collate([sample])
        place, (height, width) = batch.placement[0].tolist(), batch.images.shape[2:]
        y, x = 0.4 * size[0], 0.6 * size[1]
        heat = torch.zeros(height, width)
        heat[int(y * place[1] + place[3]), int(x * place[0] + place[2])] = 1
        in_picture = _in_picture(heat, batch, size)
        found = np.unravel_index(in_picture.argmax(), in_picture.shape)
        assert in_picture.shape == size
        assert abs(found[0] - y) <= 1 + 1 / place[1] and abs(found[1] - x) <= 1 + 1 / place[0]
    assert not in_picture[:10].any() and not in_picture[-10:].any()  # cut off by the crop


@pytest.mark.parametrize("box", [(2.0, 2.0, 60.0, 60.0), (5.0, 40.0, 20.0, 60.0)])
def test_a_boxs_heat_is_of_cells_that_reach_over_it(tmp_path, box):
    opened = open_model(write_model(tmp_path, "yolov3-digits", SMALL_YOLO))
    heat = explain(opened, noise(1, 64, 64)[0], 3, box)
    assert heat.shape == (64, 64) and heat.dtype == np.float32 and heat.min() >= 0 and heat.max() > 0.5
    assert all(parameter.grad is None for parameter in opened.model.parameters())


def test_each_box_has_its_own_heat(tmp_path):
    """Of two boxes in opposite corners each is warm where it lies itself."""
    opened = open_model(write_model(tmp_path, "yolov3-digits", SMALL_YOLO))
    image = noise(1, 64, 64)[0]
    first, second = (explain(opened, image, 3, box) for box in ((1.0, 1.0, 17.0, 17.0), (46.0, 46.0, 62.0, 62.0)))
    quarters = slice(0, 24), slice(40, 64)
    means = [[heat[part, part].mean() for part in quarters] for heat in (first, second)]
    assert means[0][0] > 3 * means[0][1] and means[1][1] > 3 * means[1][0]


def test_explained_pictures_are_written(run, digits_run, tmp_path):
    assert run("data", "save", "digits", "--out", tmp_path / "pictures", "--count", 2)[0] == 0
    last = digits_run / "checkpoints/last.safetensors"
    code, out, _ = run("predict", last, tmp_path / "pictures", "--explain", tmp_path / "why")
    assert code == 0 and len(out.splitlines()) == 2
    names = {path.stem for path in (tmp_path / "pictures").iterdir()}
    assert {path.stem for path in (tmp_path / "why").iterdir()} == names


def test_what_has_no_gradients_is_named(run, digits_run, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    last, onnx = digits_run / "checkpoints/last.safetensors", tmp_path / "a.onnx"
    assert run("export", last, "--format", "onnx", "--out", onnx)[0] == 0
    code, _, err = run("predict", onnx, tmp_path / "a.png", "--explain", tmp_path / "why")
    assert code == 2 and "no gradients" in one_line(err)


def test_nothing_hot_leaves_the_picture_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(heated(image, np.zeros((5, 5)))), image)
    assert np.abs(np.asarray(heated(image, np.ones((5, 5)))).astype(float) - image).mean() > 30


class Noise:
    """A data set of the same random picture."""

    image = noise(1, 64, 64)[0]

    def __init__(self):
        self.class_names = ["noise"]

    def __len__(self):
        return 3

    def load(self, index):
        return Sample(self.image, 0, index, self.path(index), (64, 64))

    def path(self, index):
        return f"{index}.png"


def boxes(is_right: list[bool], truth_found: list[bool]) -> ComparedBoxes:
    truth, answers = np.array([[2.0, 2, 40, 40]] * len(truth_found)), np.array([[20.0, 20, 60, 60]] * len(is_right))
    names = [str(i) for i in range(len(is_right))]
    return ComparedBoxes(truth, ["7"] * len(truth_found), truth_found, answers, names, [0.9] * len(names), is_right)


def test_a_detectors_worst_mistake_is_its_best_false_box_or_what_it_missed(tmp_path):
    opened = open_model(write_model(tmp_path, "yolov3-digits", SMALL_YOLO))
    both, missed, right = boxes([True, False], [True, False]), boxes([True], [True, False]), boxes([True], [True])
    worst = [WorstPicture(i, ("", ""), compared) for i, compared in enumerate([both, missed, right])]
    explained = explain_worst(opened, worst, Noise())
    assert [(one.picture.id, one.class_name, one.is_true) for one in explained] == [(0, "1", False), (1, "7", True)]
    for one, label, box in ((explained[0], 1, (20.0, 20.0, 60.0, 60.0)), (explained[1], 7, (2.0, 2.0, 40.0, 40.0))):
        expected = heated(Noise.image.permute(1, 2, 0).numpy(), explain(opened, Noise.image, label, box))
        assert np.array_equal(one.pixels, np.asarray(expected))


def test_eval_explains_the_worst_pictures(run, digits_run, tmp_path):
    last = digits_run / "checkpoints/last.safetensors"
    assert run("eval", last, "--out", tmp_path / "report", "--explain")[0] == 0
    rows = (tmp_path / "report/worst.csv").read_text().splitlines()[1:]
    with Image.open(tmp_path / "report/explained.png") as sheet, Image.open(tmp_path / "report/worst.png") as worst:
        columns, lines = min(6, 2 * len(rows)), -(-2 * len(rows) // 6)
        assert rows and sheet.width == 12 + 162 * columns and sheet.height == 12 + 204 * lines
        first = np.asarray(sheet)[12:162, 12:162].astype(int)
        plain = np.asarray(worst)[12:162, 12:162].astype(int)
    assert np.abs(first - plain).mean() > 5  # the same picture, under its heat


def test_what_cannot_be_explained_is_refused_before_it_is_measured(run, digits_run, tmp_path):
    last = digits_run / "checkpoints/last.safetensors"
    code, out, err = run("eval", last, "--explain")
    assert code == 2 and not out and "--out" in one_line(err)
    assert run("export", last, "--format", "onnx", "--out", tmp_path / "digits.onnx")[0] == 0
    code, out, err = run("eval", tmp_path / "digits.onnx", "--out", tmp_path / "report", "--explain")
    assert code == 2 and not out and "no gradients" in one_line(err) and not (tmp_path / "report").exists()
