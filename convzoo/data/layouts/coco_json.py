"""COCO's JSON of instances under any name, with the pictures in any folder."""

import json
import math
import re
from pathlib import PurePosixPath

import numpy as np

from convzoo.data.datasets.coco import read_categories, read_document, read_images, read_objects
from convzoo.data.layouts.inventory import SPLIT_OF, Inventory, split_in
from convzoo.data.layouts.labels import Collector, Labels, Reading
from convzoo.errors import DataError

KEYS = ("images", "annotations", "categories")
HEAD = 1 << 16  # bytes of a large file in which two of the keys are looked for


def files(inventory: Inventory) -> list[str]:
    """Return the JSON files that are an object with images, annotations and categories."""
    return [file for file in inventory.others[".json"] if _is_instances(inventory, file)]


def _is_instances(inventory: Inventory, file: str) -> bool:
    with open(inventory.path(file), "rb") as stream:
        head = stream.read(HEAD)
    if not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return False
    if len(head) == HEAD:
        return any(f'"{key}"'.encode() in head for key in (*KEYS, "file_name", "bbox"))
    try:
        document = json.loads(head)
    except (ValueError, RecursionError):
        return b'"images"' in head or b'"bbox"' in head  # a damaged one is named when it is read
    return isinstance(document, dict) and "images" in document and "annotations" in document


def evidence(inventory: Inventory) -> str | None:
    there = files(inventory)
    if not there:
        return None
    return f"{there[0]} with images, annotations and categories" + (f" and {len(there) - 1} more" * (len(there) > 1))


def read(inventory: Inventory, reading: Reading) -> Labels:
    """Read all JSON files of the folder; several are told apart by the split in their names.

    Raises:
        DataError: several without a split, or with other categories, or anything wrong in one.
    """
    collector, there = Collector(inventory), files(inventory)
    splits = {file: _split(file) for file in there}
    if len(there) > 1 and not all(splits.values()):
        raise DataError(f"{inventory.root}: {' and '.join(there[:2])} are both COCO's instances, for no split by name")
    first: tuple[list[str], list[int]] | None = None
    for file in there:
        path = inventory.path(file)
        document = read_document(path)
        categories = read_categories(path, document)
        first = first or categories
        if categories != first:
            raise DataError(f"{path}: other categories than in {there[0]}")
        _add(collector, file, document, categories[1], categories[0], splits[file])
    assert first is not None
    return collector.labels("coco", evidence(inventory) or "", reading, *first)


def _split(file: str) -> str | None:
    words = re.split(r"[^a-z0-9]+", PurePosixPath(file).stem.casefold())
    return next((SPLIT_OF[word] for word in words if word in SPLIT_OF), None) or split_in(file)


def _add(
    collector: Collector, file: str, document: dict, category_ids: list[int], names: list[str], split: str | None
) -> None:
    inventory = collector.inventory
    path = inventory.path(file)
    image_ids, references, stated_hw = read_images(path, document)
    objects, image_index = read_objects(path, document, image_ids, category_ids)
    pictures = [inventory.picture(reference, file) for reference in references]
    missing = [(file, reference) for reference, picture in zip(references, pictures, strict=True) if picture is None]
    if missing:
        raise inventory.missing(missing, len(references))
    numbers = [
        collector.picture(picture or "", f"{path}: image {image_id}", (int(height), int(width)), split, image_id)
        for picture, image_id, (height, width) in zip(pictures, image_ids.tolist(), stated_hw, strict=True)
    ]
    scores = [_score(entry, f"{path}: annotation {entry['id']}") for entry in document["annotations"]]
    for i in range(len(objects)):
        collector.box(
            numbers[int(image_index[i])],
            names[int(objects.labels[i])],
            objects.xyxy[i].tolist(),
            scores[i],
            bool(objects.crowd[i]),
            float(objects.areas[i]),
        )


def _score(entry: dict, place: str) -> float:
    score = entry.get("score", math.nan)
    if type(score) not in (int, float) or not (np.isnan(score) or 0 <= score <= 1):
        raise DataError(f"{place}: score must be a number in 0..1, not {str(score)[:40]}")
    return float(score)
