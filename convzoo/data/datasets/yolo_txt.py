"""YOLO's text labels: beside each picture a file with a line `class centre_x centre_y width height` for each object.

Darknet's format (https://github.com/pjreddie/darknet, src/data.c): everything but the class is a share of the
picture's sides. As Ultralytics has them (https://docs.ultralytics.com/datasets/) a line may end with a score, and may
hold the corners of a polygon, which is read as its box. Layouts: what data.yaml says; images/train/ and labels/train/;
train/images/ and train/labels/; or Darknet's lists of pictures train.txt and val.txt. Class names: classes.txt,
obj.names, another *.names, or `names` in data.yaml.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import yaml

from convzoo.config.registry import register
from convzoo.data.datasets.boxed import BoxedImages, box_areas, check_names, check_root, find_missing, read_text
from convzoo.data.decode import EXTENSIONS
from convzoo.errors import DataError, UsageError
from convzoo.logs import log
from convzoo.plain import JsonObject
from convzoo.types import Boxes

SPLITS = {
    "train": ("train", "train2017", "train2014"),
    "val": ("val", "valid", "validation", "val2017", "val2014"),
    "test": ("test",),
}
PICTURES = ("images", "JPEGImages")  # what Darknet replaces by "labels" in the path of a picture
TOLERANCE = 1e-3  # beyond 0..1: what rounding in other programs leaves
Pair = tuple[str, str]  # a picture and its label file, both below root


class YoloObject(NamedTuple):
    """A line of a label file: class, centre and size as shares of the picture's sides; NaN for no score."""

    label: int
    centre_x: float
    centre_y: float
    width: float
    height: float
    score: float
    is_polygon: bool


@register("dataset")
def yolo_txt(
    root: Path | None, split: str, *, max_train_images: int | None = None, class_names: list[str] | None = None
) -> BoxedImages:
    """Build a data set from YOLO's text files; a picture without a label file has no objects.

    Args:
        class_names: None for those in the folder.
    Raises:
        UsageError: no such folder, or class names that are none.
        DataError: no such layout, no class names, no label file at all, or a wrong line, with file and line.
    """
    root = check_root(root, "images/train/, labels/train/ and so on, or Darknet's train.txt and val.txt")
    pairs = split_pairs(root, split)
    if pairs is None and split == "val":
        pairs = split_pairs(root, "test")
    if pairs is None:
        raise DataError(f"{root}: no images/{split} with labels/{split}, no {split}/images, no {split}.txt")
    names = names_in(root) if class_names is None else check_names(class_names, "data.class_names", UsageError)
    rows: list[YoloObject] = []
    image_index, num_labelled = [], 0
    for i, (_, label) in enumerate(pairs):
        path = root / label
        if path.is_file():
            num_labelled += 1
            lines = read_objects(path, len(names))
            rows += lines
            image_index += [i] * len(lines)
    if pairs and not num_labelled:
        raise DataError(f"{root}: no label file for any of {len(pairs)} pictures of '{split}', such as {pairs[0][1]}")
    for count, what in changed_in_reading(rows):
        log.info(f"{root}: {split}: {count:,} {what}")
    xyxy = corners(rows)
    labels = np.array([row.label for row in rows], np.int64)
    return BoxedImages(
        root,
        [picture for picture, _ in pairs],
        names,
        Boxes(xyxy, labels, np.zeros(len(rows), bool), box_areas(xyxy)),
        np.array(image_index, np.int64),
        normalised=True,
        limit=max_train_images if split == "train" else None,
    )


def corners(rows: Sequence[YoloObject]) -> np.ndarray:
    """Return the corners [M, 4] of objects, as shares of the picture's sides."""
    values = np.array([row[1:5] for row in rows], float).reshape(-1, 4)
    return np.concatenate([values[:, :2] - values[:, 2:] / 2, values[:, :2] + values[:, 2:] / 2], 1)


def changed_in_reading(rows: Sequence[YoloObject]) -> list[tuple[int, str]]:
    """Return how many lines were taken for less than they say, and how."""
    counts = [
        (sum(row.is_polygon for row in rows), "polygons read as their boxes"),
        (sum(not math.isnan(row.score) for row in rows), "labels have a score, so a program made them"),
    ]
    return [(count, what) for count, what in counts if count]


def read_objects(path: Path, num_classes: int) -> list[YoloObject]:
    """Return the objects of a label file. Raises DataError with file and line."""
    objects = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        fields = line.split()
        if fields:
            objects.append(_object(fields, f"{path}:{number}", num_classes))
    return objects


def _object(fields: list[str], place: str, num_classes: int) -> YoloObject:
    """Read one line: 5 values, 6 with a score; 7, 9 ... of a polygon of three points or more, 8, 10 ... with one."""
    if len(fields) < 5:
        raise DataError(f"{place}: {len(fields)} values; a line is: class centre_x centre_y width height [score]")
    if not fields[0].isdecimal() or len(fields[0]) > 9 or int(fields[0]) >= num_classes:
        raise DataError(f"{place}: class {fields[0][:20]}; there are {num_classes} classes, 0 to {num_classes - 1}")
    shown = " ".join(fields[1:])[:80]
    try:
        values = list(map(float, fields[1:]))
    except ValueError:
        raise DataError(f"{place}: not numbers: {shown}") from None
    if not all(-TOLERANCE <= value <= 1 + TOLERANCE for value in values):  # NaN too
        pixels = " (pixels?)" if max(values) > 2 else ""
        raise DataError(f"{place}: {shown}: must be shares of the picture's sides, 0 to 1{pixels}")
    score = values.pop() if len(values) % 2 else math.nan
    if len(values) > 4:
        x1, y1, x2, y2 = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
        return YoloObject(int(fields[0]), (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, score, True)
    if min(values[2:]) < 0:
        raise DataError(f"{place}: negative width or height")
    x, y, width, height = values
    return YoloObject(int(fields[0]), x, y, width, height, score, False)


def split_pairs(root: Path, split: str) -> list[Pair] | None:
    """Return the pictures of a split, each with its label file, None where the folder has no such split.

    Raises:
        DataError: pictures without their folder of labels, or a list or data.yaml that names what is not there.
    """
    declared = _declared(root, split)
    if declared is not None:
        return declared
    for name in SPLITS[split]:
        for images, labels in ((f"images/{name}", f"labels/{name}"), (f"{name}/images", f"{name}/labels")):
            if (root / images).is_dir():
                if not (root / labels).is_dir():
                    raise DataError(f"{root}: {images} is there, {labels} is not")
                files = _pictures(root / images)
                return [(f"{images}/{file}", f"{labels}/{os.path.splitext(file)[0]}.txt") for file in files]
    lists = (root / f"{name}.txt" for name in SPLITS[split])
    path = next((path for path in lists if path.is_file()), None)
    return None if path is None else _listed(root, path)


def _declared(root: Path, split: str) -> list[Pair] | None:
    """Return what data.yaml says is in a split: a folder, a list of pictures, or several of both.

    Paths are below `path`, or below data.yaml where that is not there: it most often is another machine's.
    """
    document = _data_yaml(root)
    places = document.get(split, document.get("valid") if split == "val" else None)
    if not places:
        return None
    base = Path(str(document.get("path") or "."))
    base = next((folder for folder in (root / base, root / base.name) if folder.is_dir()), root)
    pairs: list[Pair] = []
    for place in [places] if isinstance(places, str) else places:
        # Roboflow's exports say ../train/images for what is train/images beside data.yaml.
        tries = (base / str(place), base / str(place).removeprefix("../"), root / str(place).removeprefix("../"))
        path = next((path for path in tries if path.exists()), None)
        if path is None:
            if split == "test":
                return None  # nobody asked for it
            raise DataError(f"{root}/data.yaml: {split}: no {place} below {base}")
        if path.is_dir():
            inside = os.path.relpath(path, root)
            files = [os.path.normpath(os.path.join(inside, file)) for file in _pictures(path)]
            pairs += with_label_files(root, files)
        else:
            pairs += _listed(root, path)
    return pairs


def _data_yaml(root: Path) -> JsonObject:
    """Return what data.yaml says, all values as texts; nothing where there is none. Raises DataError."""
    path = root / "data.yaml"
    if not path.is_file():
        return {}
    try:
        # The base loader leaves everything text: a class called `no` or `1` stays one.
        document = yaml.load(read_text(path), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise DataError(
            f"{path}:{mark.line + 1 if mark else 1}: not YAML: {getattr(error, 'problem', error)}"
        ) from None
    return document if isinstance(document, dict) else {}


def _pictures(folder: Path) -> list[str]:
    pictures = []
    for directory, subfolders, files in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        inside = os.path.relpath(directory, folder)
        for file in files:
            if file.lower().endswith(EXTENSIONS) and not file.startswith("."):
                pictures.append(file if inside == "." else f"{inside}/{file}")
    return sorted(pictures)


def _from_above(root: Path, files: list[str]) -> list[str] | None:
    """Return paths below root of such as begin at a folder above it, as CVAT's `data/`; None unless all are there."""
    try:
        shared = PurePosixPath(os.path.commonpath(map(os.path.dirname, files))).parts
    except ValueError:  # some are absolute
        return None
    for depth in range(1, len(shared) + 1):
        below = [str(PurePosixPath(*PurePosixPath(file).parts[depth:])) for file in files]
        if find_missing(root, below) is None:
            return below
    return None


def _listed(root: Path, path: Path) -> list[tuple[str, str]]:
    """Return what a list of pictures names: paths below root or, as Darknet writes them, absolute ones."""
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    files = [os.path.normpath(line) for _, line in lines]
    missing = find_missing(root, files)
    shorter = None if missing is None else _from_above(root, files)
    if shorter is not None:
        files = shorter
    elif missing is not None:
        number, line = lines[missing]
        raise DataError(f"{path}:{number}: no picture {line}, below {root} or absolute")
    return with_label_files(root, files)


def with_label_files(root: Path, files: Sequence[str]) -> list[Pair]:
    """Return pictures, each with the place of its label file, whether that is there or not."""
    label_folders: dict[str, str] = {}
    pairs = []
    for file in files:
        folder, name = os.path.split(file)
        if folder not in label_folders:
            label_folders[folder] = _label_folder(root, folder)
        pairs.append((file, os.path.join(label_folders[folder], os.path.splitext(name)[0] + ".txt")))
    return pairs


def _label_folder(root: Path, folder: str) -> str:
    """Return where the labels of a folder of pictures are: images/ replaced by labels/, else beside the pictures."""
    parts = list(Path(folder).parts)
    last = max((i for i, part in enumerate(parts) if part in PICTURES), default=None)
    if last is not None:
        replaced = os.path.join(*parts[:last], "labels", *parts[last + 1 :])
        if (root / replaced).is_dir():
            return replaced
    return folder


def names_in(root: Path) -> list[str]:
    """Return the class names that lie in the folder. Raises DataError where there are none, or several."""
    lists = [root / "classes.txt", *sorted(root.glob("*.names"))]
    lists = [path for path in lists if path.is_file()]
    if (root / "obj.names") in lists:
        lists = [root / "obj.names"]
    if len(lists) > 1:
        raise DataError(f"{root}: several lists of class names: {', '.join(path.name for path in lists)}")
    if lists:
        return check_names([line.strip() for line in read_text(lists[0]).rstrip().splitlines()], str(lists[0]))
    path = root / "data.yaml"
    if not path.is_file():
        raise DataError(
            f"{root}: no class names: no classes.txt, obj.names or data.yaml; data.class_names=[...] gives them"
        )
    names = _data_yaml(root).get("names")
    if isinstance(names, dict):
        if sorted(names) != sorted(map(str, range(len(names)))):
            raise DataError(f"{path}: names must be numbered 0 to {len(names) - 1}")
        names = [names[str(i)] for i in range(len(names))]
    return check_names(names, f"{path}: names")
