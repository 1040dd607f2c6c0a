"""The models of a server: opened, started, described, asked, and replaced by what their files hold now."""

import asyncio
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from convzoo.data.decode import decode_rgb
from convzoo.deploy import bytes_of
from convzoo.deploy.exported import ExportedModel, open_any
from convzoo.errors import UsageError
from convzoo.inference.loaded import LoadedModel
from convzoo.inference.predict import answer
from convzoo.inference.torch_model import TorchModel
from convzoo.plain import JsonObject
from convzoo.serve.batching import Batcher, Run
from convzoo.serve.limits import Limits, Refusal
from convzoo.serve.metrics import Metrics
from convzoo.serve.protocol import TensorSpec
from convzoo.types import Batch, Key, Prediction, Runner, Sample

T = TypeVar("T")
SIZES = ((96, 128), (160, 144))  # of pictures that tell whether a model's transform gives all the same size


@dataclass(frozen=True)
class Opening:
    """How model files are opened: see `exported.open_any` and `LoadedModel.runner`."""

    device: torch.device
    provider: str | None = None
    precision: str = "fp32"


class ServedModel:
    """A model that answers.

    Attributes:
        name: in URLs. version: how many times its file was opened. waiting: requests without an answer.
        input, outputs: its tensors as the protocol names them.
    """

    def __init__(self, name: str, version: int, path: Path, opening: Opening, limits: Limits, metrics: Metrics):
        """Open, start and try a file. Raises UsageError, ConvzooError, MissingPackageError."""
        self.name, self.version, self.limits, self.waiting = name, str(version), limits, 0
        self.opened: LoadedModel = open_any(path, opening.device, opening.provider)
        self.runner: Runner = self.opened.runner(opening.precision)
        self.task, self.pipeline = self.opened.task(), self.opened.pipeline()
        self.size_hw = self._fixed_size()
        self.input, self.outputs = self._tensors()
        self.batcher = Batcher(self.runner, limits, metrics, name)

    def _fixed_size(self) -> tuple[int, int] | None:
        """Return (height, width) of every picture that the model gets, or None where pictures keep their sizes."""
        grey = [self._batch(torch.full((3, *size_hw), 128, dtype=torch.uint8)).images for size_hw in SIZES]
        sizes = {(images.shape[2], images.shape[3]) for images in grey}
        return sizes.pop() if len(sizes) == 1 else None

    def _tensors(self) -> tuple[TensorSpec, list[TensorSpec]]:
        """Return what goes in and out; a model whose size is known runs once, to be warm and to say its types."""
        opened = self.opened
        free = self.size_hw is None or (isinstance(opened, ExportedModel) and opened.info.dynamic_size)
        height, width = (-1, -1) if free or self.size_hw is None else self.size_hw
        shapes = self.task.output_shapes(self.size_hw or SIZES[1], self.runner.stage)
        types = ["FP32"] * len(shapes)
        if self.size_hw is not None:
            outputs = self.runner(torch.full((1, 3, *self.size_hw), 128, dtype=torch.uint8))
            types = ["FP32" if torch.as_tensor(output).is_floating_point() else "INT64" for output in outputs]
        fixed = not free or self.task.predicts == "classes" or self.runner.stage == "nms"
        outputs = [
            TensorSpec(name, type_, (-1, *shape) if fixed else (-1, *(-1 for _ in shape)))
            for (name, shape), type_ in zip(shapes.items(), types, strict=True)
        ]
        if self.runner.input == "uint8_nhwc":
            return TensorSpec("images", "UINT8", (-1, height, width, 3)), outputs
        return TensorSpec("images", "FP32", (-1, 3, height, width)), outputs

    @property
    def metadata(self) -> JsonObject:
        """Return the protocol's description of the model."""
        outputs = [spec.plain for spec in self.outputs]
        head = {"name": self.name, "versions": [self.version], "platform": self.runner.name}
        return {**head, "inputs": [self.input.plain], "outputs": outputs}

    @property
    def card(self) -> JsonObject:
        """Return what the page shows of the model."""
        recipe, path = self.opened.recipe, self.opened.path
        return {
            "name": self.name,
            "network": str(recipe.model["name"]),
            "runtime": self.runner.name,
            "size_bytes": bytes_of(path) if path.is_file() else None,
            "predicts": self.task.predicts,
            "classes": len(self.opened.class_names),
            "input_hw": self.size_hw,
            "explains": isinstance(self.opened, TorchModel),
            "sha256": self.opened.sha256,
        }

    def images_of(self, datatype: str, array: np.ndarray) -> Tensor:
        """Return the pictures [B, 3, H, W] of a tensor. Raises Refusal (400, 422) for what the model does not take.

        A model that takes normalised floats takes pixels, UINT8 of the same shape, too.
        """
        if datatype not in (self.input.datatype, "UINT8") or not self.input.takes(array.shape):
            types = " or ".join(dict.fromkeys([self.input.datatype, "UINT8"]))
            shape, actual = list(self.input.shape), f"{datatype} {list(array.shape)}"
            raise Refusal(400, f"input {self.input.name}: takes {types} {shape}, not {actual}")
        if array.size > 3 * self.limits.pixels or len(array) > self.limits.pictures:
            most = f"{self.limits.pictures} pictures, {self.limits.pixels:,} pixels"
            raise Refusal(422, f"input {self.input.name}: {list(array.shape)} is more than {most}")
        images = torch.from_numpy(array)
        return images.permute(0, 3, 1, 2) if self.runner.input == "uint8_nhwc" else images

    def prepared(self, picture: bytes, shown: str) -> Batch:
        """Return a picture file as the model gets it. Raises DataError: no such picture, or one beyond the limits."""
        return self._batch(decode_rgb(picture, shown, self.limits.pixels))

    def _batch(self, image: Tensor) -> Batch:
        # By the model's name, because what transforms log is no request's content.
        sample = Sample(image, 0, 0, self.name, (image.shape[1], image.shape[2]))
        return self.task.collate([self.pipeline(sample, Key(0, 0))])

    async def run(self, images: Tensor) -> Run:
        """Run pictures. Raises Refusal (422) where a model of free size fails on theirs, and what its runner raises."""
        try:
            return await self.batcher(images)
        except RuntimeError:
            if self.size_hw is not None:
                raise
            height, width = images.shape[2:]
            raise Refusal(422, f"{self.name} fails on pictures of {height}x{width}") from None

    async def predict(self, pool: "Pool", picture: bytes, shown: str, min_score: float) -> tuple[JsonObject, Run]:
        """Return what the verb `predict` prints of a picture as JSON. Raises DataError, ConvzooError."""
        batch = await pool(self.prepared, picture, shown)
        run = await self.run(batch.images)
        return await pool(self._row, run, batch, shown, min_score), run

    def _row(self, run: Run, batch: Batch, shown: str, min_score: float) -> JsonObject:
        prediction: Prediction = self.task.postprocess(run.outputs, batch)[0]
        height, width = batch.original_hw[0].tolist()
        size_only = np.broadcast_to(np.uint8(0), (height, width, 3))  # the pixels are not held until the answer
        return answer(shown, size_only, prediction, self.opened.class_names, min_score).row()


class Pool:
    """Threads for what takes longer than an event loop may stand still: decoding, JSON, boxes, opening files."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="serve")

    async def __call__(self, function: Callable[..., T], *arguments: object) -> T:
        call = functools.partial(function, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return a name for each file: its stem; where two have it the whole name; else with the folders that differ.

    Every run has a `checkpoints/last.safetensors`, so the folder of checkpoints is left out: RUN-last.

    Raises:
        UsageError: one file twice, or folders and files whose names together are the same.
    """
    levels = [_names(path) for path in paths]
    shared = [Counter(names) for names in zip(*levels, strict=False)]
    named = [
        next((name for name, count in zip(names, shared, strict=False) if count[name] == 1), "") for names in levels
    ]
    if len({*named}) < len(paths) or "" in named:
        raise UsageError(f"{', '.join(map(str, paths))}: two models of one name; rename a file")
    return named


def _names(path: Path) -> list[str]:
    """Return the names that a file may have, the shortest first."""
    folders = [part for part in path.resolve().parts[1:-1] if part != "checkpoints"]
    before = ["", *("".join(f"{part}-" for part in folders[-n:]) for n in range(1, len(folders) + 1))]
    return [folder + name for folder in before for name in (path.stem, path.name)]


class Models:
    """Models by name (`names_of`)."""

    def __init__(self, paths: Sequence[Path], opening: Opening, limits: Limits, metrics: Metrics):
        """Open all. Raises UsageError (one file twice), and what `ServedModel` raises."""
        self._opening, self._limits, self._metrics = opening, limits, metrics
        self._paths = dict(zip(names_of(paths), paths, strict=True))
        self._models = {name: self._open(name, 1) for name in self._paths}
        self._replacing = asyncio.Lock()

    def _open(self, name: str, version: int) -> ServedModel:
        return ServedModel(name, version, self._paths[name], self._opening, self._limits, self._metrics)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def get(self, name: str, version: str | None = None) -> ServedModel:
        """Return a model. Raises Refusal (404)."""
        model = self._models.get(name)
        if model is None or version not in (None, model.version):
            raise Refusal(404, "no such model, or not of that version")
        return model

    async def replace(self, name: str, pool: Pool) -> ServedModel:
        """Open a model's file again; from then on requests get the new one, and those before it still the old one.

        Raises:
            Refusal: 404.
            UsageError, ConvzooError, MissingPackageError: the file does not open; the old model stays.
        """
        old = self.get(name)
        async with self._replacing:
            try:
                model = await pool(self._open, name, int(self.get(name).version) + 1)
            except Exception:
                self._metrics.add("convzoo_model_loads_total", model=old.name, outcome="failed")
                raise
            self._metrics.add("convzoo_model_loads_total", model=name, outcome="ok")
            self._models[name] = model
        return model
