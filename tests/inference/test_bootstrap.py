"""The interval of a difference: measures of resampled pictures are those of a set with copies, and pairs stay pairs."""

import numpy as np
import pytest
import torch

from convzoo.deploy.quantize.comparison import Candidate
from convzoo.deploy.quantize.schemes import QuantizationScheme
from convzoo.inference.bootstrap import Drop, drops, intervals
from convzoo.tasks.classify import ClassifyMetric
from convzoo.tasks.detect_metric import DetectMetric, Pictured
from convzoo.types import Batch, Boxes, Prediction

CLASSES = ["cell", "platelet", "rod", "never there"]


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, 70, (count, 2))
    return np.hstack([corner, corner + rng.uniform(8, 60, (count, 2))])


def picture(rng: np.random.Generator, i: int) -> Pictured:
    """Some objects, some of them crowds, and detections: moved, doubled, of another class, or of nothing."""
    count = int(rng.integers(0, 6))
    xyxy, labels, crowd = boxes(rng, count), rng.integers(0, 3, count), rng.uniform(size=count) < 0.2
    truth = Boxes(xyxy, labels, crowd, (xyxy[:, 2:] - xyxy[:, :2]).prod(1))
    moved = np.vstack([xyxy + rng.normal(0, 3, xyxy.shape), xyxy + rng.normal(0, 6, xyxy.shape), boxes(rng, 3)])
    seen = np.concatenate([labels, np.where(rng.uniform(size=count) < 0.7, labels, 1), rng.integers(0, 4, 3)])
    return Pictured("", (140, 140), truth, Prediction(i, seen, rng.uniform(0.01, 1, len(seen)), moved))


def metric_of(pictures: list[Pictured]) -> DetectMetric:
    metric = DetectMetric(CLASSES)
    metric.pictures = dict(enumerate(pictures))
    return metric


def answers(right: np.ndarray) -> ClassifyMetric:
    """A classifier's metric over pictures of class 0, of which those are right."""
    metric, count = ClassifyMetric(["a", "b"]), len(right)
    ids, numbers = torch.arange(count), torch.zeros(count, 2)
    batch = Batch(numbers, torch.zeros_like(ids), ids, [""] * count, numbers, numbers, ids >= 0, [])
    order = np.where(right[:, None], [0, 1], [1, 0])
    metric.update([Prediction(i, labels, np.array([0.9, 0.1])) for i, labels in enumerate(order)], batch)
    return metric


def test_a_weighted_ap_is_that_of_a_set_with_copies():
    rng = np.random.default_rng(0)
    pictures = [picture(rng, i) for i in range(12)]
    weights = np.stack([np.ones(12, int), *(np.bincount(rng.integers(0, 12, 12), minlength=12) for _ in range(6))])
    weighted = metric_of(pictures).weighted(weights)
    assert weighted["AP"].std() > 0.01
    assert set(weighted) == {"AP", "AP50", "AP75"}
    for i, row in enumerate(weights):
        copies = metric_of([pictures[i] for i in np.repeat(np.arange(12), row)]).result()
        for name, values in weighted.items():
            assert values[i] == pytest.approx(copies[name], abs=1e-12)


def test_pictures_without_objects_measure_nothing():
    rng = np.random.default_rng(1)
    empty = [drawn for i in range(60) if not len((drawn := picture(rng, i)).truth)]
    metric = metric_of(empty)
    assert len(empty) > 3 and metric.result()["AP"] is None
    assert np.isnan(metric.weighted(np.ones((2, len(empty)), int))["AP50"]).all() and drops(metric, metric) == {}


def test_a_form_loses_nothing_against_itself():
    rng = np.random.default_rng(2)
    metric = metric_of([picture(rng, i) for i in range(20)])
    assert {name: tuple(drop) for name, drop in drops(metric, metric).items()} == {"AP": (0, 0, 0), "AP50": (0, 0, 0)}


def test_the_interval_of_a_share_is_the_binomial_one():
    """Of 400 pictures 20 more are wrong: 5 points, with a deviation of sqrt(0.05 * 0.95 / 400), and back a gain."""
    before, after = np.ones(400, bool), np.arange(400) >= 20
    lost, won = drops(answers(before), answers(after))["top1"], drops(answers(after), answers(before))["top1"]
    reach = 1.96 * 100 * np.sqrt(0.05 * 0.95 / 400)
    assert lost == pytest.approx((5, 5 - reach, 5 + reach), abs=0.4)
    assert won == pytest.approx((-5, -lost.high, -lost.low), abs=1e-9)


def test_pictures_that_are_hard_for_both_do_not_widen_it():
    rng = np.random.default_rng(3)
    before = rng.uniform(size=400) < 0.5
    after = before & (np.arange(400) >= 8)
    lost = drops(answers(before), answers(after))["top1"]
    assert lost.high - lost.low < 3  # ten times as wide for two sets of pictures
    assert lost.points == pytest.approx(100 * (before.mean() - after.mean()))


def test_a_measures_own_interval_is_that_of_resampled_sets_and_a_shares_is_wilsons():
    rng = np.random.default_rng(4)
    metric = metric_of([picture(rng, i) for i in range(20)])
    draws = np.random.RandomState(0)
    weights = np.stack([np.bincount(draws.randint(20, size=20), minlength=20) for _ in range(1000)])
    low, high = np.nanpercentile(metric.weighted(weights)["AP"], (2.5, 97.5))
    assert intervals(metric)["AP"] == pytest.approx((low, high), abs=1e-12) and low < metric.result()["AP"] < high
    assert set(intervals(answers(np.arange(50) < 40))) == {"top1"}
    assert intervals(answers(np.arange(10) < 8))["top1"] == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert intervals(metric_of([])) == {}


def test_int8_may_lose_the_budget_of_no_measure():
    """A detector that keeps its AP and loses AP50 is over it."""
    lost = {"AP": Drop(0.1, -0.4, 0.6), "AP50": Drop(0.7, 0.1, 1.2)}
    candidate = Candidate(QuantizationScheme("nncf"), {"float32": 2.0, "int8": 1.0}, {}, lost)
    assert candidate.drop == 0.7 and candidate.speedup == 2
