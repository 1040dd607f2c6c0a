"""Darknet's layers, heads and suppression by NumPy alone in float64, from the text of a `.cfg` and drawn weights.

Written from the rules of the original (github.com/pjreddie/darknet) and of its successor (github.com/hank-ai/darknet),
with nothing of this package.
"""

import re
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

HEADER = np.array([0, 2, 5, 640, 0], "<i4").tobytes()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis):
    x = np.exp(x - x.max(axis, keepdims=True))
    return x / x.sum(axis, keepdims=True)


ACTIVATIONS = {
    "linear": lambda x: x,
    "leaky": lambda x: np.where(x > 0, x, 0.1 * x),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "logistic": sigmoid,
    "swish": lambda x: x * sigmoid(x),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "ramp": lambda x: np.maximum(x, 0) + 0.1 * x,
}


class Section(NamedTuple):
    name: str
    options: dict[str, str]

    def number(self, key: str, default: int = 0) -> int:
        return int(self.options.get(key, default))

    def numbers(self, key: str) -> list[float]:
        return [float(part) for part in self.options[key].strip(",").split(",")]


def read(text: str) -> list[Section]:
    """Return the sections of a `.cfg` with their options, [net] first."""
    parts = re.split(r"^\[(\w+)\]$", text, flags=re.MULTILINE)[1:]
    bodies = [dict(line.split("=", 1) for line in body.split("\n") if "=" in line) for body in parts[1::2]]
    return [Section(*pair) for pair in zip(parts[::2], bodies, strict=True)]


class Weights:
    """Draws numbers as a weight file holds them, and keeps the file."""

    def __init__(self, seed: int):
        self.rng, self.content = np.random.default_rng(seed), HEADER

    def __call__(self, values: np.ndarray) -> np.ndarray:
        values = values.astype("<f4")
        self.content += values.tobytes()
        return values.astype(np.float64)

    def draw(self, *shape: int, norm: int, first: bool = False):
        """Draw bias, batch norm and matrix; return the matrix, and what applies the rest to a map by its channels.

        Args:
            first: the matrix stands before the batch norm, as in connected layers.
        """
        outputs, column = shape[0], (slice(None), None, None)
        bias = self(self.rng.normal(0, 0.5, outputs))[column]
        spread = self.rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
        matrix = self(spread) if first else spread
        scale, mean, deviation = 1, 0, 1
        if norm:
            scale, mean = (
                self(self.rng.uniform(0.5, 1.5, outputs))[column],
                self(self.rng.normal(0, 0.3, outputs))[column],
            )
            deviation = np.sqrt(self(self.rng.uniform(0.5, 2, outputs)) + 1e-5)[column]
        matrix = matrix if first else self(matrix)
        return matrix, lambda x: (x - mean) / deviation * scale + bias


def windows(x: np.ndarray, size: int, stride: int, padding: int, outside: float) -> np.ndarray:
    """Return the windows [C, rows, columns, size, size] of a map that is padded by `padding` in all, both ways."""
    before = padding // 2
    around = ((0, 0), (before, padding - before), (before, padding - before))
    padded = np.pad(x, around, constant_values=outside)
    return sliding_window_view(padded, (size, size), (1, 2))[:, ::stride, ::stride]


def convolution(section: Section, x: np.ndarray, weights: Weights) -> np.ndarray:
    size, groups, filters = section.number("size", 1), section.number("groups", 1), section.number("filters")
    padding = 2 * (size // 2) if section.number("pad") else 2 * section.number("padding")
    kernel, affine = weights.draw(filters, len(x) // groups, size, size, norm=section.number("batch_normalize"))
    seen = windows(x, size, section.number("stride", 1), padding, 0)
    parts = zip(np.split(kernel, groups), np.split(seen, groups), strict=True)
    return affine(np.concatenate([np.einsum("ocij,crsij->ors", part, view) for part, view in parts]))


def connected(section: Section, x: np.ndarray, weights: Weights) -> np.ndarray:
    norm = section.number("batch_normalize")
    matrix, affine = weights.draw(section.number("output"), x.size, norm=norm, first=True)
    return affine((matrix @ x.ravel())[:, None, None])


def reorganised(x: np.ndarray, step: int) -> np.ndarray:
    """YOLOv2's: element by element, as the original's loop has it."""
    channels, height, width = x.shape
    parts, out = channels // step**2, np.empty(x.size)
    for k, j, i in np.ndindex(channels, height, width):
        row, column = j * step + k // parts // step, i * step + k // parts % step
        out[i + width * (j + height * k)] = x.flat[column + width * step * (row + height * step * (k % parts))]
    return out.reshape(channels * step**2, height // step, width // step)


def added(x: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of a larger map every n-th pixel is added, of more channels the first."""
    step, common = other.shape[1] // x.shape[1], min(len(x), len(other))
    out = x.copy()
    out[:common] += other[:common, ::step, ::step]
    return out


def cropped(section: Section, x: np.ndarray) -> np.ndarray:
    height, width = section.number("crop_height"), section.number("crop_width")
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    part = x[:, top : top + height, left : left + width]
    return part if section.number("noadjust") else 2 * part - 1


def layers(text: str, picture: np.ndarray, weights: Weights) -> list[np.ndarray]:
    """Return the map [C, H, W] of each layer; a head or a softmax gives what it takes in.

    Args:
        picture: [3, H, W], 0..1.
    """
    maps: list[np.ndarray] = []
    for number, section in enumerate(read(text)[1:]):
        x = maps[-1] if maps else picture
        name = section.name
        sources = (
            [int(part) for part in section.numbers("layers" if name == "route" else "from")]
            if (name in ("route", "shortcut", "sam", "scale_channels"))
            else []
        )
        others = [maps[source if source >= 0 else number + source] for source in sources]
        if name == "convolutional":
            x = convolution(section, x, weights)
        elif name == "connected":
            x = connected(section, x, weights)
        elif name == "maxpool":
            size = section.number("size", section.number("stride", 1))
            padding = section.number("padding", size - 1)
            x = windows(x, size, section.number("stride", 1), padding, -np.inf).max((3, 4))
        elif name == "avgpool":
            x = x.mean((1, 2), keepdims=True)
        elif name == "crop":
            x = cropped(section, x)
        elif name == "route":
            groups = section.number("groups", 1)
            x = np.concatenate([np.split(other, groups)[section.number("group_id")] for other in others])
        elif name == "shortcut":
            x = added(x, others[0])
        elif name in ("sam", "scale_channels"):
            x = x * others[0]
        elif name == "upsample":
            factor = section.number("stride", 2)
            x = x.repeat(factor, 1).repeat(factor, 2)
        elif name == "reorg":
            x = reorganised(x, section.number("stride", 1))
        default = "logistic" if name in ("convolutional", "connected") else "linear"
        maps.append(ACTIVATIONS[section.options.get("activation", default)](x))
    return maps


def decoded(text: str, maps: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes [N, 4], centre and size in shares of the input, and scores [N, K] of all heads, cell by cell."""
    net, *sections = read(text)
    input_wh = np.array([net.number("width"), net.number("height")])
    boxes, scores = [], []
    for section, x in zip(sections, maps, strict=True):
        if section.name not in ("yolo", "region"):
            continue
        pairs = np.reshape(section.numbers("anchors"), (-1, 2))
        chosen = (
            [int(i) for i in section.numbers("mask")] if "mask" in section.options else range(section.number("num"))
        )
        grid_wh = np.array(x.shape[:0:-1])
        anchors = pairs[list(chosen)] / (grid_wh if section.name == "region" else input_wh)
        stretch = float(section.options.get("scale_x_y", 1))
        for anchor, t in zip(anchors, x.reshape(len(anchors), -1, *x.shape[1:]), strict=True):
            for row, column in np.ndindex(x.shape[1], x.shape[2]):
                values = t[:, row, column]
                squashed = values if section.number("new_coords") else sigmoid(values)
                centre = ((column, row) + stretch * squashed[:2] - (stretch - 1) / 2) / grid_wh
                size = (4 * values[2:4] ** 2 if section.number("new_coords") else np.exp(values[2:4])) * anchor
                classes = softmax(values[5:], 0) if section.name == "region" else squashed[5:]
                boxes.append([*centre, *size])
                scores.append(squashed[4] * classes)
    return np.array(boxes), np.array(scores)


def likeness(a: np.ndarray, b: np.ndarray, kind: str, beta: float) -> float:
    """Return by definition how alike two boxes are: x_centre, y_centre, width, height in shares of the picture."""
    low = np.minimum(a[:2] - a[2:] / 2, b[:2] - b[2:] / 2)
    high = np.maximum(a[:2] + a[2:] / 2, b[:2] + b[2:] / 2)
    common = np.prod(np.maximum(a[2:] + b[2:] - (high - low), 0))  # what two lengths have in common of their span
    iou = common / (np.prod(a[2:]) + np.prod(b[2:]) - common)
    exponent = {"default": np.inf, "greedynms": 0.6, "diounms": beta}[kind]
    return iou - (((a[:2] - b[:2]) ** 2).sum() / ((high - low) ** 2).sum()) ** exponent


def survivors(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, limit: float, kind: str, beta: float) -> list:
    """Return the indices of what survives, best first: a box of which no better survivor of its class is too like."""
    chosen: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        rivals = [j for j in chosen if labels[j] == labels[i]]
        if all(likeness(boxes[i], boxes[j], kind, beta) <= limit for j in rivals):
            chosen.append(int(i))
    return chosen
