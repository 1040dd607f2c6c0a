"""Open exported files and run them: every one takes the same pictures and answers in the same form."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convzoo import build
from convzoo.config import recipe as recipes
from convzoo.config.recipe import Recipe
from convzoo.convert.convert import open_converted
from convzoo.convert.sources import WEIGHT_SUFFIXES, is_own, open_source
from convzoo.convert.state_dict import ANY, ExpectedWeights
from convzoo.data.transforms.pipeline import Pipeline, normalize
from convzoo.deploy import SUFFIXES, format_module, format_of
from convzoo.deploy.metadata import ExportInfo, check_document, first_line
from convzoo.errors import ConvzooError, UsageError
from convzoo.inference import torch_model
from convzoo.inference.loaded import LoadedModel
from convzoo.storage import Remote, local_path, url_of
from convzoo.types import Output, Task

STEP = re.compile(r"step-\d+\.safetensors$")  # what a run saves
Session = Callable[[Tensor], Sequence[Output]]  # pictures as the file takes them -> its outputs in order


@dataclass(frozen=True)
class RuntimeOptions:
    """Where and how a file runs: the device, ONNX Runtime's execution provider, and the precision."""

    device: str = "cpu"
    provider: str | None = None
    precision: str = "fp32"


class ExportRunner:
    """Run an exported file: uint8 or normalised float32 pictures [B, 3, H, W] to a tuple of tensors on the CPU."""

    def __init__(self, name: str, path: Path, info: ExportInfo, recipe: Recipe, session: Session):
        self.name, self.device = name, "cpu"
        self.input, self.stage = info.input, info.stage
        self.path, self.info, self.session = path, info, session
        self.mean, self.std = recipe.transform.mean, recipe.transform.std

    def __call__(self, images: np.ndarray | Tensor) -> tuple[Tensor, ...]:
        """Raises UsageError for pictures that the file does not take, ConvzooError where its runtime fails."""
        x = torch.as_tensor(images).cpu()
        self._check(x)
        if self.input == "uint8_nhwc":
            x = x.permute(0, 2, 3, 1)
        elif x.dtype == torch.uint8:
            x = normalize(x, self.mean, self.std)
        size = self.info.batch or len(x)
        rows = 1 if self.input == "uint8_nhwc" else 2
        size_hw = x.shape[rows], x.shape[rows + 1]
        parts = [self._run(chunk, size, size_hw) for chunk in x.split(size)]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != 3 or not len(x):
            raise UsageError(f"{self.path}: takes pictures [B, 3, H, W], not {list(x.shape)}")
        if x.dtype != torch.uint8 and (self.input == "uint8_nhwc" or x.dtype != torch.float32):
            inside = "uint8; it normalises them itself" if self.input == "uint8_nhwc" else "uint8 or float32"
            raise UsageError(f"{self.path}: takes pictures of {inside}, not {str(x.dtype).removeprefix('torch.')}")
        height, width = x.shape[2:]
        step = self.info.size_step
        if self.info.dynamic_size and (height % step or width % step):
            raise UsageError(f"{self.path}: takes sizes that are multiples of {step}, not {height}x{width}")
        if not self.info.dynamic_size and (height, width) != self.info.size:
            expected = "x".join(map(str, self.info.size))
            raise UsageError(f"{self.path}: takes pictures of {expected} pixels, not {height}x{width} (export --size)")

    def _run(self, chunk: Tensor, size: int, size_hw: tuple[int, int]) -> list[Tensor]:
        """Run one batch, filled up where the file takes a fixed number of pictures."""
        real = len(chunk)
        if real < size:
            chunk = torch.cat([chunk, chunk[-1:].expand(size - real, *chunk.shape[1:])])
        try:
            outputs = [torch.as_tensor(output) for output in self.session(chunk.contiguous())]
        except Exception as error:
            raise ConvzooError(f"{self.path}: its runtime failed: {first_line(error)}") from error
        problem = self._misfit(outputs, size, size_hw)
        if problem:
            raise ConvzooError(f"{self.path}: its outputs {problem}")
        return [output[:real] for output in outputs]

    def _misfit(self, outputs: list[Tensor], size: int, size_hw: tuple[int, int]) -> str | None:
        """Say what keeps outputs from being those of the metadata, or None."""
        shapes, classes = self.info.output_shapes(size_hw), len(self.info.class_names)
        actual = [tuple(output.shape) for output in outputs]
        if actual != [(size, *shape) for shape in shapes.values()]:
            return f"are {actual}, not {', '.join(shapes)} of {size} pictures and {classes} classes"
        if self.stage == "nms" and outputs[2].numel() and outputs[2].max() >= classes:
            return f"name class {int(outputs[2].max())} of {classes}"
        return None


@dataclass
class ExportedModel:
    """An exported file, read and verified; `runner` starts it. One of the `LoadedModel`s."""

    path: Path
    format: str
    info: ExportInfo
    recipe: Recipe
    content: Any  # Any: what the format's module read; only its own `start` looks inside
    options: RuntimeOptions

    @property
    def class_names(self) -> list[str]:
        return self.info.class_names

    @property
    def sha256(self) -> str:
        return self.info.seal.removeprefix("sha256:")

    def task(self) -> Task:
        return build.build_task(self.recipe, self.class_names)

    def pipeline(self) -> Pipeline:
        return build.eval_pipeline(self.recipe, self.info, self.info.size)

    def runner(self, precision: str = "fp32") -> ExportRunner:
        """Start the file in its runtime. Raises UsageError, ConvzooError, MissingPackageError."""
        try:
            session = format_module(self.format).start(
                self.content, self.info, replace(self.options, precision=precision)
            )
        except ConvzooError as error:
            raise type(error)(f"{self.path}: {error}") from None
        except Exception as error:
            raise ConvzooError(f"{self.path}: its runtime does not take it: {first_line(error)}") from error
        return ExportRunner(self.format, self.path, self.info, self.recipe, session)

    def changed(self, overrides: tuple[str, ...]) -> "ExportedModel":
        """Return the same file under a recipe with overrides. Raises UsageError for what is fixed in the file."""
        recipe = recipes.with_overrides(self.recipe, overrides)
        fixed = {"model": recipe.model != self.recipe.model}
        if self.info.input == "uint8_nhwc":
            before, after = self.recipe.transform, recipe.transform
            fixed["transform.mean and std"] = (before.mean, before.std) != (after.mean, after.std)
        if self.info.stage == "nms":
            fixed["postprocess"] = recipe.postprocess != self.recipe.postprocess
        for key, is_other in fixed.items():
            if is_other:
                raise UsageError(f"{self.path}: {key} is fixed in an exported file; export the model again")
        return replace(self, recipe=recipe)


def open_exported(
    path: str | Path, options: RuntimeOptions | None = None, overrides: tuple[str, ...] = ()
) -> ExportedModel:
    """Read and verify an exported file, its format told by its suffix.

    Raises:
        UsageError: no such file, an unknown suffix, or an override that does not fit.
        ConvzooError: not a file that convzoo exported, or a damaged one.
        MissingPackageError: its library is not installed.
    """
    path = local_path(path)
    name = format_of(path)
    if name is None:
        known = ", ".join(SUFFIXES.values())
        raise UsageError(f"{path}: neither a model file (.safetensors) nor an exported one ({known})")
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        document, content = format_module(name).read(path)
        info, recipe = check_document(document)
    except ConvzooError as error:
        raise type(error)(f"{path}: {error}") from None
    opened = ExportedModel(path, name, info, recipe, content, options or RuntimeOptions())
    return opened.changed(overrides) if overrides else opened


def open_any(
    path: str | Path,
    device: torch.device,
    provider: str | None = None,
    overrides: tuple[str, ...] = (),
    expected: ExpectedWeights = ANY,
) -> LoadedModel:
    """Open a model file, an exported one, or weights of another program, converted in memory as `expected` says.

    Raises:
        UsageError, ConvzooError, MissingPackageError: as `open_exported`, `torch_model.open_model`, `open_source` say.
    """
    path = local_path(path)
    if provider and path.suffix.lower() != ".onnx":
        raise UsageError(f"--provider {provider}: only ONNX Runtime has those; {path.name} is not an .onnx file")
    if is_foreign(path):
        return open_converted(open_source(path, expected), device).changed(overrides)
    if expected.cfg is not None and path.is_file():
        raise UsageError(f"{path}: no weights of Darknet, which alone have a .cfg")
    if format_of(path):
        return open_exported(path, RuntimeOptions(str(device), provider), overrides)
    return torch_model.open_model(path, device, overrides)


def is_foreign(path: Path) -> bool:
    """Tell weights of another program from a model file or an exported one, damaged or mistaken ones included."""
    if not path.is_file() or format_of(path) or is_own(path):
        return False
    return path.suffix != ".safetensors" or path.open("rb").read(9)[8:] == b"{"


def _files_in(path: Path) -> list[Path] | None:
    """Return the files in a folder, or in its `checkpoints` where it has them; None for what is no folder."""
    if url_of(path) is None:
        if not path.is_dir():
            return None
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        return [file for file in sorted(folder.iterdir()) if file.is_file()]
    names = [PurePosixPath(name) for name in Remote(path).files() if name]
    folders = {name.parent for name in names}
    folder = PurePosixPath("checkpoints" if PurePosixPath("checkpoints") in folders else ".")
    return [path / name for name in names if name.parent == folder] or None


def model_files(path: Path) -> list[Path]:
    """Return the file itself, a run's checkpoints, or every file in a folder that its name says opens.

    Of a URL likewise; the files come when they are opened.

    Raises:
        UsageError: no such file in the folder.
    """
    inside = _files_in(path)
    if inside is None:
        return [path]
    suffixes = (".safetensors", *WEIGHT_SUFFIXES, *SUFFIXES.values())
    files = [file for file in inside if file.name.lower().endswith(suffixes)]
    files = [file for file in files if not file.name.endswith(".state.pt")]
    if any(STEP.match(file.name) for file in files):  # `last` and `best` are two of these
        files = [file for file in files if file.name not in ("last.safetensors", "best.safetensors")]
    if not files:
        raise UsageError(f"{path}: no model files in it ({', '.join(suffixes)})")
    return files
