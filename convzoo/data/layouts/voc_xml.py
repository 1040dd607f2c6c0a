"""Pascal VOC's XML files in any folder, beside any pictures, with or without lists."""

from collections.abc import Iterator
from pathlib import PurePosixPath

from convzoo.data.datasets.boxed import read_text
from convzoo.data.datasets.voc import read_annotation
from convzoo.data.layouts.inventory import SPLIT_OF, Inventory
from convzoo.data.layouts.labels import Collector, Labels, Reading
from convzoo.errors import DataError


def files(inventory: Inventory) -> list[str]:
    """Return the XML files whose first element is <annotation>."""
    return [file for file in inventory.others[".xml"] if first_element(inventory, file) == "annotation"]


def first_element(inventory: Inventory, file: str) -> str:
    """Return the name of an XML file's first element, "" where there is none at its beginning."""
    with open(inventory.path(file), "rb") as stream:
        head = stream.read(4096).decode("latin-1")
    while head.lstrip("\ufeffï»¿").lstrip().startswith(("<?", "<!")):  # declarations and comments come first
        head = head.lstrip("\ufeffï»¿").lstrip().partition("-->" if head.lstrip().startswith("<!--") else ">")[2]
    name = head.lstrip("\ufeffï»¿").lstrip().removeprefix("<")
    return name[: next((i for i, letter in enumerate(name) if letter in " \t\r\n/>"), len(name))]


def evidence(inventory: Inventory) -> str | None:
    there = files(inventory)
    return f"{len(there):,} XML files with <annotation>, such as {there[0]}" if there else None


def read(inventory: Inventory, reading: Reading) -> Labels:
    """Read each XML's objects; an object that is difficult is a crowd. Raises DataError."""
    collector, missing, there = Collector(inventory), [], files(inventory)
    lists = _lists(inventory)
    for file in there:
        stem = PurePosixPath(file).stem
        if lists and stem not in lists:
            collector.counts["pictures left out that are in no list for training, validation or test"] += 1
            continue
        annotation = read_annotation(inventory.path(file))
        picture = inventory.picture_called(stem, file)
        if picture is None and annotation.filename:
            picture = inventory.picture(annotation.filename, file)
        if picture is None:
            missing.append((file, annotation.filename or stem))
            continue
        number = collector.picture(picture, f"{inventory.root}/{file}", annotation.size_hw, lists.get(stem))
        for name, (x1, y1, x2, y2), difficult in annotation.objects:
            first = 1 if reading.one_based else 0
            collector.box(number, name, (x1 - first, y1 - first, x2, y2), crowd=difficult)
    if missing:
        raise inventory.missing(missing, len(there))
    return collector.labels("voc", evidence(inventory) or "", reading)


def _lists(inventory: Inventory) -> dict[str, str]:
    """Return the split of each picture, by the lists in ImageSets/Main. Raises DataError for one in two."""
    split_of: dict[str, str] = {}
    for file in inventory.others[".txt"]:
        split = SPLIT_OF.get(PurePosixPath(file).stem)
        if PurePosixPath(file).parts[-3:-1] != ("ImageSets", "Main") or split is None:
            continue
        for line in _lines(inventory, file):
            if split_of.setdefault(line, split) != split:
                raise DataError(f"{inventory.root}/{file}: {line} is in the list of {split_of[line]} too")
    return split_of


def _lines(inventory: Inventory, file: str) -> Iterator[str]:
    return (line.strip() for line in read_text(inventory.path(file)).splitlines() if line.strip())
