"""Anchors for a data set: k-means over the sizes of its boxes with 1 - IoU as distance.

Redmon and Farhadi 2017, "YOLO9000" (arXiv:1612.08242), section 2, dimension clusters: Euclidean distance would make
large boxes count for more than small ones.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from convzoo.boxes import centred_iou
from convzoo.data.checks.boxes import Objects
from convzoo.errors import DataError

RESTARTS, STEPS, LAST_STEPS = 10, 100, 10
LEAST_CHANGE = 1e-5  # of the mean IoU
SEARCHED = 20_000  # boxes, drawn at random, that the restarts work on; the best of them is then improved on all


class Anchors(NamedTuple):
    """Anchors found for M boxes.

    Attributes:
        sizes_px: whole pixels (width, height), smallest area first.
        boxes: how many boxes are nearest to each.
        mean_iou: of all boxes with their nearest anchor.
    """

    sizes_px: list[tuple[int, int]]
    boxes: list[int]
    mean_iou: float

    def rows(self, counts: Sequence[int]) -> list[list[list[int]]]:
        """Return them as a model takes them, finest first: so many for each scale."""
        pairs = iter([list(pair) for pair in self.sizes_px])
        return [list(itertools.islice(pairs, count)) for count in counts]

    def text(self, size_hw: tuple[int, int], known_iou: float, whose: str) -> str:
        """Return a table, and the mean IoU beside that of other anchors, which `whose` names."""
        total, size = sum(self.boxes), "x".join(map(str, size_hw))
        lines = [f"{'anchor':>6}  {'width':>5}  {'height':>6}  {'boxes':>7}"]
        for i, ((width, height), boxes) in enumerate(zip(self.sizes_px, self.boxes, strict=True), 1):
            lines.append(f"{i:6}  {width:5}  {height:6}  {100 * boxes / total:5.1f} %")
        lines.append(
            f"mean IoU {100 * self.mean_iou:.1f} % over {total:,} training boxes letterboxed to {size}; "
            f"{100 * known_iou:.1f} % with {whose}"
        )
        return "\n".join(lines)


def letterboxed_sizes(objects: Objects, size_hw: tuple[int, int]) -> np.ndarray:
    """Return the (width, height) [M, 2] that boxes have when their pictures are letterboxed to (height, width).

    Crowds and boxes without area are left out, and what lies outside the picture is cut off, as in training.
    """
    boxes, image_index, sizes_hw = objects
    sides_hw = sizes_hw[image_index]
    limits = sides_hw[:, [1, 0, 1, 0]]
    corners = boxes.xyxy.clip(0, limits)
    sizes_wh = corners[:, 2:] - corners[:, :2]
    # But for the rounding of the other side to whole pixels.
    scales = (np.array(size_hw) / sides_hw).min(1, keepdims=True)
    return (sizes_wh * scales)[~boxes.crowd & (sizes_wh > 0).all(1)]


def mean_best_iou(sizes_wh: np.ndarray, anchors_wh: np.ndarray) -> float:
    """Return the mean over sizes [M, 2] of the best IoU with any of the anchors [K, 2], all laid on one centre."""
    ious_MK = centred_iou(torch.as_tensor(sizes_wh), torch.as_tensor(anchors_wh, dtype=torch.float64))
    return ious_MK.max(1).values.mean().item()


def find_anchors(sizes_wh: np.ndarray, count: int) -> Anchors:
    """Return the best anchors of several starts; the same for the same sizes, whatever runs beside it.

    Args:
        sizes_wh: [M, 2] float64 above 0, in pixels of the network's input.
    Raises:
        DataError: fewer different sizes than anchors.
    """
    different = len(np.unique(sizes_wh, axis=0))
    if different < count:
        raise DataError(f"{count} anchors cannot be found in {different} different sizes of boxes")
    rng = np.random.RandomState(0)
    every = torch.as_tensor(sizes_wh)
    some = every if len(every) <= SEARCHED else every[np.sort(rng.permutation(len(every))[:SEARCHED])]
    starts = [_improved(some, _spread(some, count, rng), STEPS) for _ in range(RESTARTS)]
    best = max(starts, key=lambda anchors: mean_best_iou(some.numpy(), anchors.numpy()))
    best = _improved(every, best, LAST_STEPS)
    pixels = best[best.prod(1).argsort()].round().clamp(min=1).long()
    ious_M, nearest_M = centred_iou(every, pixels.to(every.dtype)).max(1)
    boxes = torch.bincount(nearest_M, minlength=count).tolist()
    return Anchors([(int(width), int(height)) for width, height in pixels], boxes, ious_M.mean().item())


def _spread(sizes_M2: Tensor, count: int, rng: np.random.RandomState) -> Tensor:
    """Draw the first anchors among the sizes, each the likelier the farther it is from all before (k-means++)."""
    chosen = [int(rng.randint(len(sizes_M2)))]
    distance_M = torch.ones(len(sizes_M2), dtype=sizes_M2.dtype)
    while len(chosen) < count:
        distance_M = torch.minimum(distance_M, 1 - centred_iou(sizes_M2, sizes_M2[chosen[-1:]])[:, 0]).clamp(min=0)
        total = distance_M.cumsum(0).numpy()
        chosen.append(int(np.searchsorted(total, rng.uniform(0, total[-1]), side="right").clip(0, len(total) - 1)))
    return sizes_M2[chosen]


def _improved(sizes_M2: Tensor, anchors_K2: Tensor, steps: int) -> Tensor:
    """Move anchors to the means of their boxes until little changes; return the best on the way."""
    best, best_iou, last_iou = anchors_K2, -1.0, -1.0
    for _ in range(steps):
        ious_M, nearest_M = centred_iou(sizes_M2, anchors_K2).max(1)
        mean_iou = ious_M.mean().item()
        if mean_iou > best_iou:  # the mean lessens squared distances, not this one: it can get worse
            best, best_iou = anchors_K2, mean_iou
        if abs(mean_iou - last_iou) < LEAST_CHANGE:
            break
        last_iou = mean_iou
        counts_K = torch.bincount(nearest_M, minlength=len(anchors_K2))
        sums_K2 = torch.zeros_like(anchors_K2).index_add_(0, nearest_M, sizes_M2)
        anchors_K2 = torch.where(counts_K[:, None] > 0, sums_K2 / counts_K.clamp(min=1)[:, None], anchors_K2)
    return best
