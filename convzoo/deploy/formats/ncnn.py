"""NCNN: a .param with the graph as text and a .bin with the weights, which pnnx makes from TorchScript.

Neither has a place for metadata, so it lies in a third file, with a seal over all three.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from convzoo.deploy import library
from convzoo.deploy.exported import RuntimeOptions, Session
from convzoo.deploy.formats.ncnn_graph import translatable
from convzoo.deploy.graph import quiet
from convzoo.deploy.metadata import MAX_DOCUMENT, ExportInfo, check_seal, sealed
from convzoo.errors import ConvzooError, MissingPackageError, UsageError

if TYPE_CHECKING:
    from convzoo.deploy.export import ExportOptions

PACKAGES = ("ncnn", "pnnx")
PRECISIONS = ("fp32", "fp16")
LIMIT_S = 900  # pnnx takes seconds, and a minute for the largest of these networks
MAX_PARAM = 16 << 20
INPUT = "images"
# What NCNN computes in; it takes float32 where the processor does not have the other, as x86 does for float16.
SWITCHES = {
    "fp32": (),
    "bf16": ("use_bf16_storage",),
    "fp16": ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"),
}


def prepare(options: "ExportOptions") -> "ExportOptions":
    """Complete a the options. Raises UsageError for what these files do not have."""
    if options.dynamic_size:
        raise UsageError("--format ncnn --dynamic-size: an NCNN file takes pictures of one size")
    if options.preprocessing:
        raise UsageError("--format ncnn --preprocessing: an NCNN file takes float32 pictures, normalised")
    if options.batch not in (None, 1):
        raise UsageError(f"--format ncnn --batch {options.batch}: an NCNN file takes one picture at a time")
    if options.stage == "nms":
        suppress()
    return replace(options, batch=1)


def suppress(*_: object) -> Tensor:
    """Refuse: NCNN has no suppression for boxes in pixels. Raises UsageError."""
    raise UsageError("--format ncnn --stage nms: NCNN files have no suppression inside; use --stage decoded")


def write(program: torch.export.ExportedProgram, info: ExportInfo, path: Path) -> list[Path]:
    """Have pnnx convert a traced network, and write .param, .bin and .json.

    Raises:
        ConvzooError: pnnx fails on this network, or NCNN has no layer for a part of it.
        MissingPackageError, OSError.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        script = folder / "network.pt"
        shape = (1, 3, *info.size)
        with torch.no_grad(), quiet():
            network = translatable(program.module())
            traced = torch.jit.trace(network, torch.zeros(shape), check_trace=False)
            torch.jit.save(traced, script)
        _convert(script, shape, info.precision == "fp16")
        text, weights = (script.with_suffix(f".ncnn.{part}").read_bytes() for part in ("param", "bin"))
    names = {"in0": INPUT, **{f"out{i}": name for i, name in enumerate(info.output_shapes())}}
    text = re.sub(r"\b(in0|out\d+)\b", lambda match: names.get(match[0], match[0]), text.decode()).encode()
    _check_layers(text)
    return relabel((text, weights), info, path)


def relabel(content: tuple[bytes, bytes], info: ExportInfo, path: Path) -> list[Path]:
    """Write .param and .bin with other metadata. Raises OSError."""
    weights, beside = path.with_suffix(".bin"), path.with_suffix(".json")
    for file, data in zip((path, weights), content, strict=True):
        file.write_bytes(data)
    beside.write_bytes(sealed(info.to_json().encode(), *content))
    return [weights, beside]


def _convert(script: Path, shape: tuple[int, ...], half: bool) -> None:
    """Run pnnx on a TorchScript file; what it makes lies beside it. Raises ConvzooError, MissingPackageError."""
    program = library("pnnx", "--format ncnn").EXEC_PATH
    shapes = f"inputshape=[{','.join(map(str, shape))}]f32"
    command = [program, script.name, shapes, f"fp16={int(half)}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    try:
        done = subprocess.run(
            command,
            cwd=script.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        raise ConvzooError(f"pnnx is not done with this network after {LIMIT_S} s") from None
    except OSError as error:
        raise MissingPackageError(f"{program}: {(error.strerror or 'does not start').lower()}; install pnnx") from None
    if done.returncode or not all(script.with_suffix(f".ncnn.{part}").is_file() for part in ("param", "bin")):
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["nothing"]
        raise ConvzooError(f"pnnx fails on this network ({done.returncode}) and says: {lines[-1][:200]}")


def _layers(text: bytes) -> Iterator[str]:
    """Yield the type of each layer of a .param, whose first two lines are a number and two counts."""
    yield from (line.split()[0].decode() for line in text.splitlines()[2:] if line.strip())


def _check_layers(text: bytes) -> None:
    """Raise ConvzooError for what pnnx could not translate and left as it was."""
    ncnn = library("ncnn", "--format ncnn")
    unknown = sorted({layer for layer in _layers(text) if ncnn.layer_to_index(layer) < 0})
    if unknown:
        raise ConvzooError(f"NCNN has no layer for parts of this network: {', '.join(unknown)}; use onnx or openvino")


def read(path: Path) -> tuple[str, tuple[bytes, bytes]]:
    """Return the metadata and the verified bytes of .param and .bin that convzoo wrote. Raises ConvzooError."""
    weights, beside = path.with_suffix(".bin"), path.with_suffix(".json")
    for file, what in ((weights, "the weights"), (beside, "its metadata")):
        if not file.is_file():
            raise ConvzooError(f"{file.name}, {what}, is not beside it; convzoo writes all three")
    if path.stat().st_size > MAX_PARAM or beside.stat().st_size > MAX_DOCUMENT:
        raise ConvzooError("larger than an NCNN .param of these networks, or its metadata, can be")
    document, content = beside.read_bytes(), (path.read_bytes(), weights.read_bytes())
    check_seal(document.decode("utf-8", "replace"), document, *content)
    return document.decode(), content


def start(content: tuple[bytes, bytes], info: ExportInfo, options: RuntimeOptions) -> Session:
    """Load the file in the precision asked for, on as many threads as PyTorch. Raises UsageError, ConvzooError."""
    ncnn = library("ncnn", "running an NCNN file")
    if options.precision not in SWITCHES:
        raise UsageError(f"--precision {options.precision}: one of {', '.join(SWITCHES)}")
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = torch.get_num_threads()
    for precision, names in SWITCHES.items():
        for name in names:
            setattr(net.opt, name, precision == options.precision)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"network.{part}" for part in ("param", "bin")]
        for file, data in zip(files, content, strict=True):
            file.write_bytes(data)
        if net.load_param(str(files[0])) or net.load_model(str(files[1])):
            raise ConvzooError("NCNN does not load it")
    names = list(info.output_shapes())

    def run(images: Tensor) -> list[np.ndarray]:
        extractor = net.create_extractor()
        extractor.input(INPUT, ncnn.Mat(images[0].numpy()))
        outputs = []
        for name in names:
            code, output = extractor.extract(name)
            if code:
                raise ConvzooError(f"NCNN fails with {code} before {name}")
            outputs.append(np.array(output)[None])
        return outputs

    return run
