"""The detection task and its measures: against pycocotools run by hand, and against cases small enough to count."""

import contextlib
import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convzoo.boxes import Placement
from convzoo.build import build_task, check_recipe
from convzoo.config import recipe as recipes
from convzoo.data.datasets.boxed import BoxedImages
from convzoo.data.datasets.digit_scenes import digit_scenes
from convzoo.errors import UsageError
from convzoo.models import yolov3
from convzoo.report.evaluation import write_report
from convzoo.tasks import coco_eval
from convzoo.tasks.coco_eval import NAMES
from convzoo.tasks.detect import Detect
from convzoo.tasks.detect_metric import DetectMetric, match, outcome
from convzoo.types import Boxes, Prediction, Sample
from helpers import one_line

CATS = ["cat", "dog"]


def boxes(*rows, crowd=()):
    """Rows of x1, y1, x2, y2, label."""
    table = np.array(rows, dtype=float).reshape(-1, 5)
    flags = np.array([i in crowd for i in range(len(table))], dtype=bool)
    sides = table[:, 2:4] - table[:, :2]
    return Boxes(table[:, :4], table[:, 4].astype(np.int64), flags, sides.prod(1))


def predicted(index, *rows):
    """Rows of x1, y1, x2, y2, label, score, best first."""
    table = np.array(rows, dtype=np.float32).reshape(-1, 6)
    return Prediction(index, table[:, 4].astype(np.int64), table[:, 5], table[:, :4])


def sample(index, target, height=100, width=100):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    return Sample(image, target, index, f"p/{index}.jpg", (height, width), truth=target)


def measured(*pairs):
    """A metric of (truth, prediction rows) pairs."""
    batch = Detect(CATS, yolov3.heads()).collate([sample(i, truth) for i, (truth, _) in enumerate(pairs)])
    metric = DetectMetric(CATS)
    metric.update([predicted(i, *rows) for i, (_, rows) in enumerate(pairs)], batch)
    return metric


def test_collate_flattens_boxes_and_leaves_crowds_out():
    task = Detect(CATS, yolov3.heads())
    crowded = boxes((0, 0, 9, 9, 1), (5, 5, 50, 50, 0), crowd={1})
    batch = task.collate([sample(0, crowded), sample(1, boxes()), sample(2, boxes((1, 2, 3, 4, 0)))])
    assert batch.targets.boxes_xyxy.tolist() == [[0, 0, 9, 9], [1, 2, 3, 4]]
    assert batch.targets.labels.tolist() == [1, 0] and batch.targets.image_index.tolist() == [0, 2]
    assert len(batch.truths[0]) == 2 and batch.placement.tolist() == [[1, 1, 0, 0]] * 3
    assert len(task.collate([sample(0, boxes()), sample(1, 0)]).targets.labels) == 0


def test_perfect_detections_have_an_ap_of_one_and_none_where_there_is_nothing():
    truth = boxes((10, 10, 60, 60, 0), (20, 20, 30, 30, 1))
    result = measured((truth, [(10, 10, 60, 60, 0, 0.9), (20, 20, 30, 30, 1, 0.8)]), (boxes(), [])).result()
    assert [result[name] for name in ("AP", "AP50", "AR100")] == pytest.approx([1, 1, 1]) and result["images"] == 2
    assert result["AP_large"] is None and result["AP_small"] == result["AP_medium"] == pytest.approx(1)
    assert measured((boxes(), [])).result()["AP"] is None
    assert measured((truth, [])).result()["AP"] == 0


def test_a_crowd_neither_rewards_nor_punishes():
    truth = boxes((10, 10, 60, 60, 0), (0, 0, 100, 100, 0), crowd={1})
    rows = [(70, 70, 90, 90, 0, 0.95), (10, 10, 60, 60, 0, 0.9)]
    metric = measured((truth, rows))
    assert metric.result()["AP"] == pytest.approx(1)
    assert metric.confusion().tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert measured((boxes((10, 10, 60, 60, 0)), rows)).result()["AP"] == pytest.approx(0.5)


def test_confusion_and_worst_pictures_by_hand(tmp_path):
    pairs = [
        (boxes((0, 0, 40, 40, 0), (50, 50, 90, 90, 1)), [(0, 0, 40, 40, 1, 0.9), (0, 60, 20, 99, 0, 0.8)]),
        (boxes((0, 0, 40, 40, 0)), [(0, 0, 40, 40, 0, 0.9), (1, 1, 41, 41, 0, 0.5), (60, 60, 90, 90, 0, 0.1)]),
    ]
    metric = measured(*pairs)
    # cat taken for dog; dog missed; a cat on nothing, and a second cat on the same: two false ones
    assert metric.confusion().tolist() == [[1, 1, 0], [0, 0, 1], [2, 0, 0]]
    for i in range(2):
        Image.new("RGB", (100, 100)).save(tmp_path / f"{i}.png")
    numbers = {"image_ids": np.array([900, 899]), "category_ids": [18, 17]}
    pictures = BoxedImages(tmp_path, ["0.png", "1.png"], ["dog", "cat"], boxes(), np.zeros(0, int), **numbers)
    write_report(tmp_path, metric.report(pictures), pictures)
    with open(tmp_path / "worst.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["missed"], row["false"], row["right"]) for row in rows] == [
        ("p/0.jpg", "2", "2", "0"),
        ("p/1.jpg", "0", "1", "1"),
    ]
    with open(tmp_path / "per_class.csv") as file:
        assert [(row["class"], row["objects"], row["detections"]) for row in csv.DictReader(file)] == [
            ("cat", "2", "4"),
            ("dog", "1", "1"),
        ]
    for name in ("worst.png", "confusion.png", "precision_recall.png", "coco.txt", "confusion.csv"):
        assert (tmp_path / name).stat().st_size > 0
    written = json.loads((tmp_path / "detections.json").read_text())
    assert {(one["image_id"], one["category_id"]) for one in written} == {(900, 18), (900, 17), (899, 17)}
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert truth["categories"] == [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]


def test_a_detection_prefers_a_box_of_its_class():
    truth = boxes((0, 0, 40, 40, 0), (2, 2, 42, 42, 1))
    found = match(predicted(0, (0, 0, 40, 40, 1, 0.9)), truth)
    assert found.truth_of.tolist() == [1]
    assert [part.tolist() for part in outcome(predicted(0, (0, 0, 40, 40, 1, 0.9)), truth)] == [[False, True], [True]]


def test_ranks_add_up():
    pairs = [(boxes((0, 0, 40, 40, 0)), [(0, 0, 40, 35, 0, 0.9)]), (boxes((0, 0, 40, 40, 1)), [(0, 0, 40, 40, 0, 0.8)])]
    whole = measured(*pairs)
    halves = [DetectMetric(CATS), DetectMetric(CATS)]
    for i, half in enumerate(halves):
        half.pictures = {i: whole.pictures[i]}
    assert halves[0].merge(halves).result() == whole.result()


def by_hand(annotations, detections):
    """pycocotools as its own manual shows it."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        truth = COCO(str(annotations))
        run = COCOeval(truth, truth.loadRes(str(detections)), "bbox")
        run.evaluate()
        run.accumulate()
        printed.truncate(0)
        printed.seek(0)
        run.summarize()
    return run.stats, printed.getvalue().rstrip("\n")


def test_the_twelve_numbers_are_pycocotools_own_on_the_written_files(coco_root, tmp_path):
    """Annotations, crowds and all, and detections made from them by shifting, dropping and renaming."""
    from convzoo.data.datasets.coco import coco

    dataset = coco(coco_root, "val")
    rng = np.random.default_rng(0)
    metric, task = DetectMetric(dataset.class_names), Detect(dataset.class_names, yolov3.heads())
    for i in range(len(dataset)):
        truth = dataset.boxes(i)
        kept = truth.take(rng.random(len(truth)) < 0.8)
        shifted = kept.xyxy + rng.normal(0, 4, kept.xyxy.shape)
        labels = np.where(rng.random(len(kept)) < 0.9, kept.labels, rng.integers(0, 80, len(kept)))
        prediction = Prediction(i, labels, rng.random(len(kept)).astype(np.float32), shifted.astype(np.float32))
        height, width = dataset.size_hw(i)
        metric.update([prediction], task.collate([sample(i, truth, height, width)]))
    write_report(tmp_path, metric.report(dataset), dataset)
    annotations = coco_root / "annotations/instances_val2017.json"
    for truth_file in (annotations, tmp_path / "truth.json"):
        stats, lines = by_hand(truth_file, tmp_path / "detections.json")
        result = metric.result()
        assert [result[name] for name in NAMES] == pytest.approx([float(value) for value in stats], abs=1e-12)
        assert lines == metric.text() == (tmp_path / "coco.txt").read_text().rstrip("\n")
    assert 0.2 < result["AP"] < 0.9


def test_both_evaluators_give_the_same_numbers_to_the_last_bit():
    """Crowds, tied scores, classes without objects or detections, ids with gaps, boxes of every size."""
    rng = np.random.default_rng(0)
    ids = [1, 7, 8, 33, 90]
    images = [{"id": 5 + 3 * i, "file_name": f"{i}.jpg", "height": 400, "width": 400} for i in range(60)]
    truths, detections = [], []
    for image in images:
        for _ in range(rng.integers(0, 7)):
            left, top, *sides = rng.uniform(0, 200, 2).tolist() + rng.choice([20, 60, 150], 2).tolist()
            box = [left, top, *map(float, sides)]
            category, crowd = int(rng.choice(ids[:-1])), int(rng.random() < 0.1)
            area = box[2] * box[3] * rng.uniform(0.3, 1)
            truth = {"id": len(truths) + 1, "image_id": image["id"], "category_id": category, "bbox": box}
            truths.append({**truth, "area": area, "iscrowd": crowd})
            near = [left + rng.normal(), top + rng.normal(), *box[2:]]
            score = round(float(rng.random()), 1)
            detections.append({"image_id": image["id"], "category_id": category, "bbox": near, "score": score})
        for _ in range(rng.integers(0, 120)):
            box = rng.uniform(0, 200, 4).tolist()
            category, score = int(rng.choice(ids[1:])), round(float(rng.random()), 2)
            detections.append({"image_id": image["id"], "category_id": category, "bbox": box, "score": score})
    categories = [{"id": number, "name": str(number)} for number in ids]
    truth = {"images": images, "annotations": truths, "categories": categories}
    for several in (detections, detections[:1], []):
        fast, model = (coco_eval.score(truth, several, evaluator) for evaluator in ("hotcoco", "pycocotools"))
        assert fast.stats == model.stats and fast.lines == model.lines
        for name in ("class_ap", "class_ap50", "recall", "precision"):
            np.testing.assert_array_equal(getattr(fast, name), getattr(model, name))
        assert (fast.stats["AP"] or 0) > 0.05 or several is not detections
    nothing = {**truth, "annotations": []}
    assert coco_eval.score(nothing, detections).stats == coco_eval.score(nothing, detections, "pycocotools").stats


def boxes_of(prediction: Prediction) -> np.ndarray:
    assert prediction.boxes_xyxy is not None
    return prediction.boxes_xyxy


def heads_of(task, batch, strides=(8, 16, 32)):
    """Raw maps that say exactly what the targets are."""
    from convzoo.tasks.yolo import assign_targets

    height, width = batch.images.shape[-2:]
    targets = assign_targets(
        *batch.targets,
        image_size=(height, width),
        heads=task.heads,
        num_classes=len(task.class_names),
    )
    heads = []
    for target, stride in zip(targets, strides, strict=True):
        head = torch.full((len(batch), 3, 5 + len(task.class_names), height // stride, width // stride), -12.0)
        place = (target.image, target.anchor, slice(None), target.row, target.column)
        said = torch.cat(
            [
                target.offsets_xy.clamp(1e-4, 1 - 1e-4).logit(),
                target.log_wh,
                torch.full((len(target.row), 1), 12.0),
                target.class_probs * 24 - 12,
            ],
            1,
        )
        head[place] = said
        heads.append(head.flatten(1, 2))
    return heads


def test_what_the_targets_say_is_what_is_detected():
    scenes = digit_scenes(None, "val")
    task = Detect(scenes.class_names, yolov3.heads())
    loaded = [scenes.load(i) for i in range(8)]
    for one in loaded:
        one.truth = one.target
    batch = task.collate(loaded)
    metric = task.new_metric()
    metric.update(task.postprocess(heads_of(task, batch), batch), batch)
    assert metric.result()["AP"] > 0.99
    losses = task.loss(heads_of(task, batch), batch)
    wrong = task.loss([head.flip(0) for head in heads_of(task, batch)], batch)
    assert losses["loss"] < 0.2 * wrong["loss"] and losses["loss_class"] < 1e-3


def test_postprocess_takes_raw_decoded_and_selected_outputs():
    scenes = digit_scenes(None, "val")
    task = Detect(scenes.class_names, yolov3.heads())
    placed = [scenes.load(i) for i in range(3)]
    for one in placed:
        one.placement = Placement(0.5, 0.5, 0, 8)
    batch = task.collate(placed)
    heads = heads_of(task, batch)
    raw = task.postprocess(heads, batch)
    decoded = task.postprocess(task.decode(heads), batch)
    for a, b in zip(raw, decoded, strict=True):
        assert np.array_equal(boxes_of(a), boxes_of(b)) and np.array_equal(a.labels, b.labels)
    most = max(len(one.labels) for one in raw)
    selected = [np.zeros((3, most, 4), np.float32), np.zeros((3, most), np.float32), np.full((3, most), -1)]
    for i, one in enumerate(raw):
        count = len(one.labels)
        selected[0][i, :count] = boxes_of(one) * 0.5 + np.array([0, 8, 0, 8])
        selected[1][i, :count], selected[2][i, :count] = one.scores, one.labels
    for a, b in zip(raw, task.postprocess([torch.from_numpy(part) for part in selected], batch), strict=True):
        assert np.allclose(boxes_of(a), boxes_of(b), atol=1e-4) and np.array_equal(a.labels, b.labels)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "transform.train=[{rotate_scale_crop: {size_px: 96, short_side_px: [96, 128]}}]",
            ["rotate_scale_crop", "letterbox"],
        ),
        ("transform.eval=[{flip_lr: {prob: 0.5}}]", ["flip_lr", "letterbox"]),
        ("transform.eval=[{letterbox: {size_px: 100}}]", ["size_px 100", "multiple of 32"]),
        ("transform.multi_scale_px=[96, 97]", ["multi_scale_px: 97", "multiple of 32"]),
        ("postprocess.score_threshold=1.5", ["postprocess.score_threshold", "1.5"]),
        ("postprocess.nms=0.5", ["postprocess.nms", "unknown key"]),
        ("model.anchors_px=[[[10, 13]]]", ["anchors_px", "three"]),
        ("transform.train.3.flip_lr.prob=0.5", ["transform.train", "entries"]),
    ],
)
def test_what_is_wrong_in_a_detection_recipe_is_named(run, tmp_path, override, words):
    code, _, err = run("train", "yolov3-digits", override, "--out", tmp_path / "run")
    assert code == 2 and all(word in one_line(err) for word in words), err
    assert not (tmp_path / "run").exists()


def test_keys_of_a_list_can_be_replaced():
    recipe = recipes.load("yolov3-coco", ["transform.train.0.random_place.mosaic_prob=0.5"])
    assert recipe.transform.train[0]["random_place"]["mosaic_prob"] == 0.5
    check_recipe(recipe)
    task = build_task(recipe, ["x"] * 80)
    assert isinstance(task, Detect)
    assert task.options["iou_threshold"] == 0.5 and task.ignore_threshold == 0.7
    with pytest.raises(UsageError, match="score_threshold"):
        build_task(recipes.load("yolov3-coco", ["postprocess.score_threshold=-1"]), ["x"] * 80)
