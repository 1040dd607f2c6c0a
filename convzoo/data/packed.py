"""A data set in one file, its pictures decoded and resized once: written by `pack`, read by memory map.

The file: MAGIC; the pixels of all pictures, uint8 rows of RGB [H, W, 3]; the index, a safetensors of arrays whose
metadata says what was packed and how; its start, length and SHA-256; END. The index is verified when the file is
opened, each picture (CRC-32) when a process first reads it.

Pixels are stored as they are, not as JPEG: nothing is decoded again, and where a recipe's evaluation begins with
`resize: {size_px: N}` pictures packed at N pixels reach the network bit for bit as those from their files do.
"""

import hashlib
import itertools
import json
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy
import torch

from convzoo.boxes import Placement
from convzoo.data.datasets.in_memory import PackedStrings, first_of_shuffled
from convzoo.data.transforms.pipeline import interpolated
from convzoo.errors import DataError
from convzoo.files import written_whole
from convzoo.logs import progress
from convzoo.plain import JsonObject, Keywords
from convzoo.types import Boxes, Dataset, Pictures, Sample

MAGIC, END, FORMAT = b"convzoo pack v1\n", b"\nconvzoo pack end", 1
Arrays = dict[str, np.ndarray]
TAIL = struct.Struct("<QQ32s")
LOOKED_AT = 10_000  # files whose times tell whether a source changed: all of a small one, an even choice of a large one


class PackedImages:
    """One split of a packed file: the data set that it was made from, with pictures of at most the packed size."""

    split_files: list[str] | None = None

    def __init__(self, file: Path, about: JsonObject, arrays: Arrays, chosen: np.ndarray):
        """Take the samples `chosen` of a split's arrays, as `_arrays` makes them."""
        self.file, self.about, self.root = file, about, Path(about["source"])
        self.packed_px: int = about["size_px"]
        self.class_names: list[str] = about["class_names"]
        self.labels = arrays["labels"][chosen]
        self._starts, self._hw, self._crc = arrays["starts"][chosen], arrays["hw"][chosen], arrays["crc"][chosen]
        self._original_hw = arrays["original_hw"][chosen]
        self._paths, self._chosen = PackedStrings.of(arrays["path_bytes"], arrays["path_ends"]), chosen
        self._verified = np.zeros(len(chosen), dtype=bool)
        self._map: np.memmap | None = None

    def __len__(self) -> int:
        return len(self._chosen)

    def __getstate__(self) -> Keywords:  # for workers that are not forked: they map the file for themselves
        return {**self.__dict__, "_map": None}

    def path(self, index: int) -> str:
        """Return where the picture was packed from."""
        return self._paths[int(self._chosen[index])]

    def load(self, index: int) -> Sample:
        """Return the picture as it was packed. Raises DataError for pixels that are no longer those."""
        image, original_hw = self._image(index)
        return Sample(image, int(self.labels[index]), index, self.path(index), original_hw)

    def _image(self, index: int) -> tuple[torch.Tensor, tuple[int, int]]:
        if self._map is None:
            self._map = np.memmap(self.file, dtype=np.uint8, mode="r")
            with warnings.catch_warnings():  # torch says once a process that the map is read only: no operation writes
                warnings.simplefilter("ignore")
                torch.from_numpy(self._map[:1])
        (height, width), start = self._hw[index].tolist(), int(self._starts[index])
        rows = self._map[start : start + 3 * height * width]
        if not self._verified[index]:
            if zlib.crc32(rows.data) != self._crc[index]:
                raise DataError(f"{self.file}: the pixels of {self.path(index)} are damaged; pack it again")
            self._verified[index] = True
        original_h, original_w = self._original_hw[index].tolist()
        return torch.from_numpy(rows.reshape(height, width, 3)).permute(2, 0, 1), (original_h, original_w)


class PackedBoxes(PackedImages):
    """The same of a data set for detection: boxes, and what is asked about pictures, are those of the originals."""

    def __init__(self, file: Path, about: JsonObject, arrays: Arrays, chosen: np.ndarray):
        starts = arrays["box_starts"]
        self._objects = Boxes(arrays["xyxy"], arrays["labels"], arrays["crowd"], arrays["areas"])
        super().__init__(file, about, {**arrays, "labels": np.zeros(len(starts) - 1, dtype=np.int64)}, chosen)
        self._box_ranges = np.stack([starts[:-1], starts[1:]], 1)[chosen]
        self._image_ids = arrays["image_ids"][chosen]
        self.category_ids: list[int] = about["category_ids"]
        parts = [arrays["labels"][first:last] for first, last in self._box_ranges.tolist()]
        self.labels = np.concatenate(parts) if parts else arrays["labels"]

    def image_id(self, index: int) -> int:
        return int(self._image_ids[index])

    def size_hw(self, index: int) -> tuple[int, int]:
        """Return the size of the original picture."""
        height, width = self._original_hw[index].tolist()
        return height, width

    def boxes(self, index: int) -> Boxes:
        """Return the true boxes in pixels of the original picture."""
        return self._objects.take(np.arange(*self._box_ranges[index].tolist()))

    def load(self, index: int) -> Sample:
        """Return the picture as it was packed, placed as the original was scaled. Raises DataError."""
        image, original_hw = self._image(index)
        (height, width), truth = image.shape[1:], self.boxes(index)
        scale = width / original_hw[1], height / original_hw[0]
        target = Boxes(truth.xyxy * np.tile(scale, 2), truth.labels, truth.crowd, truth.areas)
        placement = Placement(*scale, 0, 0)
        return Sample(image, target, index, self.path(index), original_hw, truth=truth, placement=placement)


def settings_of(data: JsonObject) -> JsonObject:
    """Return what a recipe says of a data set but how much of it is taken, and how it is kept."""
    apart = ("max_train_images", "cache")
    return {key: value for key, value in data.items() if key not in apart and value is not None}


def is_packed(path: Path) -> bool:
    """Tell whether a file is a packed data set, by its first bytes."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def pack(datasets: dict[str, Dataset], about: JsonObject, size_px: int, out: Path) -> tuple[int, int]:
    """Write splits of a data set into one file; no picture is enlarged.

    Args:
        datasets: by split, with the same classes.
        about: `source` (the path), and `data`, what the recipe says of it.
        size_px: of the short side.
    Returns:
        how many pictures, and the file's bytes.
    Raises:
        DataError: a picture that cannot be read; nothing is written then.
        ConvzooError: the file cannot be written.
    """
    first = next(iter(datasets.values()))
    plain = {"format": FORMAT, "size_px": size_px, "class_names": first.class_names, **about}
    plain["category_ids"] = getattr(first, "category_ids", None)
    plain["newest_ns"] = max(newest_ns(Path(about["source"]), dataset) for dataset in datasets.values())
    with written_whole(out) as temporary, open(temporary, "wb") as file:
        file.write(MAGIC)
        arrays: Arrays = {}
        for split, dataset in datasets.items():
            pictures = _written(file, dataset, size_px)
            arrays |= {f"{split}.{name}": array for name, array in (pictures | _arrays(dataset)).items()}
        plain["shrunk"] = any(bool((arrays[f"{s}.hw"] != arrays[f"{s}.original_hw"]).any()) for s in datasets)
        index, start = safetensors.numpy.save(arrays, {"about": json.dumps(plain)}), file.tell()
        file.write(index + TAIL.pack(start, len(index), hashlib.sha256(index).digest()) + END)
    return sum(map(len, datasets.values())), out.stat().st_size


def _written(file: BinaryIO, dataset: Dataset, size_px: int) -> Arrays:
    """Write the pixels of a split; return where each picture lies, its size now and before, and its checksum."""
    rows = []
    for index in progress(range(len(dataset)), len(dataset), "pack"):
        image = dataset.load(index).image
        height, width = image.shape[1:]
        short = min(height, width)
        if short > size_px:  # the sizes and pixels of `resize`
            image = interpolated(image, [int(size_px * height / short), int(size_px * width / short)], "bilinear", True)
        pixels = image.permute(1, 2, 0).contiguous().numpy().tobytes()
        rows.append((file.tell(), *image.shape[1:], height, width, zlib.crc32(pixels)))
        file.write(pixels)
    table = np.array(rows, dtype=np.int64).reshape(-1, 6)
    return {"starts": table[:, 0].copy(), "hw": table[:, 1:3].copy(), "original_hw": table[:, 3:5].copy()} | {
        "crc": table[:, 5].copy()
    }


def _arrays(dataset: Any) -> Arrays:  # Any: a Dataset, or a BoxedDataset
    """Return what a split knows of its pictures besides their pixels."""
    paths = PackedStrings(dataset.path(index) for index in range(len(dataset)))
    arrays = {"path_bytes": paths.bytes, "path_ends": paths.ends}
    if not hasattr(dataset, "boxes"):
        return arrays | {"labels": np.asarray(dataset.labels, dtype=np.int64)}
    each = [dataset.boxes(index) for index in range(len(dataset))]
    boxes = Boxes.joined(each)
    ids = np.array([dataset.image_id(index) for index in range(len(dataset))], dtype=np.int64)
    starts = np.cumsum([0, *map(len, each)], dtype=np.int64)
    fields = {"xyxy": boxes.xyxy, "labels": boxes.labels, "crowd": boxes.crowd, "areas": boxes.areas}
    return (
        arrays
        | {name: np.ascontiguousarray(array) for name, array in fields.items()}
        | {
            "image_ids": ids,
            "box_starts": starts,
        }
    )


def open_packed(file: Path, split: str, data: JsonObject, needed_px: int = 0) -> PackedImages:
    """Open a split of a packed file.

    Args:
        data: what the recipe says of the data set; it must be what was packed.
        needed_px: the largest side that the recipe asks for.
    Raises:
        DataError: truncated or damaged, of other settings, too small, older than its source, or without that split.
    """
    about, arrays = _index(file)
    keys = settings_of(data)
    other = sorted(key for key in keys.keys() | about["data"].keys() if keys.get(key) != about["data"].get(key))
    if other:
        was, now = about["data"].get(other[0]), keys.get(other[0])
        raise DataError(f"{file}: packed with data.{other[0]}={was}, the recipe has {now}; pack it as the recipe says")
    if about["shrunk"] and about["size_px"] < needed_px:
        raise DataError(
            f"{file}: packed at {about['size_px']} pixels, and the recipe asks for {needed_px}; "
            f"pack it at {needed_px} or more"
        )
    mine = {name.removeprefix(f"{split}."): array for name, array in arrays.items() if name.startswith(f"{split}.")}
    if not mine:
        there = sorted({name.partition(".")[0] for name in arrays})
        raise DataError(f"{file}: no split '{split}' in it; it has {', '.join(there)}")
    kind = PackedBoxes if "xyxy" in mine else PackedImages
    limit = data.get("max_train_images") if split == "train" else None
    packed = kind(file, about, mine, first_of_shuffled(len(mine["starts"]), limit))
    if packed.root.exists() and newest_ns(packed.root, packed) > about["newest_ns"]:
        raise DataError(f"{file}: older than its source {packed.root}, where pictures have changed; pack it again")
    return packed


def _index(file: Path) -> tuple[JsonObject, Arrays]:
    size, tail = file.stat().st_size, TAIL.size + len(END)
    with open(file, "rb") as opened:
        opened.seek(max(0, size - tail))
        end = opened.read()
        if not end.endswith(END) or size < len(MAGIC) + tail:
            raise DataError(f"{file}: a packed data set that is cut short at {size:,} bytes; pack or copy it again")
        start, length, digest = TAIL.unpack(end[: TAIL.size])
        opened.seek(min(start, size))
        index = opened.read(length)
    if start + length + tail != size or hashlib.sha256(index).digest() != digest:
        raise DataError(f"{file}: a packed data set whose index is damaged; pack or copy it again")
    header = json.loads(index[8 : 8 + int.from_bytes(index[:8], "little")])
    about = json.loads(header["__metadata__"]["about"])
    if about["format"] != FORMAT:
        raise DataError(f"{file}: packed in format {about['format']}, this version reads {FORMAT}; pack it again")
    return about, safetensors.numpy.load(index)


def newest_ns(source: Path, dataset: Pictures) -> int:
    """Return when the newest of a source's files and folders was changed, in nanoseconds; 0 where nothing is there."""
    return max((path.stat().st_mtime_ns for path in _looked_at(source, dataset) if path.exists()), default=0)


def _looked_at(source: Path, dataset: Pictures) -> Iterator[Path]:
    yield source
    chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), LOOKED_AT)).astype(int).tolist()
    files = [path for index in chosen if (path := Path(dataset.path(index))).is_file()]
    yield from files
    yield from {path.parent for path in files}
    if not files and source.is_dir():  # such as records of many pictures
        yield from itertools.islice(source.rglob("*"), LOOKED_AT)
