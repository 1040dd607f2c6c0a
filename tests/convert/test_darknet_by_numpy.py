"""A Darknet network computed by NumPy alone, from the bytes of its file: a proof that needs no reference data."""

import json

import numpy as np
import pytest
from PIL import Image

from convzoo.inference.torch_model import open_model

CFG = """[net]
width=32
height=32
channels=3

[convolutional]
batch_normalize=1
filters=4
size=3
stride=2
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
filters=6
size=1
activation=mish

[upsample]
stride=2

[route]
layers=-1,0

[convolutional]
batch_normalize=1
filters=4
size=3
stride=2
pad=1
activation=swish

[shortcut]
from=-5
activation=linear

[convolutional]
filters=14
size=1
activation=linear

[yolo]
mask=1,2
anchors=4,5, 8,9, 20,14
classes=2
num=3
scale_x_y=1.1
"""


def convolution(x, weights, stride):
    """[C, H, W] float64, padded by half the kernel."""
    size = weights.shape[-1]
    pad = size // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    rows = (x.shape[1] + 2 * pad - size) // stride + 1
    columns = (x.shape[2] + 2 * pad - size) // stride + 1
    out = np.zeros((len(weights), rows, columns))
    for i in range(rows):
        for j in range(columns):
            window = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = np.tensordot(weights, window, 3)
    return out


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


ACTIVATIONS = {
    "leaky": lambda x: np.where(x > 0, x, 0.1 * x),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "swish": lambda x: x * sigmoid(x),
    "linear": lambda x: x,
}


def stored(values):
    """Return numbers as a file of float32 gives them back."""
    return np.asarray(values, np.float32).astype(np.float64)


class Layer:
    """A convolution with its numbers, in the order in which Darknet writes them."""

    def __init__(self, rng, inputs, filters, size, stride, activation, norm):
        self.bias = rng.normal(0, 0.5, filters)
        self.norm = [rng.uniform(0.5, 1.5, filters), rng.normal(0, 0.3, filters), rng.uniform(0.5, 2, filters)]
        self.weights = rng.normal(0, (inputs * size * size) ** -0.5, (filters, inputs, size, size))
        self.stride, self.activation, self.has_norm = stride, activation, norm
        numbers = [self.bias, *(self.norm if norm else []), self.weights.ravel()]
        self.bytes = np.concatenate(numbers).astype("<f4").tobytes()

    def __call__(self, x):
        x = convolution(x, stored(self.weights), self.stride)
        if self.has_norm:
            scale, mean, variance = (stored(part)[:, None, None] for part in self.norm)
            x = (x - mean) / np.sqrt(variance + 1e-5) * scale
        return ACTIVATIONS[self.activation](x + stored(self.bias)[:, None, None])


@pytest.fixture
def network(tmp_path):
    rng = np.random.default_rng(11)
    layers = [
        Layer(rng, 3, 4, 3, 2, "leaky", True),
        Layer(rng, 4, 6, 1, 1, "mish", False),
        Layer(rng, 10, 4, 3, 2, "swish", True),
        Layer(rng, 4, 14, 1, 1, "linear", False),
    ]
    header = np.array([0, 2, 5], "<i4").tobytes() + np.array([640], "<i8").tobytes()
    (tmp_path / "net.weights").write_bytes(header + b"".join(layer.bytes for layer in layers))
    (tmp_path / "net.cfg").write_text(CFG)
    (tmp_path / "net.names").write_text("cup\nspoon\n")
    return layers


def raw_map(layers, x):
    first, second, third, last = layers
    a = first(x)  # 16 x 16
    pooled = a.reshape(4, 8, 2, 8, 2).max((2, 4))
    up = second(pooled).repeat(2, 1).repeat(2, 2)
    return last(third(np.concatenate([up, a])) + pooled)


def decoded(head):
    """Return boxes [N, 4] in pixels and scores [N, 2] of a map [14, 8, 8], anchors 1 and 2 of the file."""
    boxes, scores = [], []
    for group, (width, height) in zip(head.reshape(2, 7, 8, 8), ((8, 9), (20, 14)), strict=True):
        for row in range(8):
            for column in range(8):
                t = group[:, row, column]
                x, y = 1.1 * sigmoid(t[:2]) - 0.05 + (column, row)
                w, h = np.exp(t[2:4]) * (width, height)
                boxes.append([4 * x - w / 2, 4 * y - h / 2, 4 * x + w / 2, 4 * y + h / 2])
                scores.append(sigmoid(t[4]) * sigmoid(t[5:]))
    return np.array(boxes), np.array(scores)


def test_a_network_of_ones_own_gives_what_numpy_gives(run, network, tmp_path):
    out = tmp_path / "net.safetensors"
    assert run("convert", tmp_path / "net.weights", "--cfg", tmp_path / "net.cfg", "--classes", tmp_path / "net.names",
               "--out", out)[0] == 0  # fmt: skip
    pixels = np.random.default_rng(5).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    expected = raw_map(network, pixels.transpose(2, 0, 1) / 255)
    opened = open_model(out)
    images = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
    (head,) = opened.runner()(images)
    assert np.abs(head[0].numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    boxes, scores = decoded(expected)
    ours = opened.task().decode((head,))
    assert np.abs(ours[0][0].numpy() - boxes).max() <= 1e-5 * np.abs(boxes).max()
    assert np.abs(ours[1][0].numpy() - scores).max() <= 1e-5

    Image.fromarray(pixels).save(tmp_path / "picture.png")
    code, text, _ = run("predict", out, tmp_path / "picture.png", "--min-score", 0, "--json")
    best = json.loads(text)["detections"][0]
    label = scores.max(0).argmax()
    assert code == 0 and best["score"] == pytest.approx(scores.max(), abs=1e-4)
    assert best["class"] == ["cup", "spoon"][label]
