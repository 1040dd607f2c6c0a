"""Pictures of several handwritten digits with boxes, made on the spot from the embedded digits: nothing to download.

Each scene is a function of its number: an unevenly lit dark board of any colour, and scikit-learn's scans in chalk of
any colour and several sizes, which hardly overlap. Held-out digits are in held-out scenes only.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from convzoo.config.registry import register
from convzoo.data.datasets.digits import digits
from convzoo.data.transforms.pipeline import interpolated
from convzoo.errors import UsageError
from convzoo.types import Boxes, Sample

INK = 64  # of 255: what counts as ink when a digit's box is taken
MOST_OVERLAP = 0.05  # of the smaller box
PLACES_TRIED = 20
SEED_OF = {"train": 1, "val": 2}
KEPT_BYTES = 1 << 26  # of painted scenes; painting again takes a fifth of a small network's step


class Layout(NamedTuple):
    """Where the digits of a scene lie: xyxy [N, 4] whole pixels, which digit of the source each is [N]."""

    xyxy: np.ndarray
    sources: np.ndarray


class DigitScenes:
    """Scenes, painted when they are first loaded and then, as far as they are small, kept."""

    def __init__(self, split: str, count: int, canvas_px: int, digit_px: tuple[int, int], most_digits: int):
        source = digits(None, split)
        self.split, self.canvas_px = split, canvas_px
        self.class_names = source.class_names
        self.category_ids = list(range(1, len(self.class_names) + 1))
        self.crops = [_inked(image[0]) for image in source.images]
        self.source_labels = source.labels
        self.layouts = [self._lay_out(self._rng(i, 0), digit_px, most_digits) for i in range(count)]
        self.painted: dict[int, Tensor] = {}
        self.labels = np.concatenate([self.source_labels[layout.sources] for layout in self.layouts])

    def __len__(self) -> int:
        return len(self.layouts)

    def path(self, index: int) -> str:
        return f"digit_scenes/{self.split}/{index:05d}"

    def image_id(self, index: int) -> int:
        return index + 1

    def size_hw(self, index: int) -> tuple[int, int]:
        return self.canvas_px, self.canvas_px

    def boxes(self, index: int) -> Boxes:
        xyxy, sources = self.layouts[index]
        xyxy = xyxy.astype(np.float64)
        areas = (xyxy[:, 2:] - xyxy[:, :2]).prod(1)
        return Boxes(xyxy, self.source_labels[sources], np.zeros(len(sources), dtype=bool), areas)

    def load(self, index: int) -> Sample:
        image = self.painted[index] if index in self.painted else self._paint(index)
        if len(self.painted) < KEPT_BYTES // image.numel():
            self.painted[index] = image
        return Sample(image.clone(), self.boxes(index), index, self.path(index), (self.canvas_px, self.canvas_px))

    def _paint(self, index: int) -> Tensor:
        rng, (xyxy, sources) = self._rng(index, 1), self.layouts[index]
        board = _board(rng, self.canvas_px)
        for (left, top, right, bottom), source in zip(xyxy.tolist(), sources.tolist(), strict=True):
            cover = interpolated(self.crops[source], [bottom - top, right - left], "bicubic", antialias=True)
            cover = (cover.float() / 255).clamp(0, 1)
            chalk = torch.from_numpy(rng.uniform(150, 255, 3)).float().view(3, 1, 1)
            under = board[:, top:bottom, left:right]
            board[:, top:bottom, left:right] = under + (chalk - under) * cover
        board += torch.from_numpy(rng.normal(0, 4, (1, self.canvas_px, self.canvas_px)).astype(np.float32))
        return board.round().clamp(0, 255).byte()

    def _rng(self, index: int, use: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[SEED_OF[self.split], use], counter=[0, 0, 0, index]))

    def _lay_out(self, rng: np.random.Generator, digit_px: tuple[int, int], most_digits: int) -> Layout:
        boxes: list[list[int]] = []
        sources = rng.integers(len(self.crops), size=rng.integers(1, most_digits + 1))
        placed = []
        for source in sources:
            height = int(np.exp(rng.uniform(*np.log(digit_px))))  # as many doublings among the small as the large
            rows, columns = self.crops[source].shape[-2:]
            width = min(max(4, round(height * columns / rows * rng.uniform(0.85, 1.2))), self.canvas_px)
            for _ in range(PLACES_TRIED):
                left, top = (int(rng.integers(self.canvas_px - side + 1)) for side in (width, height))
                box = [left, top, left + width, top + height]
                if all(_overlap(box, other) <= MOST_OVERLAP for other in boxes):
                    boxes.append(box)
                    placed.append(source)
                    break
        return Layout(np.array(boxes, dtype=np.int64).reshape(-1, 4), np.array(placed, dtype=np.int64))


def _inked(grey: np.ndarray) -> Tensor:
    """Cut an 8x8 scan to its ink: [1, rows, columns] uint8."""
    rows, columns = np.flatnonzero((grey > INK).any(1)), np.flatnonzero((grey > INK).any(0))
    return torch.from_numpy(grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy())[None]


def _overlap(box: list[int], other: list[int]) -> float:
    width, height = min(box[2], other[2]) - max(box[0], other[0]), min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((right - left) * (bottom - top) for left, top, right, bottom in (box, other))
    return max(0, width) * max(0, height) / smaller


def _board(rng: np.random.Generator, side_px: int) -> Tensor:
    """Return a board [3, side, side] float32 of one dark colour in uneven light."""
    light = rng.uniform(-25, 25, (1, 1, 4, 4)) + rng.uniform(-8, 8, (1, 3, 4, 4))
    shades = torch.from_numpy(rng.uniform(15, 75, (1, 3, 1, 1)) + light).float()
    return torch.nn.functional.interpolate(shades, (side_px, side_px), mode="bicubic", align_corners=False)[0]


@register("dataset")
def digit_scenes(
    root: Path | None,
    split: str,
    *,
    max_train_images: int | None = None,
    canvas_px: int = 64,
    digit_px: tuple[int, int] = (16, 32),
    most_digits: int = 4,
) -> DigitScenes:
    """Build 4000 training or 120 held-out scenes of up to most_digits digits, digit_px high; root is not used.

    Raises:
        UsageError: sizes that do not fit.
    """
    if not 1 <= digit_px[0] <= digit_px[1] <= canvas_px or most_digits < 1:
        raise UsageError("data.digit_px: two rising heights, at most canvas_px; data.most_digits: at least 1")
    count = 120 if split == "val" else max_train_images or 4000
    return DigitScenes(split, count, canvas_px, digit_px, most_digits)
