"""Look at a data set before it is trained on: counts, sizes, pictures that cannot be read, duplicates."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convzoo.errors import DataError
from convzoo.logs import progress
from convzoo.report.draw import INK, contact_sheet, save_png


@dataclass
class SplitAccount:
    """What a split holds.

    Attributes:
        unreadable: messages, one a picture.
        duplicates: groups of paths whose pixels are the same.
    """

    images: int
    per_class: dict[str, int]
    sizes_hw: Counter = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        sizes = {f"{height}x{width}": count for (height, width), count in self.sizes_hw.most_common(10)}
        return {
            "images": self.images,
            "per_class": self.per_class,
            "sizes_hw": sizes,
            "unreadable": self.unreadable,
            "duplicates": self.duplicates,
        }


def count_classes(dataset: Any) -> dict[str, int]:
    """Return the images of each class."""
    return dict(
        zip(dataset.class_names, np.bincount(dataset.labels, minlength=len(dataset.class_names)).tolist(), strict=True)
    )


def check_split(dataset: Any) -> tuple[SplitAccount, dict[bytes, str]]:
    """Read every picture of a split; return its account and the paths by digest of the pixels."""
    account = SplitAccount(len(dataset), count_classes(dataset))
    same: dict[bytes, list[str]] = {}
    for index in progress(range(len(dataset)), len(dataset), "check"):
        try:
            sample = dataset.load(index)
        except DataError as error:
            account.unreadable.append(str(error))
            continue
        account.sizes_hw[sample.original_hw] += 1
        same.setdefault(hashlib.sha1(sample.image.contiguous().numpy()).digest(), []).append(sample.path)
    account.duplicates = [paths for paths in same.values() if len(paths) > 1]
    return account, {digest: paths[0] for digest, paths in same.items()}


def spread(dataset: Any, count: int) -> list[int]:
    """Return indices that show the classes evenly, class after class."""
    by_class = [np.flatnonzero(dataset.labels == label) for label in range(len(dataset.class_names))]
    rounds = (
        indices[turn]
        for turn in range(max(map(len, by_class), default=0))
        for indices in by_class
        if turn < len(indices)
    )
    return sorted(
        (int(index) for index, _ in zip(rounds, range(count), strict=False)),
        key=lambda index: int(dataset.labels[index]),
    )


def save_sheet(dataset: Any, path: Path, count: int = 24) -> None:
    """Write a picture of labelled samples."""
    samples = [dataset.load(index) for index in spread(dataset, count)]
    captions = [(dataset.class_names[sample.target], sample.path.rpartition("/")[2]) for sample in samples]
    images = [sample.image.permute(1, 2, 0).numpy() for sample in samples]
    save_png(contact_sheet(images, captions, [INK] * len(images)), path)


def save_pictures(dataset: Any, folder: Path, count: int) -> Iterator[Path]:
    """Write samples as PNG files named by class and position, and yield their paths."""
    for index in spread(dataset, count):
        sample = dataset.load(index)
        path = (
            folder
            / f"{dataset.class_names[sample.target].replace('/', '_')}-{sample.path.rpartition('/')[2].partition('.')[0]}.png"
        )
        save_png(Image.fromarray(sample.image.permute(1, 2, 0).contiguous().numpy()), path)
        yield path
