"""The classification task against numbers computed by hand."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from convzoo.data.datasets.in_memory import ArrayImages
from convzoo.report.evaluation import write_report
from convzoo.tasks.classify import Classify
from convzoo.types import Batch

NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


def batch_of(targets, valid=None, start=0):
    count = len(targets)
    ids = torch.arange(start, start + count)
    return Batch(
        torch.zeros(count, 3, 1, 1),
        torch.tensor(targets),
        ids,
        [f"p/{i}.png" for i in ids.tolist()],
        torch.ones(count, 2),
        torch.zeros(count, 4),
        torch.tensor(valid or [True] * count),
        targets,
    )


def logits_ranking(*orders):
    """Logits whose classes rank as given, best first."""
    logits = torch.full((len(orders), len(NAMES)), -10.0)
    for row, order in enumerate(orders):
        for place, label in enumerate(order):
            logits[row, label] = 5.0 - place
    return logits


def counted(task, logits, batch):
    metric = task.new_metric()
    metric.update(task.postprocess((logits,), batch), batch)
    return metric


def test_top1_and_top5_by_hand():
    task = Classify(NAMES)
    logits = logits_ranking([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6], [3, 1, 2, 0, 4, 5, 6])
    metric = counted(task, logits, batch_of([0, 4, 5, 3]))
    assert metric.result() == {"top1": 0.5, "top5": 0.75, "images": 4}
    assert (
        metric.confusion[0, 0] == 1
        and metric.confusion[4, 0] == 1
        and metric.confusion[5, 0] == 1
        and metric.confusion[3, 3] == 1
    )
    assert [(row.truth, row.predicted) for row in metric.worst] == [(5, 0), (4, 0)]
    ant = metric.per_class()[0]
    assert ant == {"class": "ant", "images": 1, "correct": 1, "recall": 1.0, "precision": 1 / 3, "most_taken_for": None}
    assert metric.per_class()[4]["most_taken_for"] == "ant" and metric.per_class()[1]["recall"] is None


def test_top5_is_not_reported_for_five_classes_or_fewer():
    task = Classify(NAMES[:5])
    assert counted(task, logits_ranking([0])[:, :5], batch_of([0])).result() == {"top1": 1.0, "images": 1}


def test_padding_is_not_counted_and_shares_add_up():
    task = Classify(NAMES)
    rng = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(23, 7, generator=rng), torch.randint(0, 7, (23,), generator=rng).tolist()
    whole = counted(task, logits, batch_of(targets))
    parts = [counted(task, logits[a:b], batch_of(targets[a:b], start=a)) for a, b in [(0, 5), (5, 6), (6, 23)]]
    merged = parts[0].merge(parts)
    assert (
        merged.result() == whole.result()
        and (merged.confusion == whole.confusion).all()
        and merged.worst == whole.worst
    )
    padded = counted(task, logits, batch_of(targets, valid=[i < 20 for i in range(23)]))
    assert padded.result() == counted(task, logits[:20], batch_of(targets[:20])).result()


def test_label_smoothing_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    logs = logits[0] - math.log(sum(math.exp(v) for v in [2.0, 0.0, -1.0]))
    for smoothing in (0.0, 0.1):
        expected = -sum(((1 - smoothing) * (k == 1) + smoothing / 3) * logs[k].item() for k in range(3))
        batch = batch_of([1])
        assert Classify(NAMES[:3], smoothing).loss(logits, batch)["loss"].item() == pytest.approx(expected, rel=1e-6)


def test_the_report_shows_what_was_counted(tmp_path):
    task = Classify(NAMES)
    metric = counted(task, logits_ranking([0], [0], [2]), batch_of([0, 1, 2]))
    pictures = ArrayImages(np.zeros((3, 3, 8, 8), np.uint8), np.arange(3), NAMES, "black")
    write_report(tmp_path, metric.report(pictures), pictures)
    table = (tmp_path / "per_class.csv").read_text().splitlines()
    assert table[0] == "class,images,correct,recall,precision,most_taken_for" and table[2].startswith("bee,1,0,0.0,")
    assert "p/1.png" in (tmp_path / "worst.csv").read_text()
    for name in ("confusion.png", "worst.png"):
        assert np.asarray(Image.open(tmp_path / name).convert("L")).std() > 5
    json.dumps(metric.worst_rows())


def test_balanced_weights_by_hand_and_over_micro_batches():
    """Three of class 0 and one of class 1: weights 4 / (2 * 3) and 4 / (2 * 1)."""
    task, plain = Classify(["ant", "bee"], class_weights="balanced"), Classify(["ant", "bee"])
    labels = [0, 0, 1, 0]
    task.start_training(np.array(labels))
    logits = torch.tensor([[1.0, 0.0], [0.5, 0.5], [2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    each = [float(plain.loss(logits[i : i + 1], batch_of([labels[i]]))["loss"]) for i in range(4)]
    weighted = sum(loss * (2 if label else 2 / 3) for loss, label in zip(each, labels, strict=True)) / 4
    assert float(task.loss(logits, batch_of(labels))["loss"]) == pytest.approx(weighted, abs=1e-12)
    halves = [float(task.loss(logits[i : i + 2], batch_of(labels[i : i + 2]))["loss"]) for i in (0, 2)]
    assert sum(halves) / 2 == pytest.approx(weighted, abs=1e-12)
    even = Classify(["ant", "bee"], class_weights="balanced")
    even.start_training(np.array([0, 1, 1, 0]))
    same = plain.loss(logits, batch_of(labels))["loss"]
    assert float(even.loss(logits, batch_of(labels))["loss"]) == pytest.approx(float(same), abs=1e-12)
