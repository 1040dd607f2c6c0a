"""What one form of a model loses against another on the same pictures, and how sure that is: a paired bootstrap.

Efron and Tibshirani 1993, "An Introduction to the Bootstrap", sections 8.6 and 13.3: pictures are drawn with
replacement, the same ones for both forms, and the percentiles of the differences are the interval.
"""

from typing import NamedTuple

import numpy as np

from convzoo.types import Metric

RESAMPLES, BLOCK = 1000, 50
PERCENTILES = 2.5, 97.5


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
    lost = _lost(before, after, np.ones((1, images), dtype=np.int64))
    rng = np.random.RandomState(0)  # whose numbers are the same with every version of NumPy
    draws = [rng.randint(images, size=images) for _ in range(RESAMPLES if images else 0)]
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in lost}
    for start in range(0, len(draws), BLOCK):
        weights = np.stack([np.bincount(draw, minlength=images) for draw in draws[start : start + BLOCK]])
        for name, values in _lost(before, after, weights).items():
            blocks[name].append(values)
    return {
        name: Drop(float(values[0]), *np.nanpercentile(np.concatenate(blocks[name]), PERCENTILES).tolist())
        for name, values in lost.items()
        if np.isfinite(values[0])
    }


def _lost(before: Metric, after: Metric, weights: np.ndarray) -> dict[str, np.ndarray]:
    values, others = before.weighted(weights), after.weighted(weights)
    return {name: 100 * (values[name] - others[name]) for name in values}
