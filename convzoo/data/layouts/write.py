"""Labels of any layout written as one of ours: COCO's 2017 layout where there are boxes, else class folders."""

import json
import math
import os
import shutil
from pathlib import Path, PurePosixPath

import numpy as np

from convzoo.data.datasets.boxed import BoxedImages
from convzoo.data.datasets.own import MADE, splits_of, subset
from convzoo.data.layouts.labels import Labels
from convzoo.errors import DataError
from convzoo.files import written_whole
from convzoo.logs import log, progress
from convzoo.plain import JsonObject

SPLITS = ("train", "val", "test")


def import_labels(labels: Labels, out: Path, val_share: float) -> JsonObject:
    """Write a new folder; what nobody split is split at val_share, or is all for training at 0.

    Raises:
        DataError: a picture that cannot be read, or a class that is no folder's name.
    """
    splits: list[str | None] = [*(labels.splits or ["train"] * len(labels.files))]
    source = MADE
    if val_share:
        splits, source = splits_of(labels, val_share)
    by_split = {name: [i for i, split in enumerate(splits) if split == name] for name in SPLITS}
    by_split = {name: chosen for name, chosen in by_split.items() if chosen}
    out.mkdir(parents=True, exist_ok=True)
    for name, chosen in by_split.items():
        if labels.objects is None:
            _write_class_folders(labels, chosen, out / name)
        else:
            _write_coco(labels, chosen, out, name)
    layout = "image_folder" if labels.objects is None else "coco"
    log.info(f"the split is {'ours' if source == MADE else 'theirs'}")
    return {"layout": layout, "splits": {name: len(chosen) for name, chosen in by_split.items()}}


def _write_class_folders(labels: Labels, chosen: list[int], folder: Path) -> None:
    names: set[str] = set()
    for i in progress(chosen, len(chosen), "import"):
        class_name = labels.class_names[labels.labels[i]]
        if class_name in (".", "..") or "/" in class_name or class_name.startswith("."):
            raise DataError(f"class '{class_name}' cannot be a folder's name; data.rename gives it another")
        _link(labels.folder / labels.files[i], folder / class_name / _free(labels.files[i], class_name, names))


def _write_coco(labels: Labels, chosen: list[int], out: Path, split: str) -> None:
    """Write pictures and instances of a split; a label with a score keeps it, as an annotation's own key."""
    dataset = subset(labels, np.array(chosen, np.int64))
    assert isinstance(dataset, BoxedImages) and labels.image_index is not None
    scores = [labels.scores[labels.image_index == i] for i in chosen]
    names: set[str] = set()
    images, annotations = [], []
    for number in progress(range(len(chosen)), len(chosen), "import"):
        name = _free(labels.files[chosen[number]], "", names)
        _link(Path(dataset.path(number)), out / f"{split}2017" / name)
        height, width = dataset.size_hw(number)
        image_id = dataset.image_id(number)
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        boxes = dataset.boxes(number)
        for j in range(len(boxes)):
            x1, y1, x2, y2 = boxes.xyxy[j].tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": dataset.category_ids[boxes.labels[j]],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(boxes.areas[j]),
                    "iscrowd": int(boxes.crowd[j]),
                    **({} if math.isnan(scores[number][j]) else {"score": float(scores[number][j])}),
                }
            )
    categories = [
        {"id": category_id, "name": name, "supercategory": ""}
        for category_id, name in zip(dataset.category_ids, labels.class_names, strict=True)
    ]
    path = out / f"annotations/instances_{split}2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        document = {"images": images, "annotations": annotations, "categories": categories}
        temporary.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def _free(file: str, folder: str, names: set[str]) -> str:
    """Return the picture's name, with those of its folders before it where two share one."""
    parts = PurePosixPath(file).parts
    for count in range(1, len(parts) + 1):
        name = "_".join(parts[-count:])
        if f"{folder}/{name}".casefold() not in names:
            names.add(f"{folder}/{name}".casefold())
            return name
    raise DataError(f"{file}: its name is taken")


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
