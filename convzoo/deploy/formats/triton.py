"""A model repository for NVIDIA's Triton Inference Server: NAME/config.pbtxt, NAME/labels.txt and NAME/1/model.onnx.

Layout and keys: Triton's "Model Repository" and "Model Configuration" guides; the tests read the configuration with
Triton's own schema.
"""

import os
import re
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from convzoo.deploy import export as exporting
from convzoo.deploy import library
from convzoo.deploy.formats.onnx import Proto
from convzoo.deploy.metadata import ExportInfo
from convzoo.errors import UsageError
from convzoo.inference.torch_model import TorchModel

PACKAGES = ()
MAX_BATCH = 16  # pictures that the server may put into one batch
MAX_DELAY_US = 100  # that a picture waits for others
TYPES = {1: "TYPE_FP32", 2: "TYPE_UINT8", 7: "TYPE_INT64", 10: "TYPE_FP16"}  # of ONNX's element types


def export(opened: TorchModel, options: exporting.ExportOptions) -> exporting.ExportResult:
    """Write the repository's folder NAME for a model; the ONNX file in it is compared as every other.

    `options.out` is the repository, the model file's folder if None.

    Raises:
        UsageError: the repository is no folder, or has a model of this name.
        ToleranceError, MissingPackageError, ConvzooError: as `export.export`; nothing is left behind.
    """
    started = time.perf_counter()
    model = opened.path
    repository = options.out or model.parent
    target = repository / re.sub(r"[^\w-]", "_", model.stem)
    if not repository.is_dir() or target.exists():
        what = "exists already" if target.exists() else f"{repository} is no folder"
        raise UsageError(f"--out {target}: {what}; --out takes the model repository's folder")
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=repository))
    try:
        (draft / "1").mkdir()
        result = exporting.export(opened, replace(options, format="onnx", out=draft / "1" / "model.onnx"))
        onnx = library("onnx", "--format triton")
        graph = onnx.load(draft / "1" / "model.onnx").graph
        (draft / "config.pbtxt").write_text(configuration(target.name, graph, result.info), encoding="utf-8")
        labels = "".join(f"{name}\n" for name in result.info.class_names)
        (draft / "labels.txt").write_text(labels, encoding="utf-8")
        draft.chmod(0o755)  # the server is another user
        size = sum(file.stat().st_size for file in draft.rglob("*") if file.is_file())
        os.rename(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return replace(result, path=target, format="triton", bytes=size, seconds=time.perf_counter() - started)


def configuration(name: str, graph: Proto, info: ExportInfo) -> str:
    """Return config.pbtxt for an ONNX graph: where its batch is free, the server batches what comes together."""
    batched = info.batch is None
    lines = [f'name: "{name}"', 'backend: "onnxruntime"', f"max_batch_size: {MAX_BATCH if batched else 0}"]
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            dims = [dim.dim_value or -1 for dim in tensor.shape.dim][1 if batched else 0 :]
            labels = ' label_filename: "labels.txt"' if value.name == "logits" else ""
            lines.append(f'{kind} {{ name: "{value.name}" data_type: {TYPES[tensor.elem_type]} dims: {dims}{labels} }}')
    if batched:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {MAX_DELAY_US} }}")
    return "\n".join([*lines, ""])


def suppress(*_: object) -> Tensor:
    """Refuse: it is the ONNX file inside that is traced. Raises UsageError."""
    raise UsageError("--format triton: written with an ONNX file inside")
