"""LayerCAM: its equations on a network whose answer is known, and where its heat lies in the picture."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convzoo.data.transforms.boxes import letterbox
from convzoo.data.transforms.image import center_crop
from convzoo.inference.explain import MIN_CELLS, _in_picture, explain, layer_cam
from convzoo.inference.torch_model import open_model
from convzoo.report.draw import heated
from convzoo.tasks.classify import Classify
from convzoo.types import Sample
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
