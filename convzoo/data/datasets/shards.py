"""Tar shards in webdataset's layout (`layouts.webdataset`), local or behind a URL; in memory are places and labels.

Samples are numbered by class and name, as those of folders are, however they were packed: order, resuming and ranks
are a folder's. classes.txt beside the shards, a name a line, says what the numbers are called.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from convzoo.config.registry import register
from convzoo.data.datasets.boxed import BoxedImages, check_names
from convzoo.data.datasets.in_memory import PackedStrings, first_of_shuffled
from convzoo.data.decode import decode_rgb
from convzoo.data.imagenet import wnids
from convzoo.data.layouts.inventory import SPLIT_OF
from convzoo.data.layouts.webdataset import KIND, Row, rows_of
from convzoo.data.sampler import window_order
from convzoo.errors import DataError, UsageError
from convzoo.storage import shown
from convzoo.storage.shards import Shard, beside, find_shards, indexed
from convzoo.types import Boxes, Sample

NAMES = "classes.txt"


class Members:
    """Where the pictures of a data set lie.

    Attributes:
        shard_of, starts, sizes: [N] int64, of each picture the number of its shard, its first byte, how many there are.
        window: pictures are shuffled within so many places of a random order of the shards; None for all of them.
    """

    def __init__(self, shards: list[Shard], places: np.ndarray, window: int | None):
        self.shards, self.window = shards, window
        self.shard_of, self.starts, self.sizes = places.reshape(-1, 3).T

    def read(self, index: int) -> bytes:
        return self.shards[self.shard_of[index]].read(int(self.starts[index]), int(self.sizes[index]))

    def order(self, seed: int, epoch: int) -> np.ndarray | None:
        """Return the order of an epoch, None for that of other data sets."""
        return None if self.window is None else window_order(self.shard_of, self.starts, self.window, seed, epoch)


class ShardImages:
    """Pictures with their classes in shards.

    Attributes:
        places: where the pictures lie.
        is_whole_root: whether no shard is named after a split, so that they are either.
    """

    def __init__(self, root: str, files: list[str], labels: np.ndarray, class_names: list[str], places: Members):
        self.root, self.files, self.places = root, PackedStrings(files), places
        self.labels, self.class_names = labels, class_names
        self.is_whole_root = False

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        return self.files[index]

    def encoded(self, index: int) -> bytes:
        """Return the picture's file. Raises DataError, ConvzooError."""
        return self.places.read(index)

    def load(self, index: int) -> Sample:
        image = decode_rgb(self.encoded(index), self.path(index))
        return Sample(image, int(self.labels[index]), index, self.path(index), (image.shape[1], image.shape[2]))


class ShardBoxes(BoxedImages):
    """Pictures with their boxes in shards."""

    def __init__(self, root: str, files: list[str], names: list[str], objects: Boxes, index: np.ndarray, at: Members):
        super().__init__(Path(), files, names, objects, index)
        self.root, self.places, self.is_whole_root = root, at, False

    def encoded(self, index: int) -> bytes:
        return self.places.read(index)

    def _measured_hw(self, index: int) -> tuple[int, int]:
        shape = decode_rgb(self.encoded(index), self.path(index)).shape
        return shape[1], shape[2]


@register("dataset")
def shards(
    root: Path | None,
    split: str,
    *,
    class_names: list[str] | Literal["imagenet"] | None = None,
    shuffle: Literal["full", "shard_window"] = "full",
    window: Annotated[int, Field(gt=0)] = 10_000,
    max_train_images: int | None = None,
) -> ShardImages | ShardBoxes:
    """Build a data set from tar shards.

    Args:
        root: a pattern such as train-{000000..000007}.tar, or a folder of shards, local or a URL.
        class_names: their order; "imagenet" for the WordNet ids, sorted; None for classes.txt, else by name or number.
        shuffle: the order of training; "shard_window" reads shards one after the other and shuffles within `window`.
    Raises:
        UsageError: no path, or no shards there.
        DataError: no shard of the split, or whatever is wrong in one, with its member.
    """
    if root is None:
        raise UsageError("this data set needs tar shards, such as train-{000..007}.tar, or a folder of them", ("data",))
    found = find_shards(root)
    if not found:
        raise UsageError(f"{shown(root)}: no tar shards NAME-000000.tar there", ("data",))
    chosen, is_whole_root = _of_split(found, split, shown(root))
    rows: list[tuple[int, Row]] = []
    for number, plain in enumerate(indexed(chosen, rows_of, KIND)):
        rows += [(number, Row(*row)) for row in plain]
    if not rows:
        raise DataError(f"{shown(root)}: no pictures in its {len(chosen)} shards")
    names = _class_names(class_names, chosen, rows)
    limit = max_train_images if split == "train" else None
    dataset = _built(shown(root), chosen, rows, names, limit, window if shuffle == "shard_window" else None)
    dataset.is_whole_root = is_whole_root
    return dataset


def _of_split(found: list[Shard], split: str, root: str) -> tuple[list[Shard], bool]:
    """Return the shards of a split by the words of their names, all where none names one: that is either split."""
    splits = [_split_of(shard) for shard in found]
    if not any(splits):
        return found, True
    name = "test" if split == "val" and "val" not in splits else split
    chosen = [shard for shard, other in zip(found, splits, strict=True) if other == name]
    if not chosen:
        there = ", ".join(sorted({other for other in splits if other}))
        raise DataError(f"{root}: no shards for {split}; there are some for {there}", (f"{split}_data", "data"))
    return chosen, False


def _split_of(shard: Shard) -> str | None:
    *_, folder, name = ["", *shard.place.split("/")]
    words = name.casefold().replace("_", "-").replace(".", "-").split("-")
    return next((SPLIT_OF[word] for word in [*words, folder.casefold()] if word in SPLIT_OF), None)


def _class_names(given: list[str] | str | None, chosen: list[Shard], rows: list[tuple[int, Row]]) -> list[str]:
    """Return the names in the order of the numbers. Raises DataError."""
    if given == "imagenet":
        return wnids()
    if given is not None:
        return check_names(given, "data.class_names", UsageError)
    text = beside(chosen[0], NAMES)
    if text is not None:
        lines = text.decode("utf-8-sig", "replace").splitlines()
        return check_names(lines, f"{chosen[0].shown.rpartition('/')[0]}/{NAMES}")
    found: set[int | str] = set()
    for _, row in rows:
        found.update(row.label["labels"] if isinstance(row.label, dict) else [row.label])
    numbers = [label for label in found if isinstance(label, int)]
    if not numbers:
        return sorted(map(str, found))
    if len(numbers) < len(found):
        raise DataError(f"{chosen[0].shown}: some labels are numbers, others names; {NAMES} beside it says the numbers")
    return [str(number) for number in range(max(numbers) + 1)]


def _built(
    root: str, chosen: list[Shard], rows: list[tuple[int, Row]], names: list[str], limit: int | None, window: int | None
) -> ShardImages | ShardBoxes:
    """Number the samples by class and name, and keep a fixed choice of them. Raises DataError."""
    number_of: dict[int | str, int] = {name: i for i, name in enumerate(names)}

    def classes(number: int, row: Row) -> list[int]:
        labels = row.label["labels"] if isinstance(row.label, dict) else [row.label]
        known = [label if isinstance(label, int) else number_of.get(label, len(names)) for label in labels]
        for label, known_label in zip(labels, known, strict=True):
            if known_label >= len(names):
                shard = chosen[number].shown
                raise DataError(f"{shard}/{row.name}: class {label} is none of the {len(names)} that there are")
        return known

    boxed = {isinstance(row.label, dict) for _, row in rows}
    if len(boxed) > 1:
        raise DataError(f"{root}: some pictures have boxes, others a class")
    entries = [(classes(number, row), number, row) for number, row in rows]
    entries.sort(key=lambda entry: (*([] if True in boxed else entry[0]), entry[2].name, entry[1]))
    entries = [entries[i] for i in first_of_shuffled(len(entries), limit)]
    files = [f"{chosen[number].shown}/{row.name}" for _, number, row in entries]
    places = Members(chosen, np.array([(number, row.start, row.size) for _, number, row in entries], np.int64), window)
    labels = np.array([label for known, *_ in entries for label in known], np.int64)
    if True not in boxed:
        return ShardImages(root, files, labels, names, places)
    xyxy, crowd, areas = (
        [value for *_, row in entries for value in row.label[key]] for key in ("boxes", "crowd", "areas")
    )
    objects = Boxes(np.array(xyxy, np.float64).reshape(-1, 4), labels, np.array(crowd, bool), np.array(areas, float))
    index = np.repeat(np.arange(len(entries)), [len(known) for known, *_ in entries])
    return ShardBoxes(root, files, names, objects, index, places)
