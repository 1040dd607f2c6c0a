"""The pictures that ranges are measured on, and those that are evaluated: never the same ones."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from convzoo.build import build_dataset
from convzoo.data.decode import decode_rgb
from convzoo.data.transforms.pipeline import ORDER, keyed_rng, normalize
from convzoo.errors import DataError, UsageError
from convzoo.inference.loaded import LoadedModel
from convzoo.inference.predict import find_pictures
from convzoo.logs import log
from convzoo.types import Dataset, Key, Sample


def pixels_digest(image: Tensor) -> bytes:
    """Return a digest of decoded pixels [3, H, W], the same for the same picture under any name."""
    shape = ",".join(map(str, image.shape)).encode()
    return hashlib.sha256(shape + image.contiguous().numpy().tobytes()).digest()


@dataclass
class Calibration:
    """Pictures to calibrate on: read when they are asked for and as often, one in memory at a time.

    Attributes:
        where: what they are a part of, for the metadata.
        load: the sample of an index; indices: those that are used.
        digests: of their pixels; paths: resolved.
        size: (height, width) of the network's input.
    """

    opened: LoadedModel
    where: str
    load: Callable[[int], Sample]
    indices: list[int]
    digests: frozenset[bytes]
    paths: frozenset[str]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield each picture as the network gets it: float32 [1, 3, H, W], normalised."""
        pipeline, transform = self.opened.pipeline(), self.opened.recipe.transform
        for index in self.indices:
            image = pipeline(self.load(index), Key(0, index)).image
            if tuple(image.shape[1:]) != self.size:
                image = F.resize(image, list(self.size))
            yield normalize(image[None], transform.mean, transform.std).numpy()


def find_calibration(
    opened: LoadedModel, data: Path | None, folder: Path | None, most: int, size: tuple[int, int]
) -> Calibration:
    """Choose at most `most` pictures, the same ones every time, of a folder or else of the training split.

    Raises:
        UsageError: no such folder.
        DataError: nothing to calibrate on: no pictures, none that can be read, or only pictures of one colour.
    """
    load, paths, where = _of_folder(folder) if folder else _of_training(opened, data)
    if not paths:
        raise DataError(f"{where}: no pictures to calibrate on")
    indices, digests, bad = [], set(), {"unreadable": 0, "of one colour": 0}
    for index in keyed_rng(0, ORDER, 0, 0).permutation(len(paths)).tolist():
        try:
            image = load(index).image
        except DataError as error:
            bad["unreadable"] += 1
            log.warning(f"not calibrated on: {error}")
            continue
        if (image == image[:, :1, :1]).all():
            bad["of one colour"] += 1
            continue
        indices.append(index)
        digests.add(pixels_digest(image))
        if len(indices) == most:
            break
    omissions = ", ".join(f"{count} {why}" for why, count in bad.items() if count)
    if not indices:
        raise DataError(f"{where}: nothing to calibrate on: of {len(paths)} pictures {omissions}")
    if omissions:
        log.warning(f"{where}: left out of the calibration: {omissions}")
    resolved = frozenset(os.path.realpath(paths[index]) for index in indices)
    return Calibration(opened, where, load, indices, frozenset(digests), resolved, size)


PictureSource = tuple[Callable[[int], Sample], list[str], str]


def _of_folder(folder: Path) -> PictureSource:
    if not folder.is_dir():
        raise UsageError(f"--calibration {folder}: no such folder")
    try:
        paths = list(find_pictures([folder]))
    except UsageError as error:
        raise DataError(f"--calibration {error}") from None

    def load(index: int) -> Sample:
        try:
            image = decode_rgb(Path(paths[index]).read_bytes(), paths[index])
        except OSError as error:
            raise DataError(f"{paths[index]}: cannot be read: {error.strerror}") from None
        return Sample(image, 0, index, paths[index], (image.shape[1], image.shape[2]))

    return load, paths, f"--calibration {folder}"


def _of_training(opened: LoadedModel, data: Path | None) -> PictureSource:
    try:
        dataset = build_dataset(opened.recipe, data, "train")
    except DataError as error:
        raise DataError(f"{error}; --calibration DIR calibrates on any other pictures") from None
    paths = [dataset.path(index) for index in range(len(dataset))]
    return dataset.load, paths, f"training split of {data or opened.recipe.data['name']}"


class Evaluated:
    """A data set's evaluation pictures, or a fixed random part; reading one that was calibrated on is an error."""

    def __init__(self, dataset: Dataset, most: int | None, calibration: Calibration):
        count = len(dataset)
        self.dataset, self.calibration = dataset, calibration
        self.class_names = dataset.class_names
        chosen = np.arange(count) if most is None else keyed_rng(0, ORDER, 0, 1).permutation(count)[:most]
        self.indices = np.sort(chosen).tolist()
        for index in self.indices:  # where paths tell, at once; pixels tell as they are read
            if os.path.realpath(dataset.path(index)) in calibration.paths:
                raise self._refusal(dataset.path(index))

    def __len__(self) -> int:
        return len(self.indices)

    def path(self, index: int) -> str:
        return self.dataset.path(self.indices[index])

    def load(self, index: int) -> Sample:
        """Raises DataError for a picture that cannot be read, and for one that was calibrated on."""
        sample = self.dataset.load(self.indices[index])
        if pixels_digest(sample.image) in self.calibration.digests:
            raise self._refusal(sample.path)
        return sample

    def _refusal(self, path: str) -> DataError:
        return DataError(
            f"{path}: would be evaluated, and is also in the calibration ({self.calibration.where}): use others there"
        )
