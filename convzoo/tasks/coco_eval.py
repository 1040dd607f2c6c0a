"""COCO's measures from detections and truths held in memory, by hotcoco, or by its slower model pycocotools.

A test holds that both give the same numbers to the last bit: crowds, ties, empty classes and all.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import hotcoco
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convzoo.errors import UsageError
from convzoo.plain import JsonObject
from convzoo.types import Boxes, Prediction

CocoRun = Any  # Any: COCOeval of hotcoco or of pycocotools, whose attributes have no types

NAMES = (
    "AP",  "AP50", "AP75",  "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
EVALUATORS = ("hotcoco", "pycocotools")
AT_50, AT_75 = 0, 5  # the places of IoU 0.5 and 0.75 among the ten thresholds
ALL_AREAS, MOST = 0, -1
RECALLS = np.linspace(0.0, 1.0, 101)  # as pycocotools has them


class ClassMatches(NamedTuple):
    """What COCO's matching says of one class, at T overlaps: D detections, best first, in I pictures.

    Attributes:
        picture: [D] int64, the place of a detection's picture.
        right: [T, D] bool; counted: [T, D] bool, False where it lies in a crowd, which is neither right nor wrong.
        objects: [I] int64, those to detect in each picture.
    """

    picture: np.ndarray
    right: np.ndarray
    counted: np.ndarray
    objects: np.ndarray


class Scored(NamedTuple):
    """What was measured.

    Attributes:
        stats: the twelve numbers by name, fractions of 1; None where there is nothing to measure.
        lines: the twelve lines as pycocotools prints them.
        class_ap, class_ap50: [K] fractions, NaN for a class without objects.
        recall: [101] thresholds; precision: [101, K] at IoU 0.5, NaN for a class without objects.
    """

    stats: dict[str, float | None]
    lines: str
    class_ap: np.ndarray
    class_ap50: np.ndarray
    recall: np.ndarray
    precision: np.ndarray


def truth_json(
    truths: Sequence[Boxes],
    image_ids: Sequence[int],
    paths: Sequence[str],
    sizes_hw: Sequence[tuple[int, int]],
    categories: dict[int, str],
) -> JsonObject:
    """Return true boxes in COCO's form. `categories`: category id -> name, in the order of the labels."""
    ids = list(categories)
    images = [
        {"id": image_id, "file_name": path.rpartition("/")[2], "height": hw[0], "width": hw[1]}
        for image_id, path, hw in zip(image_ids, paths, sizes_hw, strict=True)
    ]
    annotations = [
        {"image_id": image_id, "category_id": ids[label], "bbox": ltwh, "area": area, "iscrowd": int(crowd)}
        for image_id, boxes in zip(image_ids, truths, strict=True)
        for label, ltwh, area, crowd in zip(
            boxes.labels.tolist(), _ltwh(boxes.xyxy), boxes.areas.tolist(), boxes.crowd.tolist(), strict=True
        )
    ]
    return {
        "images": images,
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)],
        "categories": [{"id": category_id, "name": name} for category_id, name in categories.items()],
    }


def detections_json(
    predictions: Sequence[Prediction], image_ids: Sequence[int], category_ids: Sequence[int | None]
) -> list[JsonObject]:
    """Return detections as COCO's result format has them; labels whose category id is None are left out."""
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": ltwh, "score": score}
        for image_id, prediction in zip(image_ids, predictions, strict=True)
        for label, ltwh, score in zip(
            prediction.labels.tolist(), _ltwh(prediction.boxes_xyxy), prediction.scores.tolist(), strict=True
        )
        if category_ids[label] is not None
    ]


def _ltwh(boxes_xyxy: np.ndarray | None) -> list[list[float]]:
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()


def score(truth: JsonObject, detections: list[JsonObject], evaluator: str = "hotcoco") -> Scored:
    """Measure detections against truths, both in COCO's forms. Raises UsageError for an unknown evaluator."""
    if evaluator not in EVALUATORS:
        raise UsageError(f"no COCO evaluator '{evaluator}'; there are {' and '.join(EVALUATORS)}")
    run = _by_hotcoco(truth, detections) if evaluator == "hotcoco" else _by_pycocotools(truth, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        run.evaluate()
        run.accumulate()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run.summarize()
    every = np.asarray(run.eval["precision"])
    precision = np.where(every < 0, np.nan, every)[:, :, :, ALL_AREAS, MOST]  # [T, R, K]
    stats = {name: None if value < 0 else float(value) for name, value in zip(NAMES, run.stats, strict=True)}
    lines = printed.getvalue().rstrip("\n")
    return Scored(
        stats,
        lines.replace("Precision (AP)", "Precision  (AP)").replace("Recall (AR)   ", "Recall     (AR)"),
        precision.mean((0, 1)),
        precision[AT_50].mean(0),
        np.asarray(run.params.recThrs),
        precision[AT_50],
    )


def _by_hotcoco(truth: JsonObject, detections: list[JsonObject]) -> CocoRun:
    gt = hotcoco.COCO(truth)
    return hotcoco.COCOeval(gt, gt.loadRes(detections), "bbox")


def _by_pycocotools(truth: JsonObject, detections: list[JsonObject]) -> CocoRun:
    with contextlib.redirect_stdout(io.StringIO()):
        gt, dt = COCO(), COCO()
        gt.dataset = truth  # type: ignore[assignment]
        gt.createIndex()
        annotations = [  # as COCO.loadRes makes them, which refuses an empty list
            {**detection, "id": number, "area": detection["bbox"][2] * detection["bbox"][3], "iscrowd": 0}
            for number, detection in enumerate(detections, 1)
        ]
        dt.dataset = {**truth, "annotations": annotations}  # type: ignore[assignment]
        dt.createIndex()
    return COCOeval(gt, dt, "bbox")


def class_matches(truth: JsonObject, detections: list[JsonObject]) -> list[ClassMatches]:
    """Return for each class, in order of its id, what COCO's matching says of its detections, over all areas."""
    run = _by_hotcoco(truth, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        run.evaluate()
    all_areas, places = list(run.params.areaRng[ALL_AREAS]), {number: i for i, number in enumerate(run.params.imgIds)}
    entries: dict[int, list[tuple[int, JsonObject]]] = {number: [] for number in run.params.catIds}
    for entry in run.evalImgs:
        if entry is not None and list(entry["aRng"]) == all_areas:
            entries[entry["category_id"]].append((places[entry["image_id"]], entry))
    return [_class_matches(sorted(pairs, key=lambda pair: pair[0]), len(places), run) for pairs in entries.values()]


def _class_matches(pairs: list[tuple[int, JsonObject]], num_pictures: int, run: CocoRun) -> ClassMatches:
    nothing = np.zeros((len(run.params.iouThrs), 0), dtype=bool)
    picture = np.concatenate([np.zeros(0), *(np.full(len(entry["dtScores"]), i) for i, entry in pairs)])
    scores = np.concatenate([np.zeros(0), *(entry["dtScores"] for _, entry in pairs)])
    matched = np.concatenate([nothing, *(np.asarray(entry["dtMatches"]) > 0 for _, entry in pairs)], 1)
    counted = np.concatenate([nothing, *(~np.asarray(entry["dtIgnore"], dtype=bool) for _, entry in pairs)], 1)
    objects = np.zeros(num_pictures, dtype=np.int64)
    objects[[i for i, _ in pairs]] = [np.sum(~np.asarray(entry["gtIgnore"], dtype=bool)) for _, entry in pairs]
    order = np.argsort(-scores, kind="stable")
    return ClassMatches(picture[order].astype(np.int64), (matched & counted)[:, order], counted[:, order], objects)


def weighted_ap(matches: Sequence[ClassMatches], weights: np.ndarray) -> np.ndarray:
    """Return AP [R, T] at each overlap, as if each picture were there as often as `weights` [R, I] says.

    It is what pycocotools measures on a set of pictures with copies. NaN where no class has objects.
    """
    per_class = [_weighted_class_ap(class_, weights) for class_ in matches]
    values, weighted = np.stack(per_class), np.stack([weights @ class_.objects > 0 for class_ in matches])  # [K, R]
    with np.errstate(invalid="ignore"):
        return np.where(weighted[..., None], values, 0).sum(0) / weighted.sum(0)[:, None]


def _weighted_class_ap(class_: ClassMatches, weights: np.ndarray) -> np.ndarray:
    """Return AP [R, T] of one class."""
    objects, counts = (weights @ class_.objects)[:, None], weights[:, class_.picture]  # [R, 1], [R, D]
    columns, seen = [], counts.cumsum(1)
    for right, counted in zip(class_.right, class_.counted, strict=True):
        places = np.flatnonzero(right)  # elsewhere recall stays, and precision is less than at the place before
        hits = counts[:, places].cumsum(1)
        all_seen = seen if counted.all() else np.where(counted, counts, 0).cumsum(1)
        precision = hits / (all_seen[:, places] + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        reached = np.searchsorted(RECALLS, hits / np.maximum(objects, 1), side="right")  # thresholds of recall
        columns.append((precision * np.diff(reached, prepend=0, axis=1)).sum(1) / len(RECALLS))
    return np.stack(columns, 1)
