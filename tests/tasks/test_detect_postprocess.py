"""From decoded boxes to detections: brute force, Darknet's and the MindSpore program's own."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convzoo.boxes import cxcywh_to_xyxy, letterbox_placement, stretch_placement, to_input, xyxy_to_cxcywh
from convzoo.convert import readers
from convzoo.errors import ConvzooError
from convzoo.models import yolov3
from convzoo.tasks.heads import decode_heads
from convzoo.tasks.postprocess import Detections, postprocess

DOG = {
    "score_threshold": 0.5,
    "iou_threshold": 0.45,
    "max_detections": None,
    "multi_label": True,
    "box_rule": "darknet",
}
CORNER, SIDE = st.integers(-20, 60), st.integers(1, 40)


def detect(boxes: list | torch.Tensor, scores: list | torch.Tensor, image_size=(100, 100), **options) -> Detections:
    """Postprocess one picture that fills an input of its own size."""
    boxes, scores = (torch.as_tensor(values, dtype=torch.float32) for values in (boxes, scores))
    placement = torch.tensor([[1.0, 1, 0, 0]])
    return postprocess(boxes[None], scores[None], placement, torch.tensor([image_size]), **options)[0]


def greedy(boxes: list, scores: list, labels: list, iou_threshold: float, extra_px: int = 0) -> list[int]:
    """Return what survives, by the definition: best first, all better ones of the class asked."""

    def overlaps(a: list, b: list) -> bool:
        sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + extra_px for i in (0, 1)]
        areas = [(box[2] - box[0] + extra_px) * (box[3] - box[1] + extra_px) for box in (a, b)]
        common = max(0, sides[0]) * max(0, sides[1])
        return common > iou_threshold * (sum(areas) - common)

    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if not any(labels[i] == labels[j] and overlaps(boxes[i], boxes[j]) for j in kept):
            kept.append(i)
    return kept


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(CORNER, CORNER, SIDE, SIDE, st.integers(0, 2)), max_size=25), st.randoms(use_true_random=False)
)
@pytest.mark.parametrize("rule, extra_px", [("darknet", 0), ("mindspore", 1)])
def test_suppression_equals_brute_force(rule, extra_px, drawn, random):
    if rule == "mindspore":  # its cutting of boxes at the picture is another matter
        drawn = [(abs(x), abs(y), *rest) for x, y, *rest in drawn]
    boxes = [[x, y, x + w, y + h] for x, y, w, h, _ in drawn]
    labels = [label for *_, label in drawn]
    ranks = random.sample(range(len(drawn)), len(drawn))
    best = [0.1 + 0.03 * rank for rank in ranks]  # all different, the class score of each box
    scores = torch.zeros(len(drawn), 3)
    scores[torch.arange(len(drawn)), labels] = torch.tensor(best)
    found = detect(torch.tensor(boxes).reshape(-1, 4), scores, box_rule=rule, max_detections=None)
    kept = greedy(boxes, best, labels, 0.5, extra_px)
    assert found.boxes_xyxy.tolist() == [boxes[i] for i in kept] and found.labels.tolist() == [labels[i] for i in kept]
    assert found.scores.tolist() == pytest.approx([best[i] for i in kept])


def test_overlap_of_exactly_the_threshold_stays():
    boxes, scores = [[0, 0, 10, 10], [0, 0, 10, 5]], [[0.9], [0.8]]
    assert len(detect(boxes, scores, iou_threshold=0.5).scores) == 2
    assert len(detect(boxes, scores, iou_threshold=0.49).scores) == 1


def test_one_label_or_several():
    boxes, scores = [[0, 0, 10, 10], [1, 0, 11, 10]], [[0.5, 0.6, 0.2], [0.4, 0.55, 0.3]]
    best = detect(boxes, scores, score_threshold=0.25)
    assert best.labels.tolist() == [1] and best.scores.tolist() == pytest.approx([0.6])
    several = detect(boxes, scores, score_threshold=0.25, multi_label=True)
    assert several.labels.tolist() == [1, 0, 2] and several.scores.tolist() == pytest.approx([0.6, 0.5, 0.3])
    assert several.boxes_xyxy.tolist() == [boxes[0], boxes[0], boxes[1]]
    assert len(detect(boxes, scores, score_threshold=0.6).scores) == 0  # above, not at


def test_boxes_return_to_their_own_pictures():
    sizes = [(576, 768), (50, 200)]
    placements = torch.tensor([letterbox_placement(sizes[0], (416, 416)), stretch_placement(sizes[1], (416, 416))])
    truth = torch.tensor([[[10.0, 20, 300, 400]], [[5, 6, 70, 48]]])
    found = postprocess(to_input(truth, placements), torch.ones(2, 1, 2), placements, torch.tensor(sizes))
    for detections, box in zip(found, truth, strict=True):
        torch.testing.assert_close(detections.boxes_xyxy, box)


def test_clipping():
    boxes = [[-10, -10, 30, 30], [-50, 0, -5, 20], [90, 40, 400, 90]]
    scores = [[0.9], [0.8], [0.7]]
    assert detect(boxes, scores, (50, 100)).boxes_xyxy.tolist() == [[0, 0, 30, 30], [90, 40, 100, 50]]
    assert detect(boxes, scores, (50, 100), max_detections=2).scores.tolist() == pytest.approx([0.9, 0.7])
    assert detect(boxes, scores, (50, 100), box_rule="darknet").boxes_xyxy.tolist() == boxes
    # Left and top moved, width and height cut, each for itself.
    cut = detect(boxes, scores, (50, 100), box_rule="mindspore").boxes_xyxy
    assert cut.tolist() == [[0, 0, 40, 40], [0, 0, 45, 20], [90, 40, 190, 90]]


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_limit_takes_the_best_of_all(multi_label):
    generator = torch.Generator().manual_seed(0)
    # Nearly all of 6000 boxes are one heap, so that the best thousand leave too few.
    boxes = torch.rand(6000, 4, generator=generator) * torch.tensor([4.0, 4, 30, 30]) + torch.tensor([20.0, 20, 40, 40])
    boxes[-300:, :2] = torch.rand(300, 2, generator=generator) * 2000
    boxes[-300:, 2:] = boxes[-300:, :2] + 5
    scores = torch.rand(6000, 2, generator=generator)
    scores[-300:] *= 0.3
    options = {"image_size": (2100, 2100), "multi_label": multi_label}
    everything = detect(boxes, scores, max_detections=None, **options)
    for limit in (1, 100):
        best = detect(boxes, scores, max_detections=limit, **options)
        assert len(best.scores) == limit < len(everything.scores)
        assert all(torch.equal(part, whole[:limit]) for part, whole in zip(best, everything, strict=True))


def test_classes_are_apart_whatever_the_coordinates():
    # Offsets between classes from the largest corner alone would mix negative corners up, in float32 lose overlaps.
    negative = detect([[10, 10, 110, 110], [-90, -90, 10, 10]], [[0.9, 0], [0, 0.8]], box_rule="darknet")
    assert negative.labels.tolist() == [0, 1]
    boxes, scores = [[1000, 0, 1001, 1], [1000.34, 0, 1001.34, 1]], torch.zeros(2, 2000)
    scores[:, 1999] = torch.tensor([0.9, 0.8])  # they overlap by 0.66 / 1.34 = 0.4925
    assert len(detect(boxes, scores, iou_threshold=0.495, box_rule="darknet").scores) == 2
    assert len(detect(boxes, scores, iou_threshold=0.49, box_rule="darknet").scores) == 1


def test_nothing_and_too_much():
    nothing = detect(torch.zeros(0, 4), torch.zeros(0, 3))
    assert [tuple(part.shape) for part in nothing] == [(0, 4), (0,), (0,)]
    assert len(detect([[0, 0, 5, 5]], [[0.0005]]).scores) == 0
    infinite = [[-float("inf"), 1, float("inf"), 9], [-float("inf"), 1, float("inf"), 9]]
    found = detect(infinite, [[0.9], [0.8]])
    assert found.boxes_xyxy.tolist() == [[0, 1, 100, 9]]
    with pytest.raises(ConvzooError, match="not finite"):
        detect([[0, 0, 5, 5]], [[float("nan")]])


def rows(detections: Detections, image_size: tuple[int, int]) -> np.ndarray:
    """Return class, score and the centre form in shares of the picture, as Darknet writes them."""
    boxes = xyxy_to_cxcywh(detections.boxes_xyxy.double() / torch.tensor(image_size[::-1] * 2))
    return torch.cat([detections.labels[:, None], detections.scores[:, None], boxes], 1).numpy()


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Match rows (class, values...) one to one within each class, greedily, and return the largest difference."""
    assert sorted(ours[:, 0]) == sorted(theirs[:, 0])
    worst = 0.0
    for label in np.unique(ours[:, 0]):
        a, b = (rows[rows[:, 0] == label, 1:] for rows in (ours, theirs))
        distances = np.abs(a[:, None] - b[None]).max(2)
        for row in distances.min(1).argsort():
            partner = distances[row].argmin()
            worst = max(worst, float(distances[row, partner]))
            distances[:, partner] = np.inf
    return worst


def darknets(path) -> np.ndarray:
    found = json.loads(path.read_text())["after_nms"]
    return np.array([[row["class"], row["prob"], *row["xywh"]] for row in found])


def test_detections_equal_darknets_from_its_activated_maps(shared):
    folder = shared / "fixtures/darknet/yolov3-416"
    heads = []
    for layer in (106, 94, 82):
        head = torch.from_numpy(np.load(folder / f"output_dog_yolo{layer}.npy")).double().unflatten(0, (3, 85))
        activated = [0, 1, *range(4, 85)]
        head[:, activated] = head[:, activated].logit()
        heads.append(head.flatten(0, 1)[None])
    placement = torch.tensor([letterbox_placement((576, 768), (416, 416))], dtype=torch.float64)
    found = postprocess(*decode_heads(heads, yolov3.heads()), placement, torch.tensor([[576, 768]]), **DOG)
    # The maps were made with the CPU's batch norm, as was the first of the two lists.
    for name, tolerance in (("detections_dog_cpubn.json", 1e-6), ("detections_dog.json", 1e-3)):
        theirs = darknets(folder / name)
        assert len(theirs) == 590
        assert largest_difference(rows(found[0], (576, 768)), theirs) <= tolerance


@pytest.mark.slow
def test_detections_of_the_whole_network_equal_darknets(shared, tmp_path):
    folder, path = shared / "fixtures/darknet", tmp_path / "yolov3.weights"
    subprocess.run([sys.executable, folder / "make_weights.py", "yolov3", path], check=True, capture_output=True)
    model = readers.network(readers.read(path))
    inputs = [np.load(folder / "yolov3-416" / name) for name in ("preprocessed_dog.npy", "input.npy")]
    sizes = [(576, 768), (416, 416)]
    placements = torch.tensor([letterbox_placement(size, (416, 416)) for size in sizes])
    with torch.no_grad():
        decoded = decode_heads(model(torch.from_numpy(np.stack(inputs))), yolov3.heads())
    found = postprocess(*decoded, placements, torch.tensor(sizes), **DOG)
    for detections, size, name, count in zip(found, sizes, ("dog", "seeded"), (590, 1928), strict=True):
        theirs = darknets(folder / f"yolov3-416/detections_{name}.json")
        assert len(theirs) == count
        assert largest_difference(rows(detections, size), theirs) <= 1e-3


def test_detections_equal_the_mindspore_program(mindspore_outputs):
    folder = mindspore_outputs / "yolov3_nms"
    heads, meta = np.load(folder / "heads.npz"), np.load(folder / "meta.npz")
    decoded = torch.cat([torch.from_numpy(heads[name]).flatten(1, 3) for name in ("small", "me", "big")], 1)
    original_hw, side_px = torch.from_numpy(meta["image_shape"]).flip(1), 8 * heads["small"].shape[1]
    placement = torch.tensor([stretch_placement(size, (side_px, side_px)) for size in original_hw.tolist()])
    boxes_xyxy, scores = cxcywh_to_xyxy(decoded[..., :4] * side_px), decoded[..., 4:5] * decoded[..., 5:]
    options = {"score_threshold": 0.001, "iou_threshold": 0.5, "max_detections": None, "box_rule": "mindspore"}
    found = postprocess(boxes_xyxy, scores, placement, original_hw, **options)
    theirs = json.loads((folder / "det_boxes.json").read_text())
    assert sum(len(detections.scores) for detections in found) == len(theirs) > 100
    categories = sorted({row["category_id"] for row in theirs})
    assert len(categories) == scores.shape[-1]
    for image_id, detections in zip(meta["image_id"].tolist(), found, strict=True):
        low, high = detections.boxes_xyxy.split(2, 1)
        mine = torch.cat([detections.labels[:, None], detections.scores[:, None], low, high - low], 1).numpy()
        listed = [row for row in theirs if row["image_id"] == image_id]
        wanted = np.array([[categories.index(row["category_id"]), row["score"], *row["bbox"]] for row in listed])
        assert largest_difference(mine, wanted) <= 2e-4  # pixels
