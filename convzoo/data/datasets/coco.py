"""COCO's instance annotations: one JSON file and one folder of pictures for each split.

Lin et al. 2014 (arXiv:1405.0312); the format is described at https://cocodataset.org/#format-data. Layouts: of 2017
(train2017/ val2017/ annotations/instances_train2017.json ...), of 2014, and train/ val/ annotations/train.json or
instances_train.json. Classes are numbered by rising category id, pictures come by rising image id.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path, PureWindowsPath

import numpy as np

from convzoo.config.registry import register
from convzoo.data.datasets.boxed import BoxedImages, box_areas, check_names, check_root, find_missing, read_text
from convzoo.errors import DataError
from convzoo.plain import JsonObject, JsonValue
from convzoo.types import Boxes

ANNOTATIONS = (
    "annotations/instances_{split}2017.json",
    "annotations/instances_{split}2014.json",
    "annotations/instances_{split}.json",
    "annotations/{split}.json",
)
IMAGES = ("{split}2017", "{split}2014", "{split}")
LARGEST = 1e9  # beyond any picture: catches NaN, infinity and numbers that no array holds


@register("dataset")
def coco(
    root: Path | None,
    split: str,
    *,
    max_train_images: int | None = None,
    annotations: str | None = None,
    images: str | None = None,
) -> BoxedImages:
    """Build a COCO data set; pictures without objects are kept.

    Args:
        annotations: the JSON file below root where it has another name; {split} in it becomes train or val.
        images: the folder of the pictures, likewise.
    Raises:
        UsageError: no such folder.
        DataError: no such layout, or anything wrong in the JSON, with the id of the annotation or image.
    """
    root = check_root(root, "annotations/instances_train2017.json and train2017/, or the like")
    file = _find(root, split, [annotations] if annotations else ANNOTATIONS, Path.is_file, "annotations")
    year = next((year for year in ("2017", "2014") if year in file.name), "")
    folders = sorted(IMAGES, key=lambda name: not (year and year in name))  # two years may lie side by side
    folder = _find(root, split, [images] if images else folders, Path.is_dir, "images")
    document = read_document(file)
    names, category_ids = read_categories(file, document)
    image_ids, files, stated_hw = read_images(file, document)
    missing = find_missing(folder, files)
    if missing is not None:
        raise DataError(f"{file}: image {image_ids[missing]}: no picture {folder / files[missing]}")
    objects, image_index = read_objects(file, document, image_ids, category_ids)
    return BoxedImages(
        folder,
        files,
        names,
        objects,
        image_index,
        stated_hw=stated_hw,
        image_ids=image_ids,
        category_ids=category_ids,
        limit=max_train_images if split == "train" else None,
    )


def _find(root: Path, split: str, names: Sequence[str], right: Callable[[Path], bool], key: str) -> Path:
    paths = [root / name.replace("{split}", split) for name in names]
    first = next((path for path in paths if right(path)), None)
    if first is None:
        looked = ", ".join(str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in paths)
        raise DataError(f"{root}: no {looked}; data.{key}=NAME says where it is")
    return first


def read_document(file: Path) -> JsonObject:
    """Read a JSON of instances without its outlines. Raises DataError where it is none."""

    def without_outline(entry: JsonObject) -> JsonObject:
        # Nine tenths of COCO's file are outlines; dropped while it is read they never fill the memory.
        entry.pop("segmentation", None)
        return entry

    try:
        document = json.loads(read_text(file), object_hook=without_outline)
    except json.JSONDecodeError as error:
        where = f"{file}:{error.lineno}: column {error.colno}"
        raise DataError(f"{where}: damaged JSON, perhaps cut short: {error.msg}") from None
    except (RecursionError, ValueError):
        raise DataError(f"{file}: not the JSON of a data set") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise DataError(f"{file}: no list '{key}'; COCO's instances have images, annotations and categories")
    return document


class _Entries:
    """The entries of one list of the document with what was found wrong in them."""

    def __init__(self, file: Path, document: JsonObject, key: str, kind: str):
        self.place = f"{file}: {kind}"
        self.entries = document[key]
        self.ids = [self._id(number, entry) for number, entry in enumerate(self.entries)]
        if len(set(self.ids)) != len(self.ids):
            seen: set[int] = set()
            twice = next(entry_id for entry_id in self.ids if entry_id in seen or seen.add(entry_id))
            raise DataError(f"{self.place} {twice}: the id is there twice")

    def _id(self, number: int, entry: object) -> int:
        if not isinstance(entry, dict):
            raise DataError(f"{self.place} number {number}: not an object with keys but {str(entry)[:40]}")
        if "id" not in entry:
            raise DataError(f"{self.place} number {number}: no 'id'")
        if not _is_whole(entry["id"]):
            raise DataError(f"{self.place} number {number}: id must be a whole number, not {_short(entry['id'])}")
        return entry["id"]

    def value(self, number: int, key: str) -> JsonValue:
        entry = self.entries[number]
        if key not in entry:
            raise self.wrong(number, f"no '{key}'")
        return entry[key]

    def wrong(self, number: int, problem: str) -> DataError:
        return DataError(f"{self.place} {self.ids[number]}: {problem}")


def _is_whole(value: object) -> bool:
    return type(value) is int and abs(value) < 2**63


def _is_number(value: JsonValue) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_categories(file: Path, document: JsonObject) -> tuple[list[str], list[int]]:
    """Return class names and category ids, by rising id. Raises DataError."""
    categories = _Entries(file, document, "categories", "category")
    names = {category_id: categories.value(number, "name") for number, category_id in enumerate(categories.ids)}
    category_ids = sorted(names)
    return check_names([names[category_id] for category_id in category_ids], f"{file}: categories"), category_ids


def read_images(file: Path, document: JsonObject) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Return ids [N], file names and stated sizes [N, 2], by rising id. Raises DataError."""
    images = _Entries(file, document, "images", "image")
    files, sizes = [], np.zeros((len(images.ids), 2), np.int64)
    for number, entry in enumerate(images.entries):
        name = images.value(number, "file_name")
        path = PureWindowsPath(name) if isinstance(name, str) else None  # it knows both kinds of slashes
        if not path or not path.name or path.root or path.drive or ".." in path.parts or "\0" in name:
            raise images.wrong(number, f"file_name must be a path inside the folder of pictures, not {_short(name)}")
        files.append(name)
        size = entry.get("height"), entry.get("width")
        if size == (None, None):
            continue
        if not all(_is_whole(side) and 0 < side < LARGEST for side in size):
            raise images.wrong(number, f"height and width must be whole numbers above 0, not {_short(list(size))}")
        sizes[number] = size
    image_ids = np.array(images.ids, np.int64)
    order = np.argsort(image_ids)
    return image_ids[order], [files[i] for i in order], sizes[order]


def read_objects(
    file: Path, document: JsonObject, image_ids: np.ndarray, category_ids: list[int]
) -> tuple[Boxes, np.ndarray]:
    """Return all objects, as they are in the file, and the position of each one's image. Raises DataError."""
    annotations = _Entries(file, document, "annotations", "annotation")
    image_of = {image_id: i for i, image_id in enumerate(image_ids.tolist())}
    label_of = {category_id: i for i, category_id in enumerate(category_ids)}
    count = len(annotations.ids)
    ltwh, areas, crowd = np.empty((count, 4)), np.empty(count), np.zeros(count, bool)
    labels, image_index = np.empty(count, np.int64), np.empty(count, np.int64)
    for number, entry in enumerate(annotations.entries):
        image, category = annotations.value(number, "image_id"), annotations.value(number, "category_id")
        if not _is_whole(image) or image not in image_of:
            raise annotations.wrong(number, f"unknown image_id {_short(image)}")
        if not _is_whole(category) or category not in label_of:
            raise annotations.wrong(number, f"unknown category_id {_short(category)}")
        image_index[number], labels[number] = image_of[image], label_of[category]
        ltwh[number] = _bbox(annotations, number)
        area, crowded = entry.get("area"), entry.get("iscrowd", 0)
        if area is not None and not (_is_number(area) and area >= 0):
            raise annotations.wrong(number, f"area must be a number not below 0, not {_short(area)}")
        if crowded not in (0, 1):
            raise annotations.wrong(number, f"iscrowd must be 0 or 1, not {_short(crowded)}")
        areas[number], crowd[number] = math.nan if area is None else area, bool(crowded)
    xyxy = np.concatenate([ltwh[:, :2], ltwh[:, :2] + ltwh[:, 2:]], 1)
    return Boxes(xyxy, labels, crowd, np.where(np.isnan(areas), box_areas(xyxy), areas)), image_index


def _bbox(annotations: _Entries, number: int) -> list[float]:
    """Return left, top, width and height; a side of 0 is allowed, the real COCO has such."""
    bbox = annotations.value(number, "bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise annotations.wrong(number, f"bbox must be 4 finite numbers, not {_short(bbox)}")
    if min(bbox[2:]) < 0:
        raise annotations.wrong(number, f"bbox has a negative width or height: {_short(bbox)}")
    return bbox
