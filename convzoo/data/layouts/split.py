"""Share pictures out to training, validation and test: every class in proportion, what looks alike on one side."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from convzoo.data.datasets.boxed import read_text
from convzoo.data.layouts.alike import HASH_BYTES, alike_groups, perceptual_hash
from convzoo.data.layouts.inventory import LISTS
from convzoo.data.layouts.labels import Labels
from convzoo.errors import DataError, UsageError
from convzoo.files import written_whole
from convzoo.logs import progress

SPLITS = ("train", "val", "test")


def picture_groups(folder: Path, files: Sequence[str]) -> np.ndarray:
    """Return the group [N] of pictures that look alike; one that cannot be read is alone."""
    hashes = np.zeros((len(files), HASH_BYTES), np.uint8)
    readable = []
    for i, file in enumerate(progress(files, len(files), "compare")):
        try:
            hashes[i] = perceptual_hash(str(folder / file))
            readable.append(i)
        except DataError:
            continue  # whoever loads it says so
    groups = np.arange(len(files))
    groups[readable] = np.array(readable, np.int64)[alike_groups(hashes[readable])] if readable else 0
    return groups


def stratified(counts: np.ndarray, groups: np.ndarray, names: Sequence[str], shares: Sequence[float]) -> np.ndarray:
    """Return the part [N] of each picture, all of a group in one, each class in proportion to the shares.

    Iterative stratification (Sechidis et al. 2011, "On the Stratification of Multi-Label Data", algorithm 1) over
    groups: the class that the fewest undecided groups show comes first, and each of them goes to the part that lacks
    the most of it. What shows nothing goes where pictures are lacking.

    Args:
        counts: [N, K] how often each picture shows each class.
        names: of the pictures; equal wishes are decided by a hash of them, so the answer is always the same.
        shares: of the parts, adding up to 1.
    """
    keys, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    shown = np.zeros((len(keys), counts.shape[1]))
    np.add.at(shown, index, counts)
    order = [hashlib.sha1(names[int(key)].encode("utf-8", "surrogateescape")).digest() for key in keys]
    lacking = np.outer(shares, shown.sum(0))  # [parts, K] objects
    lacking_pictures = np.array(shares) * len(groups)
    part = np.full(len(keys), -1)

    def give(group: int, label: int | None) -> None:
        wish = lacking_pictures if label is None else lacking[:, label]
        best = np.flatnonzero(np.isclose(wish, wish.max()))
        part[group] = to = int(best[lacking_pictures[best].argmax()])
        lacking[to] -= shown[group]
        lacking_pictures[to] -= sizes[group]

    while True:
        left = part < 0
        showing = (shown[left] > 0).sum(0)
        if not showing.any():
            break
        label = int(np.where(showing > 0, showing, np.iinfo(np.int64).max).argmin())
        members = np.flatnonzero(left & (shown[:, label] > 0)).tolist()
        for group in sorted(members, key=lambda group: (-sizes[group], order[group])):
            give(group, label)
    for group in sorted(np.flatnonzero(part < 0).tolist(), key=lambda group: (-sizes[group], order[group])):
        give(group, None)
    return part[index]


def split_pictures(labels: Labels, val: float, test: float = 0.0) -> list[str]:
    """Return the split of each picture, by shares of all.

    Raises:
        UsageError: shares that leave nothing for training.
        DataError: too few pictures that do not look alike.
    """
    if not (0 < val < 1 and 0 <= test < 1 and val + test < 1):
        raise UsageError(f"{val:g} for validation and {test:g} for test: shares in 0..1 that leave some for training")
    groups = picture_groups(labels.folder, labels.files)
    parts = [share for share in (1 - val - test, val, test) if share > 0]
    if len(np.unique(groups)) < len(parts):
        count = f"{len(labels.files)} pictures in {len(np.unique(groups))} groups that look alike"
        raise DataError(f"{labels.folder}: {count} cannot be shared out to {' and '.join(SPLITS[: len(parts)])}")
    part = stratified(labels.counts(), groups, labels.files, parts)
    for i in range(len(parts)):  # a share smaller than one picture is one picture
        if not (part == i).any():
            counts = [int((part == other).sum()) for other in range(len(parts))]
            largest = np.flatnonzero(part == int(np.argmax(counts)))
            part[groups == groups[largest[-1]]] = i
    return [SPLITS[i] for i in part.tolist()]


def write_lists(folder: Path, files: Sequence[str], splits: Sequence[str]) -> list[Path]:
    """Write train.txt, val.txt and, where there are some, test.txt with the pictures of each split; return them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for split in SPLITS:
        lines = [f"{file}\n" for file, own in zip(files, splits, strict=True) if own == split]
        if lines:
            paths.append(folder / f"{split}.txt")
            with written_whole(paths[-1]) as temporary:
                temporary.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    return paths


def read_lists(labels: Labels) -> list[str | None] | None:
    """Return the split that the lists beside the data give each picture, None of one in no list; None without lists.

    Raises:
        DataError: a line that is no labelled picture, or one in two lists.
    """
    paths = [path for path in (labels.folder / LISTS / f"{split}.txt" for split in SPLITS) if path.is_file()]
    if not paths:
        return None
    split_of: dict[str, str] = {}
    known = set(labels.files)
    for path, number, file in itertools.chain.from_iterable(map(_lines, paths)):
        if file not in known:
            raise DataError(f"{path}:{number}: no labelled picture {file}; `convzoo data split` writes new lists")
        if split_of.setdefault(file, path.stem) != path.stem:
            raise DataError(f"{path}:{number}: {file} is in {split_of[file]}.txt too")
    return [split_of.get(file) for file in labels.files]


def in_one_split(labels: Labels, splits: Sequence[str | None]) -> dict[str, list[str]]:
    """Return the classes that are in training and not in validation, and the reverse, by the split they are in."""
    counts = labels.counts()
    there = {name: counts[[other == name for other in splits]].sum(0) > 0 for name in ("train", "val")}
    if not all(name in splits for name in there):
        return {}
    pairs = (("train", there["train"] & ~there["val"]), ("val", there["val"] & ~there["train"]))
    return {name: [labels.class_names[i] for i in np.flatnonzero(only)] for name, only in pairs if only.any()}


def _lines(path: Path) -> Iterator[tuple[Path, int, str]]:
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            yield path, number, line.strip()
