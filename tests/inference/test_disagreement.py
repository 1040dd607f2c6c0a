"""Where a model and the labels disagree: numbers by hand. `data check --model` itself: tests/data/test_split.py."""

import numpy as np
import pytest

from convzoo.inference.disagreement import _boxed_row, _class_row
from convzoo.types import Boxes, Prediction

NAMES = ["cat", "dog"]


def truth_of(*boxes: tuple[float, float, float, float], labels: list[int], crowd: list[bool] | None = None) -> Boxes:
    count = len(boxes)
    corners = np.array(boxes, float).reshape(-1, 4)
    return Boxes(corners, np.array(labels, np.int64), np.array(crowd or [False] * count, bool), np.zeros(count))


def prediction_of(*rows: tuple[int, float, tuple[float, float, float, float]]) -> Prediction:
    labels, scores, boxes = zip(*rows, strict=True) if rows else ((), (), ())
    return Prediction(0, np.array(labels, np.int64), np.array(scores, float), np.array(boxes, float).reshape(-1, 4))


A, B, C = (0, 0, 10, 10), (20, 20, 30, 30), (40, 0, 50, 10)


@pytest.mark.parametrize(
    ("truth", "prediction", "value", "words"),
    [
        (truth_of(A, labels=[0]), prediction_of((0, 0.9, A)), 0.0, "nothing"),
        (truth_of(A, labels=[0]), prediction_of((0, 0.9, A), (1, 0.8, B)), 0.8, "dog 80 % without a label"),
        (truth_of(A, B, labels=[0, 1]), prediction_of((0, 0.9, A)), 1.0, "label dog not detected"),
        (truth_of(A, B, labels=[0, 1]), prediction_of((0, 0.9, A), (1, 0.1, B)), 0.9, "label dog not detected"),
        (truth_of(A, labels=[0]), prediction_of((1, 0.7, A)), 1.7, "dog 70 % without a label, label cat not detected"),
        (truth_of(A, labels=[0], crowd=[True]), prediction_of((1, 0.7, A)), 0.0, "nothing"),
        (truth_of(labels=[]), prediction_of(*[(0, 0.5, box) for box in (A, B, C)]), 1.5, "and 1 more"),
    ],
)
def test_boxes(truth, prediction, value, words):
    got, _, why = _boxed_row(prediction, truth, NAMES)
    assert got == pytest.approx(value, abs=1e-6) and words in why


def test_classes():
    prediction = Prediction(0, np.array([1, 0]), np.array([0.75, 0.25]))
    assert _class_row(prediction, 0, NAMES) == (0.75, "cat", "labelled cat (25 %), the model says dog (75 %)")
    assert _class_row(prediction, 1, NAMES)[0] == 0.25
