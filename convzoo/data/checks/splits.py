"""Look at a data set before it is trained on: counts, sizes, pictures that cannot be read, duplicates."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

import numpy as np
from PIL import Image

from convzoo.data.checks.boxes import NAMED, BoxAccount, box_sheet, choose
from convzoo.data.datasets.boxed import SizeMismatchError
from convzoo.data.layouts.alike import alike_pairs, pixel_hash
from convzoo.errors import DataError
from convzoo.logs import progress
from convzoo.plain import JsonObject
from convzoo.report.draw import INK, contact_sheet, save_png
from convzoo.types import BoxedDataset, Dataset

FEW = 10  # pictures of a class, below which it is hardly learned and its measure is chance
ALIKE_FROM_PX = 32  # smaller pictures are alike by their size alone


@dataclass
class SplitAccount:
    """What a split holds.

    Attributes:
        per_class: images of each class, or objects where there are boxes.
        unreadable: messages, one a picture.
        mismatched: messages, one a picture of another size than its annotation says.
        duplicates: groups of paths whose pixels are the same.
        few: classes on fewer than FEW pictures, and on how many.
        hashes: perceptual hashes [N, 32] of the readable pictures from ALIKE_FROM_PX on, and hashed: their paths.
        boxes: None for classification.
    """

    images: int
    per_class: dict[str, int]
    sizes_hw: Counter = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)
    few: dict[str, int] = field(default_factory=dict)
    hashes: np.ndarray = field(default_factory=lambda: np.zeros((0, 32), np.uint8))
    hashed: list[str] = field(default_factory=list)
    boxes: BoxAccount | None = None

    def plain(self) -> JsonObject:
        sizes = {f"{height}x{width}": count for (height, width), count in self.sizes_hw.most_common(10)}
        plain = {
            "images": self.images,
            "per_class": self.per_class,
            "sizes_hw": sizes,
            "unreadable": self.unreadable,
            "duplicates": self.duplicates,
            "few_pictures": self.few,
        }
        if self.boxes:
            plain |= {"mismatched": self.mismatched, "boxes": self.boxes.plain()}
        return plain

    def text(self, name: str) -> str:
        """Return a paragraph: a line of counts, then the first findings of each kind."""
        lines = [f"{name}: {self.images:,} images, {len(self.unreadable)} unreadable"]
        if self.boxes:
            lines[0] += f", {len(self.mismatched)} of another size than annotated"
        lines[0] += f", {len(self.duplicates)} groups of duplicates"
        lines += [f"  {line}" for line in [*self.unreadable[:NAMED], *self.mismatched[:NAMED]]]
        lines += [f"  same pixels: {', '.join(group)}" for group in self.duplicates[:NAMED]]
        if self.few:
            few = ", ".join(f"{class_name} {count}" for class_name, count in list(self.few.items())[:NAMED])
            lines.append(f"  {len(self.few)} classes on fewer than {FEW} pictures: {few}")
        if self.boxes:
            lines.append(f"  {self.boxes.objects:,} objects; {self.boxes.without_objects:,} images have none")
            kinds = [f"{self.boxes.counts[kind]:,} {kind.replace('_', ' ')}" for kind in self.boxes.named]
            lines += [f"  of the boxes {', '.join(kinds)}"] if kinds else []
            for kind, named in self.boxes.named.items():
                lines += [f"  {kind.replace('_', ' ')}: {line}" for line in named]
        return "\n".join(lines)


def is_boxed(dataset: Dataset) -> TypeGuard[BoxedDataset]:
    """Say whether a data set is for detection."""
    return hasattr(dataset, "boxes")


def count_classes(dataset: Dataset) -> dict[str, int]:
    """Return the images of each class, or the objects where there are boxes."""
    return dict(
        zip(dataset.class_names, np.bincount(dataset.labels, minlength=len(dataset.class_names)).tolist(), strict=True)
    )


def check_split(dataset: Dataset) -> tuple[SplitAccount, dict[bytes, str]]:
    """Read every picture of a split; return its account and the paths by digest of the pixels."""
    account = SplitAccount(len(dataset), count_classes(dataset))
    account.boxes = BoxAccount() if is_boxed(dataset) else None
    same: dict[bytes, list[str]] = {}
    hashes, pictures = [], Counter()
    for index in progress(range(len(dataset)), len(dataset), "check"):
        try:
            sample = dataset.load(index)
        except SizeMismatchError as error:
            account.mismatched.append(str(error))
            continue
        except DataError as error:
            account.unreadable.append(str(error))
            continue
        if account.boxes:
            account.boxes.look_at(sample, dataset.class_names)
        account.sizes_hw[sample.original_hw] += 1
        pictures.update(set(sample.target.labels.tolist()) if account.boxes else [sample.target])
        if min(sample.original_hw) >= ALIKE_FROM_PX:
            hashes.append(pixel_hash(Image.fromarray(sample.image.permute(1, 2, 0).contiguous().numpy())))
            account.hashed.append(sample.path)
        same.setdefault(hashlib.sha1(sample.image.contiguous().numpy().data).digest(), []).append(sample.path)
    if hashes:
        account.hashes = np.stack(hashes)
    account.few = {name: pictures[i] for i, name in enumerate(dataset.class_names) if pictures[i] < FEW}
    account.duplicates = [paths for paths in same.values() if len(paths) > 1]
    return account, {digest: paths[0] for digest, paths in same.items()}


def alike_across(train: SplitAccount, val: SplitAccount) -> list[list[str]]:
    """Return pairs of paths, of training and validation, whose pictures look alike: copies, scaled or compressed."""
    return [[train.hashed[i], val.hashed[j]] for i, j in alike_pairs(train.hashes, val.hashes)]


def spread(dataset: Dataset, count: int) -> list[int]:
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


def save_sheet(dataset: Dataset, path: Path, count: int = 24) -> None:
    """Write a picture of labelled samples, with their boxes where there are some."""
    if is_boxed(dataset):
        save_png(box_sheet(dataset), path)
        return
    samples = [dataset.load(index) for index in spread(dataset, count)]
    captions = [(dataset.class_names[sample.target], sample.path.rpartition("/")[2]) for sample in samples]
    images = [sample.image.permute(1, 2, 0).numpy() for sample in samples]
    save_png(contact_sheet(images, captions, [INK] * len(images)), path)


def save_pictures(dataset: Dataset, folder: Path, count: int) -> Iterator[Path]:
    """Write samples as PNG files, named by class where there is one a picture, and yield their paths."""
    written: set[str] = set()
    for index in choose(dataset, count) if is_boxed(dataset) else spread(dataset, count):
        sample = dataset.load(index)
        name = sample.path.rpartition("/")[2].partition(".")[0]
        if not is_boxed(dataset):
            name = f"{dataset.class_names[sample.target].replace('/', '_')}-{name}"
        elif name in written:  # pictures of several folders may share a name
            name = f"{name}-{index}"
        written.add(name)
        path = folder / f"{name}.png"
        save_png(Image.fromarray(sample.image.permute(1, 2, 0).contiguous().numpy()), path)
        yield path
