"""Exported files. Each format is one file in `formats`, and one line in FORMATS and in SUFFIXES.

A format is a module with
    PACKAGES                       the libraries that writing needs
    PRECISIONS                     of the weights, where it has others than float32
    suppress(...)                  non-maximum suppression as its graphs can hold it: `graph.Suppress`
    write(program, info, path)     write a traced network; returns the other files that belong to it
    read(path)                     -> (document, content): the metadata's JSON and the verified bytes, not yet run
    relabel(content, info, path)   where it is a form of `fastest`: write what was read with other metadata
    start(content, info, options)  -> `exported.Session`: pictures in the file's own input form -> outputs in order
Everything else - metadata, normalisation, the comparison, the final name - is common to all.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from convzoo.errors import MissingPackageError, UsageError

FORMATS = {
    "onnx": "convzoo.deploy.formats.onnx",
    "pt2": "convzoo.deploy.formats.pt2",
    "openvino": "convzoo.deploy.formats.openvino",
    "ncnn": "convzoo.deploy.formats.ncnn",
    "mindir": "convzoo.deploy.formats.mindir",
    "om": "convzoo.deploy.formats.ascend",
    "air": "convzoo.deploy.formats.ascend",
    "triton": "convzoo.deploy.formats.triton",
    "fastest": "convzoo.deploy.fastest",
}
SUFFIXES = {  # of the files that open: an AIR file is for `atc` alone, and a Triton model is a folder
    "onnx": ".onnx",
    "pt2": ".pt2",
    "openvino": ".xml",
    "ncnn": ".ncnn.param",
    "mindir": ".mindir",
    "om": ".om",
}


def format_module(name: str) -> ModuleType:
    """Return the module of a format. Raises UsageError for an unknown one."""
    if name not in FORMATS:
        from convzoo.config.registry import nearest  # here, because the command line's help must not wait for pydantic

        raise UsageError(f"--format {name}: unknown{nearest(name, FORMATS)}")
    return importlib.import_module(FORMATS[name])


def format_of(path: Path) -> str | None:
    """Return the format that an exported file's name says, or None."""
    return next((name for name, suffix in SUFFIXES.items() if path.name.lower().endswith(suffix)), None)


def bytes_of(path: Path) -> int:
    """Return the bytes of a model's file, OpenVINO's and NCNN's weights included."""
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if format_of(path) in ("openvino", "ncnn") else 0)


def library(name: str, why: str) -> ModuleType:
    """Import an optional library. Raises MissingPackageError where it is not installed, or does not load.

    OpenVINO and NNCF report their use over the network unless the package they do it with cannot be imported: this is
    the one place where either is imported, and it sees to that.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # Python raises ImportError for it
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(f"{why} needs {name}: pip install 'convzoo[deploy]' ({error})") from None
