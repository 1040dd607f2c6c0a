"""OpenVINO's intermediate representation: an .xml with the graph, a .bin with the weights, made from the ONNX graph."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from defusedxml import ElementTree

from convzoo.deploy import library
from convzoo.deploy.exported import RuntimeOptions, Session
from convzoo.deploy.formats import onnx
from convzoo.deploy.metadata import ExportInfo, check_seal, sealed
from convzoo.errors import ConvzooError, UsageError
from convzoo.plain import Keywords

PACKAGES = (*onnx.PACKAGES, "openvino")
OPSET = onnx.OPSET
suppress = onnx.suppress
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}  # without one OpenVINO takes bfloat16 where the CPU has it
MAX_XML = 64 << 20
Model = Any  # Any: OpenVINO's, which is imported only where it is there


def write(program: torch.export.ExportedProgram, info: ExportInfo, path: Path) -> list[Path]:
    """Translate a traced network by way of ONNX and write both files.

    Raises:
        ConvzooError: operators that OpenVINO does not convert, or not at this size.
        MissingPackageError, OSError.
    """
    openvino = library("openvino", "--format openvino")
    through = path.with_suffix(".onnx")
    through.write_bytes(onnx.translate(program, info).SerializeToString())
    try:
        model = openvino.convert_model(through)
    except Exception as error:
        failed = re.search(r"Conversion is failed for: (.+)", str(error))
        if failed is None:
            raise
        size = "x".join(map(str, info.size))
        raise ConvzooError(
            f"OpenVINO does not convert {failed[1].strip()} of this network at {size} pixels; give a larger --size, "
            "or use onnx"
        ) from error
    through.unlink()
    return save(model, info, path)


def relabel(content: tuple[bytes, bytes], info: ExportInfo, path: Path) -> list[Path]:
    """Write the bytes of both files with other metadata. Raises OSError, MissingPackageError."""
    return save(library("openvino", "--format openvino").Core().read_model(*content), info, path)


def save(model: Model, info: ExportInfo, path: Path) -> list[Path]:
    """Write a network as OpenVINO holds it, with its metadata. Raises OSError."""
    openvino = library("openvino", "--format openvino")
    model.set_rt_info(info.to_json(), "convzoo")
    openvino.save_model(model, path, compress_to_fp16=False)
    weights = path.with_suffix(".bin")
    path.write_bytes(sealed(path.read_bytes(), weights.read_bytes()))
    return [weights]


def read(path: Path) -> tuple[str, tuple[bytes, bytes]]:
    """Return the metadata and the bytes of both files of a pair that convzoo wrote. Raises ConvzooError."""
    beside = path.with_suffix(".bin")
    if not beside.is_file():
        raise ConvzooError(f"{beside.name}, the weights, is not beside it")
    if path.stat().st_size > MAX_XML:
        raise ConvzooError("larger than an OpenVINO .xml of these networks can be")
    data, weights = path.read_bytes(), beside.read_bytes()
    try:
        root = ElementTree.fromstring(data, forbid_dtd=True)
    except Exception as error:
        raise ConvzooError(f"not a whole OpenVINO .xml ({error})") from None
    entries = root.findall("./rt_info/convzoo")
    if root.tag != "net" or len(entries) != 1:
        raise ConvzooError("no OpenVINO file that convzoo exported: its metadata is missing")
    document = entries[0].get("value", "")
    check_seal(document, data, weights)
    return document, (data, weights)


def start(content: tuple[bytes, bytes], info: ExportInfo, options: RuntimeOptions) -> Session:
    """Compile for the CPU in the precision asked for, with as many threads as PyTorch has. Raises UsageError."""
    openvino = library("openvino", "running an OpenVINO file")
    if options.precision not in HINTS:
        raise UsageError(f"--precision {options.precision}: one of {', '.join(HINTS)}")
    core = openvino.Core()
    settings: Keywords = {
        "INFERENCE_PRECISION_HINT": HINTS[options.precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(*content), "CPU", settings)
    count = len(info.output_shapes())
    if len(compiled.inputs) != 1 or len(compiled.outputs) != count:
        raise ConvzooError("its inputs and outputs are not those that its metadata says")

    def run(images: torch.Tensor) -> list[np.ndarray]:
        results = compiled(images.numpy())
        return [results[i].copy() for i in range(count)]

    return run
