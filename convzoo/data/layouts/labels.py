"""Labels of one folder, whatever their layout: pictures, classes, boxes, scores, and what was remarkable in reading."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from convzoo.config.registry import nearest
from convzoo.data.datasets.boxed import box_areas
from convzoo.data.layouts.inventory import Inventory, split_in
from convzoo.errors import DataError, UsageError
from convzoo.types import Boxes

LARGEST = 1e9  # beyond any picture
# Number of the picture, class, score, whether it is a crowd, area (NaN: the box's), left, top, right, bottom.
Row = tuple[int, str, float, bool, float, float, float, float, float]


@dataclass
class Labels:
    """What a folder's labels say.

    Attributes:
        layout: name of the layout, a key of `recognise.LAYOUTS`; evidence: what it was recognised by.
        files: N pictures below the folder.
        class_names: K, in the order of the classes' numbers.
        labels: [N] int64 of the pictures, or [M] of the objects where there are boxes.
        scores: [N] or [M] float64 in 0..1, NaN where the file says none: a person's label has none.
        objects, image_index: [M] boxes and the picture of each; None where whole pictures are labelled.
        stated_hw: [N, 2] int64, 0 where the labels do not say.
        splits: "train", "val" or "test" of each picture, None where the layout has no splits.
        notes: what was left out or changed in reading, counted.
        normalised: boxes are shares of the picture's sides.
    """

    layout: str
    evidence: str
    folder: Path
    files: list[str]
    class_names: list[str]
    labels: np.ndarray
    scores: np.ndarray
    objects: Boxes | None = None
    image_index: np.ndarray | None = None
    stated_hw: np.ndarray | None = None
    splits: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    normalised: bool = False
    image_ids: np.ndarray | None = None
    category_ids: list[int] | None = None

    def counts(self) -> np.ndarray:
        """Return how often each picture shows each class, [N, K] int64."""
        rows = np.arange(len(self.files)) if self.image_index is None else self.image_index
        counts = np.zeros((len(self.files), len(self.class_names)), np.int64)
        np.add.at(counts, (rows, self.labels), 1)
        return counts


@dataclass
class Reading:
    """The keys of the data set `own` that say how labels are read: its arguments of the same names."""

    class_names: Sequence[str] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    one_based: bool = True


class Collector:
    """Takes pictures, boxes and labels of pictures while a layout is read, and makes `Labels` of them."""

    def __init__(self, inventory: Inventory):
        self.inventory = inventory
        self.counts: Counter[str] = Counter()  # what was changed or left out
        self._pictures: dict[str, int] = {}
        self._stated_hw: list[tuple[int, int]] = []
        self._splits: list[str | None] = []
        self._ids: list[int] = []
        self._rows: list[Row] = []
        self._whole: dict[int, tuple[str, float]] = {}

    def picture(
        self, file: str, place: str, stated_hw: tuple[int, int] = (0, 0), split: str | None = None, id: int = 0
    ) -> int:
        """Add a picture and return its number. Raises DataError where it was labelled before."""
        if file in self._pictures:
            raise DataError(f"{place}: {file} is labelled twice")
        self._pictures[file] = number = len(self._pictures)
        self._stated_hw.append(stated_hw)
        self._splits.append(split or split_in(file))
        self._ids.append(id)
        return number

    def box(
        self,
        picture: int,
        name: str,
        xyxy: Sequence[float],
        score: float = math.nan,
        crowd: bool = False,
        area: float = math.nan,
    ) -> None:
        x1, y1, x2, y2 = xyxy
        self._rows.append((picture, name, score, crowd, area, x1, y1, x2, y2))

    def label(self, picture: int, name: str, score: float = math.nan) -> None:
        """Add the class of a whole picture."""
        self._whole[picture] = name, score

    def labels(
        self,
        layout: str,
        evidence: str,
        reading: Reading,
        known: Sequence[str] | None = None,
        category_ids: list[int] | None = None,
        normalised: bool = False,
    ) -> Labels:
        """Return what was added, pictures in the order of their ids or names.

        Args:
            known: class names in the format's own order; None for the names that were added, sorted.
        Raises:
            DataError: nothing is labelled, names that differ in nothing but case and spaces, or some pictures in a
                folder of a split and others not.
        """
        if not self._rows and not self._whole:
            raise DataError(f"{self.inventory.root}: not one object or label in {evidence}")
        files = list(self._pictures)
        order = sorted(self._chosen(), key=lambda i: (self._ids[i], files[i]))
        position = {picture: i for i, picture in enumerate(order)}
        rows = sorted(self._rows, key=lambda row: position[row[0]])
        used = [row[1] for row in rows] if rows else [self._whole[i][0] for i in order]
        scores = [row[2] for row in rows] if rows else [self._whole[i][1] for i in order]
        names, number_of = class_numbers(used, reading, known, str(self.inventory.root))
        self.counts["labels have a score, so a program made them"] = int(np.isfinite(scores).sum())
        numbers = np.array([number_of[name] for name in used], np.int64)
        return Labels(
            layout,
            evidence,
            self.inventory.root,
            [files[i] for i in order],
            names,
            numbers,
            np.array(scores, float),
            _boxes(rows, numbers) if rows else None,
            np.array([position[row[0]] for row in rows], np.int64) if rows else None,
            np.array([self._stated_hw[i] for i in order], np.int64).reshape(-1, 2),
            self._given_splits(order, files),
            [f"{count:,} {kind}" for kind, count in self.counts.items() if count],
            normalised,
            np.array([self._ids[i] for i in order], np.int64) if any(self._ids) else None,
            category_ids if category_ids and len(category_ids) == len(names) else None,
        )

    def _chosen(self) -> list[int]:
        """Return the pictures that take part, and count what does not."""
        chosen = [i for i in self._pictures.values() if self._rows or i in self._whole]
        if self._rows and self._whole:
            self.counts["labels of whole pictures left out, for there are boxes"] = len(self._whole)
        self.counts["pictures without a label left out"] = len(self._pictures) - len(chosen)
        others = [file for file in self.inventory.pictures if file not in self._pictures]
        if others:
            self.counts[f"pictures that no label file names left out, such as {others[0]}"] = len(others)
        return chosen

    def _given_splits(self, order: list[int], files: list[str]) -> list[str] | None:
        splits = [self._splits[i] for i in order]
        without = [files[i] for i, split in zip(order, splits, strict=True) if not split]
        if len(without) == len(splits):
            return None
        if without:
            split = next(split for split in splits if split)
            raise DataError(
                f"{self.inventory.root}: some pictures are in a split ({split}), {len(without)} are in none, such as "
                f"{without[0]}"
            )
        return [split for split in splits if split]


def _boxes(rows: Sequence[Row], numbers: np.ndarray) -> Boxes:
    values = np.array([row[4:] for row in rows], float).reshape(-1, 5)
    areas = np.where(np.isnan(values[:, 0]), box_areas(values[:, 1:]), values[:, 0])
    return Boxes(values[:, 1:], numbers, np.array([row[3] for row in rows], bool), areas)


def class_numbers(
    used: Sequence[str], reading: Reading, known: Sequence[str] | None, shown: str
) -> tuple[list[str], dict[str, int]]:
    """Return the class names, renamed, and the number of every name that is used.

    Raises:
        UsageError: a name to be replaced that is not there.
        DataError: a class that is not among those that were named, or two that are hardly told apart.
    """
    names = list(known) if known is not None else sorted(set(used))
    for name in reading.rename:
        if name not in names:
            raise UsageError(f"data.rename: no class '{name}'{nearest(name, names)}")
    new_name = {name: reading.rename.get(name, name) for name in names}
    ordered = list(dict.fromkeys(new_name.values() if known is not None else sorted(new_name.values())))
    if reading.class_names is not None:
        unknown = next((new_name[name] for name in used if new_name[name] not in reading.class_names), None)
        if unknown is not None:
            raise DataError(f"{shown}: class '{unknown}' is not in data.class_names")
        ordered = list(reading.class_names)
    check_alike(ordered, shown)
    position = {name: i for i, name in enumerate(ordered)}
    return ordered, {name: position[new_name[name]] for name in set(used)}


def check_alike(names: Sequence[str], shown: str) -> None:
    """Raise DataError for names that differ in nothing but case and spaces: one class, most often, written twice."""
    plain: dict[str, str] = {}
    for name in names:
        other = plain.setdefault(" ".join(name.split()).casefold(), name)
        if other != name:
            raise DataError(
                f"{shown}: classes '{other}' and '{name}' differ in nothing but case and spaces; "
                f"data.rename={{'{name}': '{other}'}} makes them one, or give one another name"
            )


def corner_box(points: Sequence[Sequence[float]], place: str) -> list[float]:
    """Return the box (left, top, right, bottom) around the corners of a polygon. Raises DataError for fewer than 3."""
    if len(points) < 3:
        raise DataError(f"{place}: a polygon of {len(points)} points; it takes 3")
    xs, ys = zip(*points, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]


def turned_box(left: float, top: float, width: float, height: float, degrees: float, about: str) -> list[float]:
    """Return the upright box around one turned clockwise about its "corner" (left, top) or its "middle"."""
    x0, y0 = (left, top) if about == "corner" else (left + width / 2, top + height / 2)
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    corners = [(left + dx * width - x0, top + dy * height - y0) for dx in (0, 1) for dy in (0, 1)]
    xs = [x0 + x * cos - y * sin for x, y in corners]
    ys = [y0 + x * sin + y * cos for x, y in corners]
    return [min(xs), min(ys), max(xs), max(ys)]
