"""YOLO's text labels wherever they lie: by data.yaml, by lists, in split folders, or beside each other unsplit."""

import os
from pathlib import PurePosixPath

from convzoo.data.datasets.boxed import check_names, read_text
from convzoo.data.datasets.yolo_txt import (
    SPLITS,
    Pair,
    changed_in_reading,
    corners,
    names_in,
    read_objects,
    split_pairs,
    with_label_files,
)
from convzoo.data.layouts.inventory import Inventory
from convzoo.data.layouts.labels import Collector, Labels, Reading
from convzoo.errors import DataError, UsageError

LOOKED_AT = 50  # text files that are opened until one is a label file


def evidence(inventory: Inventory) -> str | None:
    there = _named_as_pictures(inventory)
    first = next((file for file in there[:LOOKED_AT] if _is_label_file(inventory, file)), None)
    if first is None:
        return None
    return f"{len(there):,} text files named as pictures, such as {first} with its line of class and box"


def first_line(inventory: Inventory) -> tuple[str, str] | None:
    """Return the first text file that is named as a picture and how it begins, None without one or an empty one."""
    file = next(iter(_named_as_pictures(inventory)), None)
    line = read_text(inventory.path(file)).strip().partition("\n")[0] if file else ""
    return (file, line) if file and line else None


def _named_as_pictures(inventory: Inventory) -> list[str]:
    stems = {PurePosixPath(picture).stem for picture in inventory.pictures}
    return [file for file in inventory.others[".txt"] if PurePosixPath(file).stem in stems]


def _is_label_file(inventory: Inventory, file: str) -> bool:
    try:
        fields = read_text(inventory.path(file)).lstrip().partition("\n")[0].split()
        return len(fields) >= 5 and fields[0].isdecimal() and all(map(_is_number, fields[1:]))
    except DataError:
        return False


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read(inventory: Inventory, reading: Reading) -> Labels:
    """Read the label file of every picture; a picture without one has no objects. Raises DataError."""
    collector = Collector(inventory)
    names = (
        check_names(list(reading.class_names), "data.class_names", UsageError)
        if reading.class_names
        else _names(inventory)
    )
    pairs = _pairs(inventory)
    label_files, without, rows = set(), 0, []
    for split, picture, label in pairs:
        number = collector.picture(picture, str(inventory.root), split=split)
        if label is None:
            without += 1
            continue
        label_files.add(label)
        objects = read_objects(inventory.path(label), len(names))
        rows += objects
        for row, xyxy in zip(objects, corners(objects).tolist(), strict=True):
            collector.box(number, names[row.label], xyxy, row.score)
    lost = [file for file in inventory.others[".txt"] if file not in label_files and _is_label_file(inventory, file)]
    if lost:
        raise inventory.missing([(file, PurePosixPath(file).stem) for file in lost], len(label_files) + len(lost))
    for count, what in changed_in_reading(rows):
        if "score" not in what:  # the collector says so of every layout
            collector.counts[what] = count
    collector.counts["pictures without a label file: they have no objects"] = without
    return collector.labels("yolo", evidence(inventory) or "", reading, names, normalised=True)


def _names(inventory: Inventory) -> list[str]:
    """Return the class names of the folder, or of a classes.txt beside the labels. Raises DataError."""
    below = [file for file in inventory.others[".txt"] if PurePosixPath(file).name == "classes.txt"]
    if len(below) == 1:
        return names_in(inventory.path(below[0]).parent)
    return names_in(inventory.root)


def _pairs(inventory: Inventory) -> list[tuple[str | None, str, str | None]]:
    """Return split, picture and label file, None where there is no such, of every picture."""
    there = set(inventory.others[".txt"])
    by_split = {split: split_pairs(inventory.root, split) for split in SPLITS}
    if any(by_split.values()):
        rows = [(split, *pair) for split, pairs in by_split.items() for pair in pairs or []]
        return [(split, *_below(inventory, picture, label, there)) for split, picture, label in rows]
    stems: dict[str, list[str]] = {}
    for file in inventory.others[".txt"]:
        stems.setdefault(PurePosixPath(file).stem, []).append(file)
    pairs: list[Pair] = with_label_files(inventory.root, inventory.pictures)
    rows = []
    for picture, label in pairs:
        others = stems.get(PurePosixPath(picture).stem, [])
        rows.append((None, picture, label if label in there else others[0] if len(others) == 1 else None))
    return rows


def _below(inventory: Inventory, picture: str, label: str, there: set[str]) -> tuple[str, str | None]:
    """Return both as paths below root; Darknet's lists may name them absolutely."""
    if os.path.isabs(picture):
        root = str(inventory.root.resolve())
        picture, label = (os.path.relpath(path, root) for path in (os.path.realpath(picture), os.path.realpath(label)))
    return picture, label if label in there else None
