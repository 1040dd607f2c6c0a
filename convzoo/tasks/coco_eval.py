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
from convzoo.types import Boxes, Prediction

NAMES = (
    "AP",  "AP50", "AP75",  "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
EVALUATORS = ("hotcoco", "pycocotools")
AT_50 = 0  # the place of IoU 0.5 among the ten thresholds
ALL_AREAS, MOST = 0, -1


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
) -> dict[str, Any]:
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
) -> list[dict[str, Any]]:
    """Return detections as COCO's result format has them; labels whose category id is None are left out."""
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": ltwh, "score": score}
        for image_id, prediction in zip(image_ids, predictions, strict=True)
        for label, ltwh, score in zip(
            prediction.labels.tolist(), _ltwh(prediction.boxes_xyxy), prediction.scores.tolist(), strict=True
        )
        if category_ids[label] is not None
    ]


def _ltwh(boxes_xyxy: Any) -> list[list[float]]:
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()


def score(truth: dict[str, Any], detections: list[dict[str, Any]], evaluator: str = "hotcoco") -> Scored:
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


def _by_hotcoco(truth: dict[str, Any], detections: list[dict[str, Any]]) -> Any:
    gt = hotcoco.COCO(truth)
    return hotcoco.COCOeval(gt, gt.loadRes(detections), "bbox")


def _by_pycocotools(truth: dict[str, Any], detections: list[dict[str, Any]]) -> Any:
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
