"""YOLO's text labels: beside each picture a file with a line `class centre_x centre_y width height` for each object.

Darknet's format (https://github.com/pjreddie/darknet, src/data.c): everything but the class is a share of the picture's
sides. Layouts: images/train/ and labels/train/; train/images/ and train/labels/; or Darknet's lists of pictures
train.txt and val.txt. Class names: classes.txt, obj.names, another *.names, or `names` in data.yaml.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from convzoo.config.registry import register
from convzoo.data.datasets.boxed import BoxedImages, box_areas, check_names, check_root, find_missing, read_text
from convzoo.data.decode import EXTENSIONS
from convzoo.errors import DataError, UsageError
from convzoo.types import Boxes

SPLITS = {
    "train": ("train", "train2017", "train2014"),
    "val": ("val", "valid", "validation", "val2017", "val2014", "test"),
}
PICTURES = ("images", "JPEGImages")  # what Darknet replaces by "labels" in the path of a picture
TOLERANCE = 1e-3  # beyond 0..1: what rounding in other programs leaves


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
    pairs = list(_pairs(root, split))
    names = _names(root) if class_names is None else check_names(class_names, "data.class_names", UsageError)
    rows, image_index, num_labelled = [], [], 0
    for i, (_, label) in enumerate(pairs):
        path = root / label
        if path.is_file():
            num_labelled += 1
            lines = list(_objects(path, len(names)))
            rows += lines
            image_index += [i] * len(lines)
    if pairs and not num_labelled:
        raise DataError(f"{root}: no label file for any of {len(pairs)} pictures of '{split}', such as {pairs[0][1]}")
    values = np.array(rows, float).reshape(-1, 5)
    centre, half = values[:, 1:3], values[:, 3:] / 2
    xyxy = np.concatenate([centre - half, centre + half], 1)
    objects = Boxes(xyxy, values[:, 0].astype(np.int64), np.zeros(len(values), bool), box_areas(xyxy))
    return BoxedImages(
        root,
        [picture for picture, _ in pairs],
        names,
        objects,
        np.array(image_index, np.int64),
        normalised=True,
        limit=max_train_images if split == "train" else None,
    )


def _objects(path: Path, num_classes: int) -> Iterator[tuple[float, ...]]:
    """Yield class, centre, width and height of each object of a label file. Raises DataError with file and line."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        place = f"{path}:{number}"
        if len(fields) != 5:
            raise DataError(f"{place}: {len(fields)} values; a line is: class centre_x centre_y width height")
        if not fields[0].isdecimal() or len(fields[0]) > 9 or int(fields[0]) >= num_classes:
            raise DataError(f"{place}: class {fields[0][:20]}; there are {num_classes} classes, 0 to {num_classes - 1}")
        try:
            values = tuple(map(float, fields[1:]))
        except ValueError:
            raise DataError(f"{place}: not numbers: {' '.join(fields[1:])[:80]}") from None
        if not all(-TOLERANCE <= value <= 1 + TOLERANCE for value in values):  # NaN too
            raise DataError(f"{place}: {' '.join(fields[1:])[:80]}: must be shares of the picture's sides, 0 to 1")
        if min(values[2:]) < 0:
            raise DataError(f"{place}: negative width or height")
        yield int(fields[0]), *values


def _pairs(root: Path, split: str) -> Iterator[tuple[str, str]]:
    """Yield the pictures of a split, each with the place of its label file, both below root."""
    for name in SPLITS[split]:
        for images, labels in ((f"images/{name}", f"labels/{name}"), (f"{name}/images", f"{name}/labels")):
            if (root / images).is_dir():
                if not (root / labels).is_dir():
                    raise DataError(f"{root}: {images} is there, {labels} is not")
                for file in _pictures(root / images):
                    yield f"{images}/{file}", f"{labels}/{os.path.splitext(file)[0]}.txt"
                return
    for name in SPLITS[split]:
        if (root / f"{name}.txt").is_file():
            yield from _listed(root, root / f"{name}.txt")
            return
    raise DataError(f"{root}: no images/{split} with labels/{split}, no {split}/images, no {split}.txt")


def _pictures(folder: Path) -> list[str]:
    pictures = []
    for directory, subfolders, files in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        inside = os.path.relpath(directory, folder)
        for file in files:
            if file.lower().endswith(EXTENSIONS) and not file.startswith("."):
                pictures.append(file if inside == "." else f"{inside}/{file}")
    return sorted(pictures)


def _listed(root: Path, path: Path) -> list[tuple[str, str]]:
    """Return what a list of pictures names: paths below root or, as Darknet writes them, absolute ones."""
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    files = [os.path.normpath(line) for _, line in lines]
    missing = find_missing(root, files)
    if missing is not None:
        number, line = lines[missing]
        raise DataError(f"{path}:{number}: no picture {line}, below {root} or absolute")
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


def _names(root: Path) -> list[str]:
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
    try:
        # The base loader leaves everything text: a class called `no` or `1` stays one.
        document = yaml.load(read_text(path), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise DataError(
            f"{path}:{mark.line + 1 if mark else 1}: not YAML: {getattr(error, 'problem', error)}"
        ) from None
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, dict):
        if sorted(names) != sorted(map(str, range(len(names)))):
            raise DataError(f"{path}: names must be numbered 0 to {len(names) - 1}")
        names = [names[str(i)] for i in range(len(names))]
    return check_names(names, f"{path}: names")
