"""Pictures of somebody's own with their labels as they came from a tool: the layout is recognised, the split is made.

Which pictures train and which validate: the lists that `convzoo data split` wrote beside the data; else the folders or
lists of the layout; else a split by class at `val_share`, always the same for the same pictures.
"""

import functools
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from convzoo.config.registry import register
from convzoo.data.datasets.boxed import BoxedImages
from convzoo.data.datasets.image_folder import FolderImages
from convzoo.data.datasets.in_memory import PackedStrings, first_of_shuffled
from convzoo.data.layouts.inventory import LISTS
from convzoo.data.layouts.labels import Labels, Reading
from convzoo.data.layouts.recognise import LAYOUTS, read_labels
from convzoo.data.layouts.split import in_one_split, read_lists, split_pictures
from convzoo.errors import DataError
from convzoo.logs import log

MADE = "made"  # where a split came from; others: "lists", "layout"


@register("dataset")
def own(
    root: Path | None,
    split: str,
    *,
    layout: str | None = None,
    class_names: list[str] | None = None,
    rename: dict[str, str] = {},  # noqa: B006 (never changed; pydantic copies it)
    one_based: bool = True,
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.2,
    val_set: Literal["val", "test"] = "val",
    max_train_images: int | None = None,
) -> BoxedImages | FolderImages:
    """Build a data set of one's own, for detection where there are boxes, else for classification.

    Args:
        layout: voc, coco, yolo, cvat, label_studio, csv or class_folders; None to recognise it.
        class_names: their order; None for that of the format's numbers, else by name.
        rename: new names of classes by their old ones; two with one name are one class.
        one_based: of VOC, pixels count from 1 (see `voc`).
        val_share: of the pictures, where nobody has split them.
        val_set: what the split val is.
    Raises:
        UsageError: no such folder or layout, or a name that is none.
        DataError: as `recognise.read_labels`; no such split; a class of whole pictures in one split only.
    """
    labels = read_labels(root, layout, Reading(class_names, rename, one_based))
    for line in (f"{LAYOUTS[labels.layout].title} ({labels.evidence})", *labels.notes):
        _say_once(f"{labels.folder}: {line}")
    splits, source = splits_of(labels, val_share)
    if split == "train":
        check_classes(labels, splits, source)
    name = split if split == "train" else val_set
    if name == "val" and "val" not in splits and "test" in splits:
        name = "test"
    chosen = np.array([i for i, other in enumerate(splits) if other == name], np.int64)
    if not len(chosen):
        raise DataError(f"{labels.folder}: no pictures for {name}; there are {_counted(splits)}")
    if split == "train":
        chosen = chosen[first_of_shuffled(len(chosen), max_train_images)]
    return subset(labels, chosen, is_ours=source == MADE)


def subset(labels: Labels, chosen: np.ndarray, is_ours: bool = False) -> BoxedImages | FolderImages:
    """Return the data set of some pictures, by their numbers.

    Args:
        is_ours: nobody but we chose them: a run then keeps the list.
    """
    files = [labels.files[i] for i in chosen]
    dataset: BoxedImages | FolderImages
    if labels.objects is None or labels.image_index is None:
        dataset = FolderImages(labels.folder, PackedStrings(files), labels.labels[chosen], labels.class_names)
    else:
        position = np.full(len(labels.files), -1)
        position[chosen] = np.arange(len(chosen))
        mask = position[labels.image_index] >= 0
        dataset = BoxedImages(
            labels.folder,
            files,
            labels.class_names,
            labels.objects.take(mask),
            position[labels.image_index[mask]],
            stated_hw=None if labels.stated_hw is None else labels.stated_hw[chosen],
            image_ids=None if labels.image_ids is None else labels.image_ids[chosen],
            category_ids=labels.category_ids,
            normalised=labels.normalised,
        )
    dataset.split_files = files if is_ours else None
    return dataset


def splits_of(labels: Labels, val_share: float) -> tuple[list[str | None], str]:
    """Return the split of each picture, None of one that is in no list, and who made it: "lists", "layout" or MADE.

    Raises:
        DataError: lists that do not fit, or too few pictures to split.
    """
    lists = read_lists(labels)
    if lists is not None:
        without = lists.count(None)
        if without:
            log.warning(f"{labels.folder}/{LISTS}: {without:,} labelled pictures are in no list and left out")
        return lists, "lists"
    if labels.splits is not None:
        return [*labels.splits], "layout"
    counts = (labels.labels.tobytes(), None if labels.image_index is None else labels.image_index.tobytes())
    return [*_made(_Unsplit(labels, counts), val_share)], MADE


class _Unsplit:
    """Labels as a key of a cache: the same folder, pictures and classes are split once in a process."""

    def __init__(self, labels: Labels, counts: tuple):
        self.labels = labels
        self.key = str(labels.folder), tuple(labels.files), counts

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unsplit) and self.key == other.key


@functools.lru_cache(maxsize=2)
def _made(unsplit: _Unsplit, val_share: float) -> tuple[str, ...]:
    splits = split_pictures(unsplit.labels, val_share)
    log.info(
        f"{unsplit.labels.folder}: nobody split it; {100 * val_share:g} % by class are for validation, what looks "
        f"alike on one side: {_counted(splits)} (`convzoo data split` writes such lists)"
    )
    return tuple(splits)


def check_classes(labels: Labels, splits: list[str | None], source: str) -> None:
    """Say which classes are in training or in validation only.

    Raises:
        DataError: they are classes of whole pictures in a split that somebody made.
    """
    for split, only in in_one_split(labels, splits).items():
        others = f" and {len(only) - 1} more classes" if len(only) > 1 else ""
        line = f"{labels.folder}: class '{only[0]}'{others} in {split} only"
        if labels.objects is None and source != MADE:
            raise DataError(f"{line}; `convzoo data split` shares each class out")
        log.warning(line)


@functools.cache  # the training and the validation pictures come from the same labels
def _say_once(line: str) -> None:
    log.info(line)


def _counted(splits: list[str | None] | list[str]) -> str:
    counts = {split: splits.count(split) for split in ("train", "val", "test")}
    return ", ".join(f"{count:,} {split}" for split, count in counts.items() if count)
