"""How sure a measure is, and what one form of a model loses against another on the same pictures: the bootstrap.

Efron and Tibshirani 1993, "An Introduction to the Bootstrap", sections 8.6 and 13.3: pictures are drawn with
replacement, the same ones for both forms, and the percentiles of the values or differences are the interval. A share
of pictures has Wilson's interval, which needs no draws (Wilson 1927, doi:10.1080/01621459.1927.10502953).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from convzoo.types import Metric

RESAMPLES, BLOCK = 1000, 50
PERCENTILES = 2.5, 97.5
Z = 1.959964  # between whose negative and which 95 % of a normal distribution lie
LOST = ("top1", "AP", "AP50")  # what one form is held to against another


class Drop(NamedTuple):
    """Points of percent lost, negative where it gained, and the 95 % interval over pictures."""

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.points:.2f} ({self.low:.2f} to {self.high:.2f})"


def drops(before: Metric, after: Metric) -> dict[str, Drop]:
    """Return what each measure lost from one evaluation to another of the same pictures; none where not measured."""
    images = before.result()["images"]
    assert images == after.result()["images"], "a pair has the same pictures"
    return {name: Drop(*values) for name, values in _resampled(lambda w: _lost(before, after, w), images).items()}


def intervals(metric: Metric) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval over pictures of each measure that has one: Wilson's of shares, else the bootstrap's."""
    result = metric.result()
    shares = {name: wilson(result[name], result["images"]) for name in ("top1", "top5") if name in result}
    if shares or not result["images"]:
        return shares
    return {name: values[1:] for name, values in _resampled(metric.weighted, result["images"]).items()}


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share 0..1 of so many; all of 0..1 of none."""
    if count == 0:
        return 0.0, 1.0
    middle, spread = share + Z**2 / (2 * count), Z * math.sqrt(share * (1 - share) / count + (Z / (2 * count)) ** 2)
    low, high = ((middle + sign * spread) / (1 + Z**2 / count) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def _resampled(
    measure: Callable[[np.ndarray], dict[str, np.ndarray]], images: int
) -> dict[str, tuple[float, float, float]]:
    """Return value and percentiles of what is measured with weights [R, N] of pictures; none where it is NaN."""
    values = measure(np.ones((1, images), dtype=np.int64))
    rng = np.random.RandomState(0)  # whose numbers are the same with every version of NumPy
    draws = [rng.randint(images, size=images) for _ in range(RESAMPLES if images else 0)]
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in values}
    for start in range(0, len(draws), BLOCK):
        weights = np.stack([np.bincount(draw, minlength=images) for draw in draws[start : start + BLOCK]])
        for name, drawn in measure(weights).items():
            blocks[name].append(drawn)
    return {
        name: (float(value[0]), *np.nanpercentile(np.concatenate(blocks[name]), PERCENTILES).tolist())
        for name, value in values.items()
        if np.isfinite(value[0])
    }


def _lost(before: Metric, after: Metric, weights: np.ndarray) -> dict[str, np.ndarray]:
    values, others = before.weighted(weights), after.weighted(weights)
    return {name: 100 * (values[name] - others[name]) for name in LOST if name in values}
