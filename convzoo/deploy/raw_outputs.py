"""The documents' way to a device that is elsewhere: inputs out as files, and outputs computed there scored here.

File names are those of the documents: the outputs of NAME.JPEG are NAME_0.bin, NAME_1.bin ..., or NAME.bin of one
output; .npy is taken too. A .bin holds plain numbers, little-endian, in the order of the array.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from convzoo import build
from convzoo.data.decode import decode_rgb
from convzoo.data.transforms.pipeline import normalize
from convzoo.errors import DataError, UsageError
from convzoo.files import written_whole
from convzoo.inference import evaluate
from convzoo.inference.evaluate import Evaluation
from convzoo.inference.loaded import LoadedModel
from convzoo.inference.predict import find_pictures
from convzoo.plain import Keyword
from convzoo.types import Batch, Key, Output, Prediction, Sample

INDEX = "index.json"
FLOATS = {4: "<f4", 2: "<f2"}  # by bytes a number; float16 is what a device likes to write
INTEGERS = {8: "<i8", 4: "<i4"}


def dump_inputs(
    opened: LoadedModel,
    folder: Path,
    sources: Sequence[str | Path] = (),
    data: Path | None = None,
    kind: Literal["bin", "npy"] = "bin",
) -> int:
    """Write each picture as the network takes it, [1, 3, H, W] float32 normalised (a file that normalises itself: uint8
    [1, H, W, 3]), and then index.json; return how many.

    Args:
        sources: files, folders and globs; none for the validation pictures of the recipe's data set in `data`.
    Raises:
        UsageError: a source that does not exist, or a folder that has an index.json.
        DataError: a picture that cannot be read.
    """
    if (folder / INDEX).exists():
        raise UsageError(f"{folder}: has an {INDEX} already; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    pipeline, names, rows = opened.pipeline(), set(), []
    for sample in _samples(opened, sources, data):
        placed = pipeline(sample, Key(0, sample.index))
        array, name = _as_input(opened, placed.image), _unique(sample.path, names)
        array.tofile(folder / f"{name}.bin") if kind == "bin" else np.save(folder / f"{name}.npy", array)
        row = {"id": sample.index, "path": _key(sample.path), "name": name, "file": f"{name}.{kind}"}
        row |= {"shape": list(array.shape), "dtype": str(array.dtype)}
        rows.append({**row, "original_hw": list(placed.original_hw), "placement": list(placed.placement)})
    document = {"model_sha256": opened.sha256, "pictures": rows}
    with written_whole(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return len(rows)


def _samples(opened: LoadedModel, sources: Sequence[str | Path], data: Path | None) -> Iterator[Sample]:
    if not sources:
        dataset = build.build_dataset(opened.recipe, data, "val")
        yield from (dataset.load(i) for i in range(len(dataset)))
    for number, path in enumerate(find_pictures(sources)):
        image = decode_rgb(Path(path).read_bytes(), path)
        yield Sample(image, 0, number, path, (image.shape[1], image.shape[2]))


def _as_input(opened: LoadedModel, image: Tensor) -> np.ndarray:
    if getattr(opened.info, "input", "float_nchw") == "uint8_nhwc":
        return image[None].permute(0, 2, 3, 1).contiguous().numpy()
    transform = opened.recipe.transform
    return normalize(image[None], transform.mean, transform.std).numpy()


def _key(path: str) -> str:
    """Return what a picture is known by, wherever a command is run: its real path, if it is a file of its own."""
    return os.path.realpath(path) if os.path.exists(path) else path


def _stem(path: str) -> str:
    return Path(path).name.split(".")[0]


def _unique(path: str, names: set[str]) -> str:
    """Return the picture's name up to its first dot, numbered where several folders have it."""
    name, number = _stem(path), 1
    while name in names:
        number += 1
        name = f"{_stem(path)}-{number}"
    names.add(name)
    return name


def score_raw_outputs(opened: LoadedModel, folder: Path, data: Path | None = None, **options: Keyword) -> Evaluation:
    """Evaluate outputs that were computed elsewhere, on the validation pictures of the recipe's data set.

    Where the folder has the index.json of `dump_inputs`, it says what each picture's outputs are called.

    Args:
        options: as `evaluate.evaluate_open`.
    Raises:
        UsageError: no such folder, or, without an index.json, two pictures of the same name.
        DataError: a file that is missing, of another size, or holds NaN; the first one is named.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    return evaluate.evaluate_open(RecordedOutputs(opened, folder), data, **options)


class RecordedOutputs:
    """A `LoadedModel` whose outputs are files. It is its own runner, which passes pictures on, and its own task, which
    reads their outputs by the picture's path and leaves the rest to the model's task."""

    name, device, input, stage = "recorded", "cpu", "float_nchw", "raw"

    def __init__(self, opened: LoadedModel, folder: Path):
        self.opened, self.folder = opened, folder
        self.path, self.sha256, self.pipeline = opened.path, opened.sha256, opened.pipeline
        self.recipe, self.info, self.class_names = opened.recipe, opened.info, opened.class_names
        self.names, self.owner = _names(folder), {}
        self.inner = inner = opened.task()
        self.predicts: Literal["classes", "boxes"] = inner.predicts
        self.best_metric, self.loss, self.start_training = inner.best_metric, inner.loss, inner.start_training
        self.collate, self.new_metric, self.options = inner.collate, inner.new_metric, inner.options
        self.size_step, self.decode, self.output_shapes = inner.size_step, inner.decode, inner.output_shapes

    def runner(self, precision: str = "fp32") -> "RecordedOutputs":
        return self

    def changed(self, overrides: tuple[str, ...]) -> "RecordedOutputs":
        return RecordedOutputs(self.opened.changed(overrides), self.folder)

    def task(self) -> "RecordedOutputs":
        return self

    def __call__(self, images: np.ndarray | Tensor) -> tuple[Output, ...]:
        return (images,)

    def postprocess(self, outputs: Sequence[Tensor], batch: Batch) -> list[Prediction]:
        """Read the outputs of the pictures [B, 3, H, W], which the runner passed on, and postprocess those."""
        size = outputs[0].shape[2], outputs[0].shape[3]
        by_name = self.inner.output_shapes(size, getattr(self.info, "stage", "raw"))
        shapes = [(1, *shape) for shape in by_name.values()]
        pictures = [self._read(path, shapes) for path in batch.paths]
        recorded = [torch.from_numpy(np.concatenate(column)) for column in zip(*pictures, strict=True)]
        return self.inner.postprocess(tuple(recorded), batch)

    def _read(self, path: str, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
        """Return one picture's outputs. Head maps may come coarsest first, as the documents have them."""
        name = self.names.get(_key(path)) if self.names else _stem(path)
        if name is None:
            raise DataError(f"{self.folder / INDEX}: does not have {path}")
        if self.owner.setdefault(name, path) != path:
            raise UsageError(
                f"{self.folder}: outputs of two pictures would be called {name}: {self.owner[name]} and {path}; "
                f"convzoo predict --dump-inputs numbers them, copy its {INDEX} there"
            )
        files = [self._file(name, i, len(shapes)) for i in range(len(shapes))]
        is_raw = getattr(self.info, "stage", "raw") == "raw"
        arrays = [_numbers(file, shapes if is_raw else shapes[i : i + 1], i) for i, file in enumerate(files)]
        arrays = sorted(arrays, key=lambda array: -array.size) if is_raw else arrays
        for array, shape in zip(arrays, shapes, strict=True):
            if array.shape != shape:
                raise DataError(
                    f"{files[0]}: it and its like are {[a.shape for a in arrays]}, not one of each {shapes}"
                )
        return arrays

    def _file(self, name: str, i: int, count: int) -> Path:
        stems = [f"{name}_{i}", f"{name}_output_{i}"] + [name] * (count == 1)
        tried = [self.folder / f"{stem}.{kind}" for stem in stems for kind in ("bin", "npy")]
        for file in tried:
            if file.is_file():
                return file
        raise DataError(f"{tried[0]}: missing; every picture's outputs are needed")


def _names(folder: Path) -> dict[str, str]:
    """Return the output name of each picture that index.json lists, by its key. Raises DataError."""
    if not (folder / INDEX).exists():
        return {}
    try:
        rows = json.loads((folder / INDEX).read_text(encoding="utf-8"))["pictures"]
        return {str(row["path"]): str(row["name"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / INDEX}: not an index of --dump-inputs ({error})") from None


def _numbers(file: Path, shapes: Sequence[tuple[int, ...]], index: int) -> np.ndarray:
    """Read one output, whose size tells which of the shapes it has, and float32 from float16. Raises DataError."""
    types = INTEGERS if len(shapes) == 1 and index == 2 else FLOATS  # the third of one alone: labels
    if file.suffix == ".npy":
        try:
            content = np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{file}: not a whole .npy file ({error})") from None
        fits = [(content, shape) for shape in shapes if content.size == np.prod(shape)]
    else:
        content = file.read_bytes()
        sizes = [(shape, dtype, width * int(np.prod(shape))) for shape in shapes for width, dtype in types.items()]
        fits = [(np.frombuffer(content, dtype), shape) for shape, dtype, size in sizes if len(content) == size]
    if not fits:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        have = f"{len(content)} bytes" if isinstance(content, bytes) else str(list(content.shape))
        raise DataError(f"{file}: {have}, which is no {expected} of {' or '.join(types.values())}")
    array = fits[0][0].reshape(fits[0][1]).astype(np.int64 if types is INTEGERS else np.float32)
    if not np.isfinite(array).all():
        raise DataError(f"{file}: holds NaN or infinity")
    return array
