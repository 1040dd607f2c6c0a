"""Pictures with boxes, for detection: what COCO, VOC and YOLO files are read into.

A million boxes are a few flat arrays, not a million objects. Other data sets for detection have the same attributes:
`class_names`, `category_ids`, `labels` (of all objects), `path`, `load`, `boxes`, `size_hw` and `image_id`.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from convzoo.data.datasets.in_memory import PackedStrings, first_of_shuffled
from convzoo.data.decode import FORMATS, decode_rgb
from convzoo.errors import ConvzooError, DataError, UsageError
from convzoo.storage import local_folder
from convzoo.types import Boxes, Sample


class SizeMismatchError(DataError):
    """A picture has another size than its annotation says, so its boxes cannot be trusted."""


class BoxedImages:
    """Picture files with their boxes; the pictures stay on disk.

    Attributes:
        labels: [M] int64 classes of all objects of all pictures.
        category_ids: K numbers that COCO's result files call the classes by.
        split_files: the pictures below the root, where nobody but we shared them out: a run keeps such lists.
    """

    split_files: list[str] | None = None

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        class_names: list[str],
        objects: Boxes,
        image_index: np.ndarray,
        *,
        stated_hw: np.ndarray | None = None,
        image_ids: np.ndarray | None = None,
        category_ids: list[int] | None = None,
        normalised: bool = False,
        limit: int | None = None,
    ):
        """Keep the pictures and their objects.

        Args:
            folder: where the files are.
            objects: [M] of all pictures.
            image_index: [M] int64, the file of each object.
            stated_hw: [N, 2] int64 as the annotation says, 0 where it says nothing.
            image_ids: [N] int64, 1..N if not given; category_ids likewise.
            normalised: corners and areas are shares of the picture's sides and area.
            limit: keep a fixed random choice of so many pictures.
        Raises:
            DataError: no pictures.
        """
        chosen = first_of_shuffled(len(files), limit)
        if not len(chosen):
            raise DataError(f"{folder}: no pictures in this split")
        order = np.argsort(image_index, kind="stable")
        position = np.full(len(files), -1)
        position[chosen] = np.arange(len(chosen))
        order = order[position[image_index[order]] >= 0]
        self._files = PackedStrings(os.path.join(folder, files[int(i)]) for i in chosen)
        self._objects = objects.take(order)
        counts = np.bincount(position[image_index[order]], minlength=len(chosen))
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._stated_hw = np.zeros((len(chosen), 2), np.int64) if stated_hw is None else stated_hw[chosen]
        self._seen_hw = self._stated_hw.copy()  # also what was read from the pictures since
        self._image_ids = np.arange(1, 1 + len(chosen)) if image_ids is None else image_ids[chosen]
        self._normalised = normalised
        self.class_names = class_names
        self.category_ids = category_ids or list(range(1, 1 + len(class_names)))
        self.labels = self._objects.labels

    def __len__(self) -> int:
        return len(self._files)

    def path(self, index: int) -> str:
        return self._files[index]

    def image_id(self, index: int) -> int:
        """Return the number by which COCO's result files call the picture."""
        return int(self._image_ids[index])

    def size_hw(self, index: int) -> tuple[int, int]:
        """Return the size that the annotation states, else the one in the picture's header. Raises DataError."""
        if not self._seen_hw[index].all():
            self._seen_hw[index] = self._measured_hw(index)
        height, width = self._seen_hw[index].tolist()
        return height, width

    def boxes(self, index: int) -> Boxes:
        """Return the true boxes in pixels without decoding the picture. Raises DataError where its size is needed."""
        stored = self._objects.take(np.arange(self._starts[index], self._starts[index + 1]))
        if not self._normalised:
            return stored
        height, width = self.size_hw(index)
        pixels = stored.xyxy * np.array([width, height, width, height])
        return Boxes(pixels, stored.labels, stored.crowd, stored.areas * (height * width))

    def load(self, index: int) -> Sample:
        """Return the picture and its boxes.

        Raises:
            DataError: the picture cannot be read.
            SizeMismatchError: it is not as large as its annotation says.
        """
        path = self.path(index)
        image = decode_rgb(self.encoded(index), path)
        height, width = size = (image.shape[1], image.shape[2])
        stated_h, stated_w = self._stated_hw[index].tolist()
        if stated_h and stated_w and (stated_h, stated_w) != size:
            raise SizeMismatchError(
                f"{path}: {width}x{height} pixels, its annotation says {stated_w}x{stated_h}; another picture, or its "
                "boxes were drawn before it was scaled or turned"
            )
        self._seen_hw[index] = size
        return Sample(image, self.boxes(index), index, path, size)

    def encoded(self, index: int) -> bytes:
        """Return the picture's file. Raises DataError."""
        return read_bytes(self.path(index))

    def _measured_hw(self, index: int) -> tuple[int, int]:
        return picture_size(self.path(index))


def box_areas(xyxy: np.ndarray) -> np.ndarray:
    """Return the areas [N] of boxes [N, 4]; 0 for an empty or inverted one."""
    return (xyxy[:, 2:] - xyxy[:, :2]).clip(min=0).prod(1)


def read_bytes(path: str) -> bytes:
    """Read a picture's file. Raises DataError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def picture_size(path: str) -> tuple[int, int]:
    """Return a picture's height and width as `decode_rgb` gives it, from its header alone. Raises DataError."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)  # by a quarter of a circle
            return (width, height) if turned else (height, width)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        # Decoding says best what is wrong with it.
        shape = decode_rgb(read_bytes(path), path).shape
        return shape[1], shape[2]


def check_root(root: Path | None, holds: str) -> Path:
    """Return the folder of a data set, of an archive the unpacked one. Raises UsageError where there is none."""
    if root is None:
        raise UsageError(f"this data set needs a folder, zip or tar with {holds}", ("data",))
    return local_folder(root)


def find_missing(folder: Path, files: Sequence[str]) -> int | None:
    """Return the position of the first file that is not there, None if all are."""
    listed: dict[str, set[str]] = {}  # one question a folder: over a network a hundred thousand take minutes
    for position, file in enumerate(files):
        inside, _, name = file.rpartition("/")
        if inside not in listed:
            place = folder / (inside or ("/" if file.startswith("/") else ""))
            listed[inside] = set(os.listdir(place)) if place.is_dir() else set()
        if name not in listed[inside]:
            return position
    return None


def read_text(path: Path) -> str:
    """Read an annotation file. Raises DataError where it is missing or not UTF-8 text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def check_names(names: object, shown: str, error: type[ConvzooError] = DataError) -> list[str]:
    """Return class names. Raises the error where they are not different non-empty texts, or none."""
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise error(f"{shown}: not a list of class names")
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise error(f"{shown}: class '{twice}' is there twice")
    return names
