"""ONNX: written by PyTorch's exporter, run by ONNX Runtime. Everything in one file, metadata and digest too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convzoo.deploy import library
from convzoo.deploy.exported import RuntimeOptions, Session
from convzoo.deploy.graph import quiet
from convzoo.deploy.metadata import MAX_DOCUMENT, ExportInfo, check_seal, first_line, sealed
from convzoo.errors import ConvzooError, UsageError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18  # the exporter's own: nothing is converted, and what reads ONNX at all reads this
KEY = "convzoo"  # of the metadata
MAX_BYTES = (2 << 30) - 1  # of a protobuf
Proto = Any  # Any: messages of ONNX, which is imported only where it is there


@torch.library.custom_op("convzoo::onnx_nms", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, most: int, iou_threshold: float, score_threshold: float) -> Tensor:
    """Do in PyTorch what ONNX's NonMaxSuppression does; in the graph it becomes that operator."""
    from torchvision.ops import nms  # here: slow to import, and running a file does without

    rows = []
    for image, class_ in torch.cartesian_prod(torch.arange(len(boxes)), torch.arange(scores.shape[1])).tolist():
        score = scores[image, class_]
        candidates = (score > score_threshold).nonzero()[:, 0]
        survivors = candidates[nms(boxes[image, candidates], score[candidates], iou_threshold)][:most]
        rows.append(torch.stack([torch.full_like(survivors, image), torch.full_like(survivors, class_), survivors], 1))
    return torch.cat(rows)


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, most: int, iou_threshold: float, score_threshold: float) -> Tensor:
    count = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty((count, 3), dtype=torch.int64)


def write(program: torch.export.ExportedProgram, info: ExportInfo, path: Path) -> list[Path]:
    """Translate a traced network and write it. Raises MissingPackageError, OSError, and the exporter's errors."""
    onnx = library("onnx", "--format onnx")
    library("onnxscript", "--format onnx")
    proto = translate(program, info)
    if proto.ByteSize() > MAX_BYTES - MAX_DOCUMENT:
        raise ConvzooError(f"{path.name}: an ONNX file in one piece holds at most 2 GB")
    onnx.checker.check_model(proto, full_check=True)
    return save(proto, info, path)


def relabel(content: bytes, info: ExportInfo, path: Path) -> list[Path]:
    """Write the bytes of a file with other metadata. Raises OSError, MissingPackageError."""
    return save(library("onnx", "--format onnx").load_model_from_string(content), info, path)


def save(proto: Proto, info: ExportInfo, path: Path) -> list[Path]:
    """Write an ONNX ModelProto with its metadata. Raises OSError."""
    del proto.metadata_props[:]
    proto.metadata_props.add(key=KEY, value=info.to_json())
    path.write_bytes(sealed(proto.SerializeToString()))
    return []


def translate(program: torch.export.ExportedProgram, info: ExportInfo) -> Proto:
    """Return a traced network as an ONNX ModelProto, without the exporter's notes on where each node comes from."""
    onnxscript = library("onnxscript", "--format onnx")
    op = onnxscript.opset18

    def non_max_suppression(boxes, scores, most: int, iou_threshold: float, score_threshold: float):
        limits = op.Constant(value_ints=[most]), op.Constant(value_floats=[iou_threshold])
        return op.NonMaxSuppression(boxes, scores, *limits, op.Constant(value_floats=[score_threshold]))

    with torch.no_grad(), quiet():
        translated: Proto = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=list(info.output_shapes()),
            custom_translation_table={torch.ops.convzoo.onnx_nms.default: non_max_suppression},
            verbose=False,
        )
    proto = translated.model_proto
    proto.producer_name, proto.producer_version = "convzoo", info.convzoo
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    del proto.metadata_props[:]
    return proto


def read(path: Path) -> tuple[str, bytes]:
    """Return the metadata and the bytes of a file that convzoo wrote. Raises ConvzooError, MissingPackageError."""
    onnx = library("onnx", f"{path.name}: an ONNX file")
    if path.stat().st_size > MAX_BYTES:
        raise ConvzooError("larger than an ONNX file in one piece can be")
    data = path.read_bytes()
    try:
        proto = onnx.load_model_from_string(data)
    except Exception as error:
        raise ConvzooError(f"not a whole ONNX file ({first_line(error)})") from None
    documents = [entry.value for entry in proto.metadata_props if entry.key == KEY]
    if len(documents) != 1:
        raise ConvzooError("no ONNX file that convzoo exported: its metadata is missing")
    for tensor in _tensors(proto):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = next((entry.value for entry in tensor.external_data if entry.key == "location"), "?")
            raise ConvzooError(f"keeps data in another file ({place[:80]!r}), which convzoo never does; it is not read")
    check_seal(documents[0], data)
    return documents[0], data


def _tensors(message: Proto) -> Iterator[Proto]:
    """Yield every tensor of a model, in whatever corner of it."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                if field.message_type.name == "TensorProto":
                    yield part
                yield from _tensors(part)


def start(content: bytes, info: ExportInfo, options: RuntimeOptions) -> Session:
    """Start ONNX Runtime, with as many threads as PyTorch has.

    Raises:
        UsageError: another precision than the file's, or an execution provider that is not there.
    """
    runtime = library("onnxruntime", "running an ONNX file")
    if options.precision != "fp32":
        raise UsageError(f"--precision {options.precision}: an ONNX file has the precision it was exported with")
    provider = options.provider or "CPUExecutionProvider"
    there = runtime.get_available_providers()
    if provider not in there:
        raise UsageError(f"--provider {provider}: this ONNX Runtime has {', '.join(there)}")
    runtime.disable_telemetry_events()  # of its Windows builds
    session_options = runtime.SessionOptions()
    session_options.log_severity_level = 4  # its errors come as exceptions
    session_options.intra_op_num_threads, session_options.inter_op_num_threads = torch.get_num_threads(), 1
    providers = list(dict.fromkeys([provider, "CPUExecutionProvider"]))
    session = runtime.InferenceSession(content, session_options, providers=providers, enable_fallback=0)
    if session.get_providers()[0] != provider:  # it may use another without a word
        raise ConvzooError(f"--provider {provider}: it does not start here; ONNX Runtime would use the CPU instead")
    inputs, outputs = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]
    if inputs != ["images"] or outputs != list(info.output_shapes()):
        raise ConvzooError("its inputs and outputs are not those that its metadata says")
    return lambda images: session.run(outputs, {"images": images.numpy()})
