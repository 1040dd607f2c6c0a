"""What data sets are made of: pictures in one array, and compact lists of paths."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from convzoo.types import Sample


class ArrayImages:
    """Pictures that lie in memory as one [N, 3, H, W] uint8 array."""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        class_names: list[str],
        source: str,
        numbers: np.ndarray | None = None,
    ):
        self.images = images
        self.labels = labels
        self.class_names = class_names
        self.source = source
        self.numbers = np.arange(len(labels)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        return f"{self.source}/{self.numbers[index]:05d}"

    def load(self, index: int) -> Sample:
        image = torch.from_numpy(self.images[index])
        return Sample(image, int(self.labels[index]), index, self.path(index), (image.shape[1], image.shape[2]))


class PackedStrings(Sequence[str]):
    """Strings in two arrays: a million paths in loader workers share memory; reference counts do not copy them."""

    def __init__(self, strings: Iterable[str]):
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        self.ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self.bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    @classmethod
    def of(cls, characters: np.ndarray, ends: np.ndarray) -> "PackedStrings":
        """Return the strings whose `bytes` and `ends` these are."""
        strings = cls(())
        strings.bytes, strings.ends = characters, ends
        return strings

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return self.bytes[self.ends[index] : self.ends[index + 1]].tobytes().decode("utf-8", "surrogateescape")


def first_of_shuffled(count: int, limit: int | None) -> np.ndarray:
    """Return the sorted indices of a fixed random subset of `limit`, or of everything."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.RandomState(0).permutation(count)[:limit])
