"""What a run's page shows of the pictures that were evaluated: confusions, the worst and some at random, and why."""

import csv
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from convzoo.errors import ConvzooError
from convzoo.inference.bootstrap import wilson
from convzoo.inference.explain import explain
from convzoo.inference.torch_model import open_model
from convzoo.plain import JsonObject
from convzoo.report.charts import Chart, Series
from convzoo.report.draw import heated
from convzoo.report.html import Cell, ConfusionView, RunView, Table
from convzoo.report.pictures import Box, Picture, Room, data_url
from convzoo.report.plots import RECALLS
from convzoo.report.tables import percent

SHOWN, EXPLAINED, IN_CELL, IN_FREQUENT = 12, 6, 6, 3
CLASS_PX, BOXES_PX, HEAT_PX = 160, 420, 200  # longer sides
LARGEST_MATRIX = 30  # classes; more have no room for a cell each
FREQUENT = 24
NOTHING, MISSED = "nothing (false)", "missed"  # the last row and column of a detector's confusions
HARDEST = 3  # classes whose curves are drawn beside the mean
AGAIN = "Evaluate the run's last checkpoint again to have this; an earlier version did not write it."


class EvaluatedPictures:
    """The evaluation that lies in a run's folder, and its pictures where they are still to be had.

    Attributes:
        records: one for each picture, as pictures.jsonl has them; none of an evaluation by an earlier version.
    """

    def __init__(self, run: Path, class_names: list[str], load: Callable[[int], np.ndarray] | None, room: Room):
        self.run, self.names, self.room = run, class_names, room
        self._load = load
        self._sources: dict[int, str] = {}
        path = run / "eval/pictures.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.records: list[JsonObject] = [json.loads(line) for line in lines]
        self.boxed = bool(self.records) and "detections" in self.records[0]

    def show(self, view: RunView) -> None:
        """Put into the view what the pictures give."""
        view.has_boxes = self.boxed
        view.classes, view.curve = self._classes(), self._curve()
        if view.curve is None:
            view.missing["curve"] = AGAIN
        if not self.records:
            view.missing["pictures"] = view.missing["explained"] = AGAIN
        else:
            worst = [self._picture(record) for record in sorted(self._wrong(), key=self._badness)[:SHOWN]]
            chosen = np.random.RandomState(0).permutation(len(self.records))[:SHOWN]
            view.worst, view.random = worst, [self._picture(self.records[i]) for i in sorted(chosen)]
            if self._load is not None:
                self._explain(view, self._load)
        view.confusion = self._confusions()

    def _wrong(self) -> list[JsonObject]:
        if not self.boxed:
            return [record for record in self.records if record["truth"] != record["predicted"]]
        return [record for record in self.records if sum(_mistakes(record))]

    def _badness(self, record: JsonObject) -> tuple[float, int]:
        """Return by what the worst come first."""
        return (-sum(_mistakes(record)) if self.boxed else record["true_score"]), record["id"]

    def _name(self, label: int) -> str:
        return self.names[label] if label < len(self.names) else str(label)

    def _source(self, record: JsonObject) -> str:
        if self._load is None:
            return ""
        if record["id"] not in self._sources:
            image = self._load(record["id"])
            self._sources[record["id"]] = data_url(image, BOXES_PX if self.boxed else CLASS_PX)
        return self.room.taken(self._sources[record["id"]])

    def _picture(self, record: JsonObject) -> Picture:
        source, file = self._source(record), record["path"].rpartition("/")[2]
        if self.boxed:
            missed, false = _mistakes(record)
            right = sum(box["right"] for box in record["detections"])
            title = f"{missed} missed, {false} false, {right} right"
            return Picture(source, tuple(record["size"]), title, file, boxes=self._boxes(record))
        size = _size_of(self._load(record["id"])) if source and self._load else (1, 1)
        sure = f"{100 * record['score']:.0f} % sure"
        truth, predicted = self._name(record["truth"]), self._name(record["predicted"])
        if record["truth"] == record["predicted"]:
            return Picture(source, size, f"{truth}, {sure}", file, "right")
        return Picture(source, size, f"{predicted}, {sure}; it is {truth}", file, "wrong")

    def _boxes(self, record: JsonObject) -> list[Box]:
        detections = [
            ("right" if box["right"] else "false", f"{self._name(box['class'])} {100 * box['score']:.0f} %", box["box"])
            for box in reversed(record["detections"])
        ]
        missed = [("missed", self._name(box["class"]), box["box"]) for box in record["truth"] if not box["found"]]
        width, height = record["size"]
        scale = 100 / np.array([width, height, width, height])
        boxes = []
        for kind, name, xyxy in [*detections, *missed]:
            left, top, right, bottom = (np.clip(np.array(xyxy) * scale, 0, 100)).tolist()
            boxes.append(Box(kind, name, left, top, right - left, bottom - top))
        return boxes

    # --- confusions

    def _confusions(self) -> ConfusionView | None:
        path = self.run / "eval/confusion.csv"
        if not path.is_file():
            return None
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *rows = list(csv.reader(file))
        counts = np.array([[int(value) for value in row[1:]] for row in rows])
        row_names, column_names = [row[0] for row in rows], header[1:]
        if self.boxed:
            row_names[-1], column_names[-1] = NOTHING, MISSED
        by_cell = self._by_cell()
        shares = counts / np.maximum(1, counts.sum(1, keepdims=True))

        def cell(row: int, column: int, most: int) -> Cell:
            records = sorted(by_cell[row, column], key=lambda r: (self._sureness(r, row == column), r["id"]))
            count, share = int(counts[row, column]), float(shares[row, column])
            pictures = [self._picture(record) for record in records[:most]]
            title = _cell_title(row_names[row], column_names[column]) if row != column else f"{row_names[row]}, right"
            return Cell(title, count, share, row == column, pictures)

        if len(counts) <= LARGEST_MATRIX:
            sides = [range(side) for side in counts.shape]
            return ConfusionView(
                row_names, column_names, [[cell(row, column, IN_CELL) for column in sides[1]] for row in sides[0]], []
            )
        off = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
        most = np.argsort(-off, axis=None, kind="stable")[:FREQUENT]
        pairs = [divmod(int(place), counts.shape[1]) for place in most]
        return ConfusionView(row_names, column_names, [], [cell(*pair, IN_FREQUENT) for pair in pairs if off[pair]])

    def _sureness(self, record: JsonObject, is_right: bool) -> float:
        """Return by what a cell's first pictures are chosen: the surest mistakes, the least sure right answers."""
        return 0.0 if self.boxed else record["score"] * (1 if is_right else -1)

    def _by_cell(self) -> dict[tuple[int, int], list[JsonObject]]:
        cells, nothing = defaultdict(list), len(self.names)
        for record in self.records:
            if not self.boxed:
                cells[record["truth"], record["predicted"]].append(record)
                continue
            pairs = [(nothing if box["on"] is None else box["on"], box["class"]) for box in record["detections"]]
            pairs += [(box["class"], nothing) for box in record["truth"] if box["missed"]]
            for pair in dict.fromkeys(pairs):
                cells[pair].append(record)
        return cells

    # --- classes

    def _classes(self) -> Table | None:
        path = self.run / "eval/per_class.csv"
        if not path.is_file():
            return None
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
        if "AP" in rows[0]:
            cells = [
                [row["class"], row["objects"], row["detections"], _percent(row["AP"]), _percent(row["AP50"])]
                for row in rows
            ]
            return Table("Each class", ["class", "objects", "detections", "AP", "AP50"], cells)
        cells = []
        for row in rows:
            hits, images = int(row["correct"]), int(row["images"])
            predicted = round(hits / float(row["precision"])) if float(row["precision"] or 0) else 0
            shares = [_with_interval(hits, images), _with_interval(hits, predicted)]
            cells.append([row.get("title") or row["class"], str(images), *shares, row["most_taken_for"] or "-"])
        columns = ["class", "images", "recall", "precision", "mostly taken for"]
        return Table("Each class", columns, cells, "In brackets Wilson's 95 % intervals.")

    def _curve(self) -> Chart | None:
        """Return the mean of the classes' precision-recall curves, and those of the hardest."""
        curves = self._detection_curves() if (self.run / "eval/precision_recall.csv").is_file() else {}
        if not curves and self.records and not self.boxed:
            curves = self._class_curves()
        if not curves:
            return None
        hardest = sorted(curves, key=lambda name: curves[name].mean())[: HARDEST if len(curves) > HARDEST else 0]
        mean = np.mean(list(curves.values()), 0)
        lines = [Series(f"mean of {len(curves)} classes", _in_percent(mean), 0)]
        lines += [Series(name, _in_percent(curves[name]), i + 1) for i, name in enumerate(hardest)]
        of = "at IoU 0.5" if self.boxed else "of the best class, by its score"
        return Chart(f"Precision {of}", "recall in %", lines, "%", limits=(0, 100))

    def _detection_curves(self) -> dict[str, np.ndarray]:
        with open(self.run / "eval/precision_recall.csv", newline="", encoding="utf-8") as file:
            _, *rows = list(csv.reader(file))
        return {row[0]: np.array([float(value) for value in row[1:]]) for row in rows}

    def _class_curves(self) -> dict[str, np.ndarray]:
        """Return each class's precision [101] at COCO's recalls, of pictures taken for it with some score or more."""
        truth, predicted = (np.array([record[key] for record in self.records]) for key in ("truth", "predicted"))
        scores = np.array([record["score"] for record in self.records])
        curves = {}
        for label in np.unique(truth):
            order = np.flatnonzero(predicted == label)
            order = order[np.argsort(-scores[order], kind="stable")]
            hits = (truth[order] == label).cumsum()
            precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
            places = np.searchsorted(hits / (truth == label).sum(), RECALLS)
            curves[self._name(int(label))] = np.append(precision, 0.0)[places]
        return curves

    # --- explanations

    def _explain(self, view: RunView, load: Callable[[int], np.ndarray]) -> None:
        """Add what speaks for the answers, of the worst pictures first."""
        path = self.run / "checkpoints/last.safetensors"
        try:
            opened = open_model(path)
        except ConvzooError as error:
            view.missing["explained"] = f"Explanations need the run's last checkpoint: {error}"
            return
        worst = sorted(self._wrong(), key=self._badness)[: EXPLAINED - 2]
        others = [record for record in self.records if record not in worst]
        drawn_lots = np.random.RandomState(1).permutation(len(others))[: EXPLAINED - len(worst)]
        for record in worst + [others[i] for i in drawn_lots]:
            pixels = load(record["id"])
            image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
            heats = []
            for why, label, box in self._reasons(record):
                drawn = np.asarray(heated(_enlarged(pixels), explain(opened, image, label, box)))
                heats.append((why, self.room.taken(data_url(drawn, BOXES_PX if self.boxed else HEAT_PX))))
            heats = [heat for heat in heats if heat[1]]
            picture = self._picture(record)
            if heats and picture.source:
                view.explained.append(replace(picture, heats=heats))

    def _reasons(self, record: JsonObject) -> list[tuple[str, int, tuple[float, ...] | None]]:
        """Return what is asked of a picture: for which class, and which box."""
        if not self.boxed:
            labels = dict.fromkeys([record["predicted"], record["truth"]])
            return [(self._name(label), label, None) for label in labels]
        boxes = sorted(record["detections"], key=lambda box: (box["right"], -box["score"]))[:1]
        return [
            (f"{'the' if box['right'] else 'the false'} {self._name(box['class'])}", box["class"], tuple(box["box"]))
            for box in boxes
        ]


def _mistakes(record: JsonObject) -> tuple[int, int]:
    """Return how many objects a picture misses, and how many detections are false."""
    missed = sum(not box["found"] for box in record["truth"])
    return missed, sum(not box["right"] for box in record["detections"])


def _cell_title(truth: str, predicted: str) -> str:
    if truth == NOTHING:
        return f"{predicted} where there is none"
    return f"{truth} {MISSED}" if predicted == MISSED else f"{truth} taken for {predicted}"


def _size_of(image: np.ndarray) -> tuple[int, int]:
    return image.shape[1], image.shape[0]


def _enlarged(image: np.ndarray) -> np.ndarray:
    """Return a small picture in whole multiples of its pixels, so that heat on it is finer than they are."""
    factor = max(1, HEAT_PX // max(image.shape[:2]))
    return image.repeat(factor, 0).repeat(factor, 1)


def _percent(text: str) -> str:
    return percent(float(text)) if text else "-"


def _with_interval(hits: int, count: int) -> str:
    if not count:
        return "-"
    low, high = wilson(hits / count, count)
    return f"{percent(hits / count)} ({100 * low:.1f} to {100 * high:.1f})"


def _in_percent(precision: np.ndarray) -> list[tuple[float, float]]:
    return [(100 * x, 100 * y) for x, y in zip(RECALLS.tolist(), precision.tolist(), strict=True)]
