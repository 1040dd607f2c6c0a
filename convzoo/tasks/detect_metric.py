"""What a detector got right: COCO's twelve numbers, and what they do not show: confusions and the worst pictures."""

from typing import NamedTuple

import numpy as np
import torch

from convzoo.boxes import box_area, pairwise_iou
from convzoo.plain import JsonObject
from convzoo.tasks.coco_eval import (
    AT_50,
    AT_75,
    ClassMatches,
    Scored,
    class_matches,
    detections_json,
    score,
    truth_json,
    weighted_ap,
)
from convzoo.types import (
    Batch,
    BoxedDataset,
    Boxes,
    ComparedBoxes,
    Confusion,
    MetricReport,
    Prediction,
    WorstPicture,
)

# For the confusion matrix and the worst pictures only; COCO's numbers count every score and ten overlaps.
SHOWN_SCORE, SHOWN_IOU = 0.25, 0.5
WORST_KEPT = 24
BACKGROUND = "background"


class Pictured(NamedTuple):
    """One evaluated picture."""

    path: str
    original_hw: tuple[int, int]
    truth: Boxes
    prediction: Prediction


class Matched(NamedTuple):
    """Which detections of a picture, [N], found which true box, [M]: indices, -1 for none.

    Attributes:
        truth_of: [N] the true box that a detection lies on, of its class if there is one.
        in_crowd: [N] bool, detections that count for nothing because they lie in a crowd.
    """

    truth_of: np.ndarray
    in_crowd: np.ndarray


class Shown(NamedTuple):
    """The part of a picture's detections that is shown, and which truth each found; the truths that were detected."""

    prediction: Prediction
    matched: Matched
    is_found: np.ndarray
    is_right: np.ndarray


class DetectMetric:
    """All detections and all truths, exactly; `evaluator`, one of coco_eval.EVALUATORS, measures at the end."""

    evaluator = "hotcoco"

    def __init__(self, class_names: list[str]):
        self.class_names = class_names
        self.pictures: dict[int, Pictured] = {}
        self._scored: Scored | None = None
        self._matches: list[ClassMatches] | None = None
        self._shown: dict[int, Shown] = {}

    def update(self, predictions: list[Prediction], batch: Batch) -> None:
        """Take detections in original pixels and the batch's truths."""
        sizes = batch.original_hw.tolist()
        for prediction, path, (height, width), truth, valid in zip(
            predictions, batch.paths, sizes, batch.truths, batch.valid.tolist(), strict=True
        ):
            if valid:
                self.pictures[prediction.id] = Pictured(path, (height, width), truth, prediction)
        self._scored, self._matches, self._shown = None, None, {}

    def merge(self, others: list["DetectMetric"]) -> "DetectMetric":
        """Return the sum of several ranks' pictures."""
        total = DetectMetric(self.class_names)
        total.evaluator = self.evaluator
        for other in others:
            total.pictures |= other.pictures
        return total

    def scored(self) -> Scored:
        if self._scored is None:
            self._scored = score(*self._numbered(), self.evaluator)
        return self._scored

    def shown(self) -> dict[int, Shown]:
        """Return of each picture the detections with at least SHOWN_SCORE, and what each is on."""
        if not self._shown:
            self._shown = {i: _shown(picture) for i, picture in sorted(self.pictures.items())}
        return self._shown

    def _numbered(self) -> tuple[JsonObject, list[JsonObject]]:
        """Return truth and detections in COCO's form, classes numbered from 1."""
        ids, categories = sorted(self.pictures), dict(enumerate(self.class_names, 1))
        return self._as_json(ids, ids, categories, list(categories))

    def result(self) -> JsonObject:
        """Return COCO's twelve numbers as fractions, None where nothing is measured, and the number of images."""
        return {**self.scored().stats, "images": len(self.pictures)}

    def weighted(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return AP, AP50, AP75 [R] with each picture as often as weights [R, N] say, by id; NaN without objects."""
        if self._matches is None:
            self._matches = class_matches(*self._numbered())
        ap = weighted_ap(self._matches, weights)
        return {"AP": ap.mean(1), "AP50": ap[:, AT_50], "AP75": ap[:, AT_75]}

    def text(self) -> str:
        """Return COCO's twelve lines."""
        return self.scored().lines

    def report(self, dataset: BoxedDataset) -> MetricReport:
        """Return detections and truth as COCO has them, with the data set's own ids, tables, curves, worst pictures."""
        truth, detections = self._in_ids_of(dataset)
        scored, names = self.scored(), self.class_names
        worst = self._worst_rows()
        return MetricReport(
            {"per_class": self.per_class(), "worst": worst},
            Confusion(self.confusion(), [*names, BACKGROUND], [*names, "nothing (false)"], [*names, "missed"]),
            [self._worst_picture(row) for row in worst],
            {
                name: (scored.recall, scored.precision[:, k])
                for k, name in enumerate(names)
                if np.isfinite(scored.class_ap50[k])
            },
            {"detections": detections, "truth": truth},
            {"coco": self.text()},
            {"pictures": [self._record(i) for i in self.shown()]},
        )

    def _in_ids_of(self, dataset: BoxedDataset) -> tuple[JsonObject, list[JsonObject]]:
        """Return truth and detections in COCO's form; classes that the data set does not have are in neither."""
        ids = sorted(self.pictures)
        own = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
        numbers = [dataset.image_id(i) for i in ids]
        categories = {own.get(name, -1 - i): name for i, name in enumerate(self.class_names)}
        truth, detections = self._as_json(ids, numbers, categories, [own.get(name) for name in self.class_names])
        truth["categories"] = [category for category in truth["categories"] if category["id"] in own.values()]
        return truth, detections

    def per_class(self) -> list[JsonObject]:
        """Return for each class its objects, detections, AP and AP50 (None where there are no objects)."""
        scored = self.scored()
        truths = self._counts([picture.truth.labels[~picture.truth.crowd] for picture in self.pictures.values()])
        detections = self._counts([picture.prediction.labels for picture in self.pictures.values()])
        return [
            {
                "class": name,
                "objects": truths[k],
                "detections": detections[k],
                "AP": _or_none(scored.class_ap[k]),
                "AP50": _or_none(scored.class_ap50[k]),
            }
            for k, name in enumerate(self.class_names)
        ]

    def confusion(self) -> np.ndarray:
        """Return counts [K + 1, K + 1] of truth and prediction; last row: false detections, last column: misses."""
        nothing = len(self.class_names)
        counts = np.zeros((nothing + 1, nothing + 1), dtype=np.int64)
        for i, (prediction, matched, _, _) in self.shown().items():
            truth = self.pictures[i].truth
            true_labels = np.append(truth.labels, nothing)[matched.truth_of]
            np.add.at(counts, (true_labels[~matched.in_crowd], prediction.labels[~matched.in_crowd]), 1)
            counts[:-1, nothing] += np.bincount(truth.labels[_missed(truth, matched)], minlength=nothing)
        return counts

    def _record(self, i: int) -> JsonObject:
        """Return what was shown of a picture as plain values; boxes [4] xyxy in its pixels, classes as indices.

        A true box is `missed` where nothing lies on it; a detection is `on` the class that it lies on, or on None.
        """
        picture, (prediction, matched, is_found, is_right) = self.pictures[i], self.shown()[i]
        missed, on = _missed(picture.truth, matched), np.append(picture.truth.labels, -1)[matched.truth_of]
        truth = [
            {"box": _rounded(box), "class": int(label), "found": bool(found), "missed": bool(lost)}
            for box, label, found, lost, crowd in zip(
                picture.truth.xyxy, picture.truth.labels, is_found, missed, picture.truth.crowd, strict=True
            )
            if not crowd
        ]
        detections = [
            {"box": _rounded(box), "class": int(label), "score": round(float(score), 4), "right": bool(right)}
            | {"on": int(other) if other >= 0 else None}
            for box, label, score, right, other, in_crowd in zip(
                np.asarray(prediction.boxes_xyxy),
                prediction.labels,
                prediction.scores,
                is_right,
                on,
                matched.in_crowd,
                strict=True,
            )
            if not in_crowd
        ]
        height, width = picture.original_hw
        return {"id": i, "path": picture.path, "size": [width, height], "truth": truth, "detections": detections}

    def _as_json(
        self,
        ids: list[int],
        image_ids: list[int],
        categories: dict[int, str],
        category_ids: list[int | None] | list[int],
    ) -> tuple[JsonObject, list[JsonObject]]:
        pictures = [self.pictures[i] for i in ids]
        truth = truth_json(
            [p.truth for p in pictures],
            image_ids,
            [p.path for p in pictures],
            [p.original_hw for p in pictures],
            categories,
        )
        return truth, detections_json([p.prediction for p in pictures], image_ids, category_ids)

    def _counts(self, labels: list[np.ndarray]) -> list[int]:
        joined = np.concatenate([np.zeros(0, dtype=np.int64), *labels])
        return np.bincount(joined, minlength=len(self.class_names)).tolist()

    def _worst_rows(self) -> list[JsonObject]:
        """Return the pictures with the most missed objects and false detections, worst first."""
        rows = []
        for i, (_, matched, is_found, right) in self.shown().items():
            picture = self.pictures[i]
            missed, false = int((~is_found & ~picture.truth.crowd).sum()), int((~right & ~matched.in_crowd).sum())
            rows.append({"id": i, "path": picture.path, "missed": missed, "false": false, "right": int(right.sum())})
        wrong = [row for row in rows if row["missed"] + row["false"]]
        return sorted(wrong, key=lambda row: -row["missed"] - row["false"])[:WORST_KEPT]

    def _worst_picture(self, row: JsonObject) -> WorstPicture:
        picture = self.pictures[row["id"]]
        shown, _, is_found, right = self.shown()[row["id"]]
        learned = ~picture.truth.crowd
        truth = picture.truth.take(learned)
        boxes = ComparedBoxes(
            truth.xyxy,
            [self.class_names[label] for label in truth.labels],
            is_found[learned].tolist(),
            np.asarray(shown.boxes_xyxy),
            [self.class_names[label] for label in shown.labels],
            shown.scores.tolist(),
            right.tolist(),
        )
        caption = f"{row['missed']} missed, {row['false']} false", row["path"].rpartition("/")[2]
        return WorstPicture(row["id"], caption, boxes)


def _shown(picture: Pictured) -> Shown:
    prediction = shown_part(picture.prediction)
    matched = match(prediction, picture.truth)
    return Shown(prediction, matched, *_outcome(prediction, picture.truth, matched))


def _missed(truth: Boxes, matched: Matched) -> np.ndarray:
    """Return which true boxes [M] no detection lies on, of whatever class."""
    missed = ~truth.crowd
    missed[matched.truth_of[matched.truth_of >= 0]] = False
    return missed


def _rounded(box: np.ndarray) -> list[float]:
    return [round(float(side), 1) for side in box]


def shown_part(prediction: Prediction) -> Prediction:
    """Return the detections with at least SHOWN_SCORE."""
    mask = prediction.scores >= SHOWN_SCORE
    boxes = np.asarray(prediction.boxes_xyxy)[mask]
    return Prediction(prediction.id, prediction.labels[mask], prediction.scores[mask], boxes)


def match(prediction: Prediction, truth: Boxes) -> Matched:
    """Give each detection, best first, the true box it overlaps most, at least by SHOWN_IOU, that nobody has yet.

    Boxes of the detection's own class are given first; those that are left may then go to detections of another class.
    """
    boxes, true_boxes = torch.from_numpy(np.asarray(prediction.boxes_xyxy)).double(), torch.from_numpy(truth.xyxy)
    ious = pairwise_iou(boxes, true_boxes).numpy()
    truth_of = np.full(len(prediction.labels), -1)
    free = ~truth.crowd
    same_class = prediction.labels[:, None] == truth.labels[None]
    for allowed in (same_class, np.ones_like(same_class)):
        for i in np.flatnonzero(truth_of < 0):
            suited = np.where(free & allowed[i], ious[i], 0.0)
            if suited.size and suited.max() >= SHOWN_IOU:
                truth_of[i] = suited.argmax()
                free[truth_of[i]] = False
    crowd = true_boxes[torch.from_numpy(truth.crowd)]
    low, high = (
        torch.maximum(boxes[:, None, :2], crowd[None, :, :2]),
        torch.minimum(boxes[:, None, 2:], crowd[None, :, 2:]),
    )
    inside = (high - low).clamp(min=0).prod(-1) >= SHOWN_IOU * box_area(boxes)[:, None]
    return Matched(truth_of, inside.any(1).numpy() & (truth_of < 0))


def outcome(prediction: Prediction, truth: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """Return which true boxes [M] were found with their class, and which detections [N] are right."""
    return _outcome(prediction, truth, match(prediction, truth))


def _outcome(prediction: Prediction, truth: Boxes, matched: Matched) -> tuple[np.ndarray, np.ndarray]:
    truth_of = matched.truth_of
    right = (truth_of >= 0) & (np.append(truth.labels, -1)[truth_of] == prediction.labels)
    is_found = np.zeros(len(truth), dtype=bool)
    is_found[truth_of[right]] = True
    return is_found, right


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
