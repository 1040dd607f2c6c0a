"""Suppression by the distance of centres too: brute force, and the original program's own lists."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from convzoo.boxes import UNMOVED
from convzoo.convert.darknet_network import load_weights
from convzoo.models.darknet_network import darknet
from convzoo.tasks.heads import decode_heads
from convzoo.tasks.postprocess import Detections, postprocess, similarity
from darknet_in_numpy import likeness, survivors
from helpers import DETECTORS, DIFFERENCES, SHARED

ZOO = SHARED / "fixtures/darknet/zoo"
KINDS = [("default", 0.6), ("greedynms", 0.9), ("diounms", 0.6), ("diounms", 1.5)]
every_kind = pytest.mark.parametrize(("kind", "beta"), KINDS)


def detect(cxcywh: torch.Tensor, scores: torch.Tensor, size: tuple[int, int], **options) -> Detections:
    """Suppress boxes [N, 4] in shares of a picture of `size` that fills its input."""
    pixels = cxcywh * torch.tensor([size[1], size[0]] * 2)
    corners = torch.cat([pixels[:, :2] - pixels[:, 2:] / 2, pixels[:, :2] + pixels[:, 2:] / 2], 1)
    options = {"max_detections": None, "multi_label": True, "box_rule": "darknet"} | options
    return postprocess(corners[None], scores[None], torch.tensor([UNMOVED]), torch.tensor([size]), **options)[0]


def crowd(count: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return boxes [N, 4] in shares of the picture that overlap much, and a score each, of one class."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 4, generator=generator, dtype=torch.float64) * torch.tensor([0.6, 0.6, 0.3, 0.3]) + 0.1
    label = torch.randint(0, classes, (count, 1), generator=generator)
    score = torch.rand(count, 1, generator=generator, dtype=torch.float64).clamp(min=0.01)
    return boxes, torch.zeros(count, classes, dtype=torch.float64).scatter(1, label, score)


@every_kind
@pytest.mark.parametrize("size", [(100, 100), (90, 400)])
def test_suppression_equals_brute_force(kind, beta, size):
    for seed in range(10):
        boxes, scores = crowd(60, 3, seed)
        score, label = scores.max(1)
        expected = survivors(boxes.numpy(), score.numpy(), label.numpy(), 0.3, kind, beta)
        ours = detect(boxes, scores, size, iou_threshold=0.3, nms_kind=kind, nms_beta=beta)
        assert ours.scores.tolist() == score[expected].tolist() and ours.labels.tolist() == label[expected].tolist()
        assert 15 < len(expected) < 60


@every_kind
def test_blocks_of_candidates_and_a_limit_change_nothing(kind, beta, monkeypatch):
    boxes, scores = crowd(400, 2, 0)
    options = {"iou_threshold": 0.2, "nms_kind": kind, "nms_beta": beta}
    whole = detect(boxes, scores, (100, 200), **options)
    monkeypatch.setattr("convzoo.tasks.postprocess.BLOCK", 7)
    for limit in (None, 1, 30):
        part = detect(boxes, scores, (100, 200), max_detections=limit, **options)
        assert all(torch.equal(x, y[:limit]) for x, y in zip(part, whole, strict=True))
    assert len(whole.scores) > 30
    assert not len(detect(boxes[:0], scores[:0], (100, 200), **options).scores)


def test_distance_keeps_neighbours_and_depends_on_the_aspect_ratio():
    pair, scores = torch.tensor([[0.4, 0.5, 0.2, 0.2], [0.44, 0.5, 0.2, 0.2]]), torch.tensor([[0.9], [0.8]])
    # IoU 0.16 / 0.24; centres 0.04 apart within 0.24 x 0.2: 0.667 - 0.0164^0.6 = 0.5815
    for kind, beta, value in (("default", 1, 0.6667), ("greedynms", 1, 0.5815), ("diounms", 1, 0.6503)):
        for limit, count in ((value + 1e-3, 2), (value - 1e-3, 1)):
            options = {"iou_threshold": limit, "nms_kind": kind, "nms_beta": float(beta)}
            assert len(detect(pair, scores, (100, 100), **options).scores) == count
    boxes = torch.tensor([[0.0, 0, 10, 10], [2.0, 0, 12, 10]])
    square, wide = (similarity(boxes[0], boxes[1], size, "greedynms", 0.6) for size in ((100, 100), (100, 400)))
    assert wide > square + 0.01  # sideways counts less in a wide picture


def slim(name: str) -> SimpleNamespace:
    """Return boxes and scores of a slim network of the zoo by our own computation, and the original's lists."""
    folder = ZOO / name
    if not folder.is_dir():
        pytest.skip(f"reference data not found at {folder} (set CONVZOO_SHARED)")
    text = (folder / "slim.cfg").read_text()
    with torch.device("meta"):
        network = darknet(cfg=text)
    network.load_state_dict(load_weights(text, (folder / "slim.weights").read_bytes(), name), assign=True)
    own, shared = folder / "input.npy", ZOO / ("input128.npy" if name == "yolov4-p5" else "input96.npy")
    picture = torch.from_numpy(np.load(own if own.exists() else shared))[None]
    with torch.inference_mode():
        boxes_xyxy, scores = decode_heads(network.eval()(picture), network.heads)
    lists = json.loads((folder / "detections.json").read_text())
    return SimpleNamespace(network=network, boxes_xyxy=boxes_xyxy, scores=scores, lists=lists)


def rows(detections: Detections, size: tuple[int, int]) -> np.ndarray:
    """Return class, score, and the box (x_centre, y_centre, width, height) in shares of the picture, as the lists."""
    boxes = detections.boxes_xyxy.double() / torch.tensor([size[1], size[0]] * 2)
    boxes = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    return torch.cat([detections.labels[:, None], detections.scores[:, None], boxes], 1).numpy()


def unmatched(ours: np.ndarray, theirs: np.ndarray, limit: float) -> list[np.ndarray]:
    """Pair rows of one class whose scores, and boxes relative to max(1, size), agree; return those without a pair."""
    left = list(ours)
    missing = []
    for row in theirs:
        size = np.maximum(1, np.concatenate([row[4:], row[4:]]))
        errors = [max(abs(o[1] - row[1]), (abs(o[2:] - row[2:]) / size).max(), 9 * (o[0] != row[0])) for o in left]
        if errors and min(errors) <= limit:
            del left[int(np.argmin(errors))]
        else:
            missing.append(row)
    return left + missing


@pytest.mark.parametrize("name", DETECTORS)
def test_detections_are_the_originals(name):
    case, limit = slim(name), max(1e-3, 4 * DIFFERENCES[name])
    network, threshold, overlap = case.network, case.lists["threshold"], case.lists["nms_iou"]
    rule = {"nms_kind": network.nms_kind, "nms_beta": network.nms_beta}
    options = {"score_threshold": threshold, "iou_threshold": overlap, "max_detections": None, "multi_label": True}
    where = torch.tensor([UNMOVED]), torch.tensor([network.input_hw])
    (detections,) = postprocess(case.boxes_xyxy, case.scores, *where, **options, box_rule="darknet", **rule)
    ours, theirs, before = (
        np.array(x) for x in (rows(detections, network.input_hw), case.lists["after_nms"], case.lists["before_nms"])
    )
    # The rule is read right: by brute force the original's own candidates leave its own list.
    chosen = survivors(before[:, 2:], before[:, 1], before[:, 0], overlap, network.nms_kind, network.nms_beta)
    assert not unmatched(before[chosen], theirs, 1e-6)
    for row in unmatched(ours, theirs, limit):  # rounding may decide there, and nowhere else
        rivals = [other for other in before if other[0] == row[0]]
        alike = [likeness(row[2:], other[2:], network.nms_kind, network.nms_beta) for other in rivals]
        assert min(abs(row[1] - threshold), *(abs(value - overlap) for value in alike)) <= limit, row
