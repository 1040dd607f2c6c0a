"""Ascend: AIR, which MindSpore writes on an Ascend host, and OM, which the vendor's `atc` makes and its `acl` runs.

Neither tool comes with a package index; both are parts of CANN (hiascend.com). Where one is missing, what the device
needs is written as far as possible, and the error says what to take along and run there.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from convzoo.deploy import export as exporting
from convzoo.deploy import parity
from convzoo.deploy.exported import ExportedModel, RuntimeOptions, Session, open_exported
from convzoo.deploy.formats import mindir
from convzoo.deploy.formats.ascend_runtime import AclSession
from convzoo.deploy.graph import Deployed, trace
from convzoo.deploy.metadata import UNSEALED, ExportInfo, check_document
from convzoo.deploy.parity import HALF_TOLERANCE  # the device computes in float16
from convzoo.errors import ConvzooError, MissingPackageError, ToleranceError, UsageError
from convzoo.files import written_whole
from convzoo.inference.torch_model import TorchModel
from convzoo.logs import log

PACKAGES = ()
FRAMEWORKS = {".onnx": 5, ".mindir": 1, ".air": 1}  # atc's numbers
CANN = "a part of CANN (hiascend.com)"


def export(opened: TorchModel, options: exporting.ExportOptions) -> exporting.ExportResult:
    """Write an .air or .om file from a model.

    The report's comparison is the .om file's where `acl` can run it, else that of the file it was made from.

    Raises:
        MissingPackageError: no Ascend host, or no `atc`; what was written, and compared, is named with what to do.
        ToleranceError, UsageError, ConvzooError: as `export.export`.
    """
    if options.dynamic_size:
        raise UsageError(f"--format {options.format} --dynamic-size: Ascend files take pictures of one size")
    options = replace(options, batch=options.batch or 1)
    return _export_air(opened, options) if options.format == "air" else _export_om(opened, options)


def _export_air(opened: TorchModel, options: exporting.ExportOptions) -> exporting.ExportResult:
    """Write NAME.mindir, compared, and the same network as NAME.air, which only `atc` reads."""
    started = time.perf_counter()
    target = exporting.target_path(opened.path, options.out, ".air")
    along = [opened.path]
    try:
        sibling = target.with_suffix(".mindir")
        result = exporting.export(opened, mindir.prepare(replace(options, format="mindir", out=sibling)))
        along.append(sibling)
        program = trace(Deployed(_resized(opened, options), result.info, mindir.suppress))
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            draft = Path(folder) / target.name
            info = result.info.model_copy(update={"seal": UNSEALED})
            publish([draft, *mindir.write(program, info, draft, "AIR")], target.parent)
    except MissingPackageError as error:
        raise MissingPackageError(
            "AIR files are written on an Ascend host, with CANN and its MindSpore; "
            f"take {' or '.join(map(str, along))} "
            f"along and run there: convzoo export {opened.path.name} --format air ({error})"
        ) from None
    log.warning(f"{target.name} cannot be run as it is; what was compared is {sibling.name}, the same network")
    return _reported(result, target, "air", started)


def _export_om(opened: TorchModel, options: exporting.ExportOptions) -> exporting.ExportResult:
    """Write NAME.onnx (or .mindir), compared, what AIPP is to do, if it is, and NAME.om from them."""
    started = time.perf_counter()
    target = exporting.target_path(opened.path, options.out, ".om")
    through = "onnx" if find_spec("onnxscript") else "mindir"
    source = target.with_suffix(f".{through}")
    before = replace(options, format=through, out=source, preprocessing=False)
    result = exporting.export(opened, mindir.prepare(before) if through == "mindir" else before)
    settings = None
    tolerance = max(result.info.tolerance or 0.0, HALF_TOLERANCE)
    info = result.info.model_copy(update={"seal": UNSEALED, "tolerance": tolerance})
    if options.preprocessing:
        info = info.model_copy(update={"input": "uint8_nhwc"})
        settings = target.with_suffix(".aipp.cfg")
        with written_whole(settings) as temporary:
            temporary.write_text(aipp(info), encoding="utf-8")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        draft = Path(folder) / target.name
        compile_om(source, info, draft, settings, options.soc_version)
        beside = mindir.write_beside(info, draft)
        if find_spec("acl"):
            comparison = _compared(_resized(opened, options), open_exported(draft), options)
            result = replace(result, parity=comparison)
        else:
            log.warning(
                f"{target.name} was not run: `acl` is not here; what was compared is {source.name}. On the device: "
                "convzoo eval, or convzoo predict --dump-inputs and convzoo eval --raw-outputs"
            )
        publish([draft, beside], target.parent)
    return _reported(result, target, "om", started)


def _reported(result: exporting.ExportResult, target: Path, format: str, started: float) -> exporting.ExportResult:
    info = check_document(mindir.read_beside(target)[0])[0]
    seconds, size = time.perf_counter() - started, target.stat().st_size
    return replace(result, path=target, format=format, info=info, bytes=size, seconds=seconds)


def _resized(opened: TorchModel, options: exporting.ExportOptions) -> TorchModel:
    return exporting.resized(opened, options.size) if options.size else opened


def publish(drafts: list[Path], folder: Path) -> None:
    """Give written files their names, the main one, which is first, last."""
    for draft in reversed(drafts):
        with written_whole(folder / draft.name) as temporary:
            os.replace(draft, temporary)


def _compared(opened: TorchModel, file: ExportedModel, options: exporting.ExportOptions) -> parity.Parity:
    tolerance = file.info.tolerance or HALF_TOLERANCE
    real = parity.pictures(opened, options.data, file.info.size)
    comparison = parity.compare(opened, file.runner(), real, tolerance)
    if not comparison.largest <= tolerance:
        message = "; ".join(exporting.differences(comparison))
        raise ToleranceError(f"{file.path.name}: not what the model does within {tolerance:g}, and not kept: {message}")
    return comparison


# --- atc


def aipp(info: ExportInfo) -> str:
    """Return the configuration with which AIPP normalises uint8 RGB pictures [B, H, W, 3]: (value - min) * var_reci.

    That is (value / 255 - mean) / std, as `pipeline.normalize`. Keys and formula: CANN's ATC guide, "AIPP".
    """
    height, width = info.size
    lines = [
        *("aipp_mode: static", "related_input_rank: 0", "input_format: RGB888_U8"),
        *(f"src_image_size_w: {width}", f"src_image_size_h: {height}"),
        *("crop: false", "csc_switch: false", "rbuv_swap_switch: false"),
    ]
    lines += [f"min_chn_{i}: {255 * mean:.9g}" for i, mean in enumerate(info.preprocessing["mean"])]
    lines += [f"var_reci_chn_{i}: {1 / (255 * std):.9g}" for i, std in enumerate(info.preprocessing["std"])]
    return "\n".join(["aipp_op {", *(f"    {line}" for line in lines), "}", ""])


def compile_om(source: Path, info: ExportInfo, target: Path, settings: Path | None, soc_version: str) -> None:
    """Run `atc` on a float32 ONNX, MINDIR or AIR file of convzoo's, or an INT8 one of AMCT's.

    Args:
        settings: a file with what `aipp` returns, None for normalised input.
    Raises:
        MissingPackageError: no `atc` on PATH; says the command.
        ConvzooError: it failed, with the last line that it said.
    """
    files = [f"--model={source}", f"--output={target.with_suffix('')}"]
    command = ["atc", f"--framework={FRAMEWORKS[source.suffix]}", *files, "--input_format=NCHW"]
    command += [f"--input_shape={shape(info)}", f"--soc_version={soc_version}", "--log=error"]
    command += [f"--insert_op_conf={settings}"] if settings else []
    call(command, "OM files need the vendor's atc", [source, *([settings] if settings else [])], target)


def shape(info: ExportInfo) -> str:
    return f"images:{info.batch or 1},3,{info.size[0]},{info.size[1]}"


def call(command: list[str], missing: str, needed: list[Path], target: Path) -> None:
    """Run a tool of the vendor's that has to write `target`. Raises MissingPackageError, ConvzooError."""
    if not shutil.which(command[0]):
        there = [re.sub(r"=.*/", "=", word) for word in command]  # where the files lie in one folder
        along = " and ".join(map(str, needed))
        raise MissingPackageError(f"{missing}, {CANN}; take {along} along and run there: {shlex.join(there)}")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode or not target.is_file():
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["nothing"]
        raise ConvzooError(f"{command[0]} failed ({done.returncode}) and said: {lines[-1].strip()[:200]}")


# --- running .om files


def suppress(*_: object) -> Tensor:
    """Refuse: Ascend files are made from others. Raises UsageError."""
    raise UsageError("--format om: written from an ONNX or a MINDIR file")


def read(path: Path) -> tuple[str, bytes]:
    """Return the metadata and the bytes of a file that convzoo wrote. Raises ConvzooError."""
    return mindir.read_beside(path)


def start(content: bytes, info: ExportInfo, options: RuntimeOptions) -> Session:
    """Load the file on a device. Raises UsageError, MissingPackageError without `acl`, ConvzooError where acl fails."""
    if options.precision != "fp32":
        raise UsageError(f"--precision {options.precision}: an .om file has the precision that atc gave it")
    try:
        acl = importlib.import_module("acl")
    except ImportError as error:
        raise MissingPackageError(f"running an .om file needs the vendor's acl, {CANN} ({error})") from None
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "network.om"
        copy.write_bytes(content)
        return AclSession(acl, copy, int(options.device.partition(":")[2] or 0))
