"""Export: trace, write, open in its own runtime, compare with PyTorch, and only then give the file its name."""

import contextlib
import dataclasses
import importlib.metadata
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch

from convzoo import build
from convzoo.config import recipe as recipes
from convzoo.deploy import SUFFIXES, format_module, library
from convzoo.deploy.exported import ExportedModel, open_exported
from convzoo.deploy.graph import Deployed, check_suppression, folded, trace
from convzoo.deploy.metadata import ExportInfo, first_line
from convzoo.deploy.parity import (
    HALF_TOLERANCE,
    MOST_TOLERANCE,
    ROUNDING_FACTOR,
    Parity,
    compare,
    float32_rounding,
    half_rounding,
    pictures,
)
from convzoo.errors import ConvzooError, ToleranceError, UsageError
from convzoo.files import written_whole
from convzoo.inference.torch_model import TorchModel
from convzoo.plain import JsonObject
from convzoo.types import Key

VERSIONED = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "openvino", "ncnn", "pnnx")


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        format: a key of `deploy.FORMATS`.
        out: the file, or a folder for it; None for beside the model.
        stage: see `types.Runner`; detection only, but for "raw".
        preprocessing: take uint8 pictures [B, H, W, 3] and normalise them inside.
        batch: pictures in a batch, None for any number.
        size: (height, width), None for what the recipe's evaluation transform gives.
        dynamic_size: take other sizes too, multiples of 32.
        data: folder of the recipe's data set, to compare on; None for the embedded pictures.
        tolerance: the largest max|a-b| / max|b| that is allowed, or four times what float32 alone costs the model on
            the pictures compared, where that is more, and up to `parity.MOST_TOLERANCE`.
        precision: of the weights: "fp32", for NCNN also "fp16"; the file is then compared with the model of those
            weights, which differs from the model by at most the tolerance or 2e-2.
        soc_version: the Ascend chip of an .om file, as `atc` calls it.
        max_drop: what the fastest form may lose of the task's measure, in points of percent.
        calibration: pictures for the INT8 files among its forms; None for the training split.
    """

    format: str
    out: Path | None = None
    stage: Literal["raw", "decoded", "nms"] = "raw"
    preprocessing: bool = False
    batch: int | None = None
    size: tuple[int, int] | None = None
    dynamic_size: bool = False
    data: Path | None = None
    tolerance: float = 1e-4
    precision: str = "fp32"
    soc_version: str = "Ascend310"
    max_drop: float = 0.5
    calibration: Path | None = None


@dataclass(frozen=True)
class ExportResult:
    """An export that was compared and kept."""

    path: Path
    format: str
    info: ExportInfo
    parity: Parity
    bytes: int
    seconds: float

    @property
    def plain(self) -> JsonObject:
        keys = ("input", "stage", "size", "dynamic_size", "batch", "opset", "source_sha256")
        return {
            "file": str(self.path),
            "format": self.format,
            **{key: getattr(self.info, key) for key in (*keys, "precision", "half_rounding")},
            "sha256": self.info.seal.removeprefix("sha256:"),
            "bytes": self.bytes,
            "differences": self.parity.outputs,
            "largest_difference": self.parity.largest,
            "tolerance": self.info.tolerance,
            "rounding": self.info.rounding,
            "predictions_agreed": self.parity.agreed,
            "predictions": self.parity.predictions,
            "batches": self.parity.batches,
            "sizes": self.parity.sizes,
            "seconds": round(self.seconds, 2),
        }

    def text(self) -> str:
        info = self.info
        size = "any multiple of 32" if info.dynamic_size else "x".join(map(str, info.size))
        opset = f" opset {info.opset}" if info.opset else ""
        batch = "any" if info.batch is None else info.batch
        file = f"{self.path}  {self.format}{opset}, {self.bytes / 1e6:.1f} MB"
        half = ", weights in fp16" if info.half_rounding is not None else ""
        lines = [f"{file}{half}, {info.input}, size {size}, batch {batch}, {info.stage}"]
        lines += [f"  {line}" for line in differences(self.parity)]
        lines.append(f"  {info.tolerance:.1e} allowed; float32 alone differs by {info.rounding:.1e} from float64")
        if info.half_rounding is not None:
            lines.append(f"  compared with the model of float16 weights, which differs by {info.half_rounding:.1e}")
        lines.append(
            f"  predictions agree on {self.parity.agreed} of {self.parity.predictions} pictures; {self.seconds:.1f} s"
        )
        return "\n".join(lines)


def differences(parity: Parity) -> list[str]:
    """Return a line for each output."""
    by_output = {
        name: [f"{value:.1e} on {kind}" for kind, value in kinds.items()] for name, kinds in parity.outputs.items()
    }
    return [f"{name:11} largest relative difference {', '.join(parts)} pictures" for name, parts in by_output.items()]


def export(opened: TorchModel, options: ExportOptions) -> ExportResult:
    """Export a model that is open.

    Raises:
        UsageError: no such folder, or what the network cannot do.
        ConvzooError: a file that cannot be written.
        ToleranceError: the exported file does not do what the model does; nothing is left behind.
        MissingPackageError: the format's library is not installed.
    """
    started = time.perf_counter()
    module = format_module(options.format)
    precisions = getattr(module, "PRECISIONS", ("fp32",))
    if options.precision not in precisions:
        raise UsageError(f"--precision {options.precision}: --format {options.format} has {', '.join(precisions)}")
    if hasattr(module, "export"):  # made from another format's file
        return module.export(opened, options)
    options = module.prepare(options) if hasattr(module, "prepare") else options
    target = target_path(opened.path, options.out, SUFFIXES[options.format])
    for name in module.PACKAGES:
        library(name, f"--format {options.format}")
    if options.size:
        opened = resized(opened, options.size)
    check_stage(opened, options.stage)
    info = export_info(opened, options, getattr(module, "OPSET", None))
    _check_size(info)
    real = pictures(opened, options.data, info.size)
    info = _with_tolerance(opened, info, real, options)
    if options.precision == "fp16":
        opened, info = _in_float16(opened, info, real, options)
    with written_whole(target) as temporary, _folder_beside(target) as folder:
        draft = folder / target.name
        others = _write(module, opened, info, draft)
        exported, parity = _checked(opened, draft, real)
        size = sum(path.stat().st_size for path in (draft, *others))
        for other in others:
            with written_whole(target.with_name(other.name)) as beside:
                os.replace(other, beside)
        os.replace(draft, temporary)
    return ExportResult(target, options.format, exported.info, parity, size, time.perf_counter() - started)


def target_path(model: Path, out: Path | None, suffix: str, ending: str = "") -> Path:
    """Return where a file goes, `out` being it, its folder, or None for beside the model. Raises UsageError."""
    own = f"{model.stem}{ending}{suffix}"
    target = model.with_name(own) if out is None else out / own if out.is_dir() else out
    if not target.name.lower().endswith(suffix):
        raise UsageError(f"--out {target}: a file of this format ends in {suffix}")
    if not target.parent.is_dir():
        raise UsageError(f"--out {target}: {target.parent} is no folder")
    return target


def check_stage(opened: TorchModel, stage: str) -> None:
    """Raise UsageError for a stage that the model does not have, or that a graph cannot have with its settings."""
    if stage != "raw" and opened.task().predicts != "boxes":
        raise UsageError(f"--stage {stage}: for detectors; {opened.recipe.model['name']} is a classifier")
    if stage == "nms":
        check_suppression(opened.task().options)


def export_info(opened: TorchModel, options: ExportOptions, opset: int | None) -> ExportInfo:
    """Gather the metadata. Raises UsageError where the size of the pictures is not known."""
    return ExportInfo(
        recipe=opened.recipe.plain(),
        class_names=opened.class_names,
        task=opened.recipe.task,
        input="uint8_nhwc" if options.preprocessing else "float_nchw",
        stage=options.stage,
        size=options.size or input_size(opened, options.data),
        dynamic_size=options.dynamic_size,
        batch=options.batch,
        opset=opset,
        source_sha256=opened.sha256,
        metrics=opened.info.metrics,
        provenance=opened.info.provenance,
        licence=opened.info.licence,
        versions=versions(),
    )  # type: ignore[arg-type]


def _check_size(info: ExportInfo) -> None:
    """Raise UsageError for pictures of a size that the network cannot halve without remainders."""
    if any(side % info.size_step for side in info.size):
        given = "x".join(map(str, info.size))
        raise UsageError(
            f"{given} pixels: a detector's size, and any with --dynamic-size, is a multiple of {info.size_step}"
        )


def versions() -> dict[str, str]:
    """Return the versions of the libraries that write or run exported files, of those that are installed."""
    installed = {}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def input_size(opened: TorchModel, data: Path | None) -> tuple[int, int]:
    """Return the size that the evaluation transform gives, else the one that the model was trained on, else the data's.

    Raises:
        UsageError: none of them is known.
    """
    pipeline = build.build_pipeline(opened.recipe, "eval")
    known = build.given_size(pipeline) or opened.info.input_hw
    if known:
        return known
    try:
        image = pipeline(build.build_dataset(opened.recipe, data, "val").load(0), Key(0, 0)).image
    except UsageError:
        raise UsageError("the recipe keeps the size of its pictures: give --size HEIGHT,WIDTH, or --data") from None
    return image.shape[1], image.shape[2]


def resized(opened: TorchModel, size: tuple[int, int]) -> TorchModel:
    """Return the model with an evaluation transform to another size, in the same proportions. Raises UsageError."""
    plain = opened.recipe.plain()
    operations = [(name, keys) for step in plain["transform"]["eval"] for name, keys in step.items()]
    sized = [(name, keys) for name, keys in operations if "size_px" in keys]
    if not sized and opened.info.input_hw not in (None, size):
        return dataclasses.replace(opened, info=opened.info.model_copy(update={"metrics": {}, "input_hw": size}))
    if not sized or sized[-1][1]["size_px"] in (list(size), size[0] if size[0] == size[1] else None):
        return opened
    name, keys = sized[-1]
    makes_any = name == "letterbox" or keys.get("mode") == "stretch"
    if not makes_any and size[0] != size[1]:
        raise UsageError(f"--size {size[0]},{size[1]}: {name}, the recipe's last step, makes squares")
    if not makes_any:
        for _, others in sized[:-1]:
            others["size_px"] = round(others["size_px"] * size[0] / keys["size_px"])
    keys["size_px"] = list(size) if makes_any else size[0]
    info = opened.info.model_copy(update={"metrics": {}})  # measured at another size
    return dataclasses.replace(opened, recipe=recipes.from_plain(plain, opened.recipe.name), info=info)


@contextlib.contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(module: ModuleType, opened: TorchModel, info: ExportInfo, draft: Path) -> list[Path]:
    program = trace(Deployed(opened, info, module.suppress))
    try:
        return module.write(program, info, draft)
    except (ConvzooError, OSError, MemoryError):
        raise
    except Exception as error:
        _check_disk(draft, opened)
        raise ConvzooError(f"{opened.path}: cannot be written as {draft.suffix}: {first_line(error)}") from error


def _with_tolerance(opened: TorchModel, info: ExportInfo, real: torch.Tensor, options: ExportOptions) -> ExportInfo:
    """Add what the file may differ by.

    Raises:
        UsageError: pictures of another size than the network's only one.
        ToleranceError: outputs that are not finite, or that rounding alone changes too much to compare them.
    """
    try:
        rounding = float32_rounding(opened, info, real, options.tolerance)
    except RuntimeError as error:
        if options.size is None:
            raise
        size = "x".join(map(str, info.size))
        raise UsageError(f"{size} pixels: this network does not take them ({first_line(error)})") from error
    if not math.isfinite(rounding):
        raise ToleranceError(f"{opened.path}: its outputs are not finite, so no file can be compared (inf or NaN)")
    tolerance = max(options.tolerance, ROUNDING_FACTOR * rounding)
    if tolerance > max(options.tolerance, MOST_TOLERANCE):
        earlier = "" if info.stage == "raw" else "--stage raw gives the numbers before that; "
        raise ToleranceError(
            f"{opened.path}: float32 alone changes its outputs at stage {info.stage} by {rounding:.1e} of the largest, "
            f"so no comparison tells a right file from a wrong one, and none is written: {earlier}"
            f"--tolerance {tolerance:.2g} takes it as it comes"
        )
    return info.model_copy(update={"tolerance": tolerance, "rounding": rounding})


def _in_float16(
    opened: TorchModel, info: ExportInfo, real: torch.Tensor, options: ExportOptions
) -> tuple[TorchModel, ExportInfo]:
    """Round the weights to what the file will hold. Raises ToleranceError where that alone costs too much."""
    model = folded(opened.model)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            half = module.weight.half()
            module.weight.copy_(half.where(half.abs() >= torch.finfo(half.dtype).tiny, 0.0))  # pnnx writes no denormals
    rounded = dataclasses.replace(opened, model=model)
    cost, limit = half_rounding(opened, rounded, info, real), max(options.tolerance, HALF_TOLERANCE)
    if not cost <= limit:
        raise ToleranceError(
            f"{opened.path}: weights in float16 change its outputs by {cost:.1e}, {limit:.1e} is allowed; use float32"
        )
    return rounded, info.model_copy(update={"precision": "fp16", "half_rounding": cost})


def _checked(opened: TorchModel, draft: Path, real: torch.Tensor) -> tuple[ExportedModel, Parity]:
    """Open the draft in its own runtime and compare. Raises ToleranceError, or ConvzooError where it does not run."""
    try:
        exported = open_exported(draft)
        tolerance = exported.info.tolerance or 0.0
        parity = compare(opened, exported.runner(), real, tolerance)
    except ConvzooError:
        _check_disk(draft, opened)
        raise
    is_off = not parity.outputs or not parity.largest <= tolerance
    if is_off or (exported.info.stage == "nms" and parity.agreed < parity.predictions):
        lines = [*differences(parity), f"predictions agree on {parity.agreed} of {parity.predictions} pictures"]
        raise ToleranceError(
            f"{draft.name}: not what the model does within {tolerance:.2g}, and not kept: {'; '.join(lines)}"
        )
    return exported, parity


def _check_disk(draft: Path, opened: TorchModel) -> None:
    """Raise OSError where it was the disk that failed: libraries do not always say so, or even notice."""
    needed = sum(parameter.numel() * parameter.element_size() for parameter in opened.model.parameters())
    with open(draft.with_name("probe"), "wb") as file:
        for _ in range(0, needed, 1 << 20):
            file.write(bytes(1 << 20))
