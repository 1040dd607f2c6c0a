"""The Open Inference Protocol, version 2, over HTTP: its JSON, and Triton's extension for binary tensors.

Sources: "Open Inference Protocol REST API" (kserve/open-inference-protocol) and Triton's "Binary Tensor Data
Extension": the JSON comes first, as many bytes as the header Inference-Header-Content-Length says, then the tensors in
order, row-major and little-endian.
"""

import contextlib
import json
import math
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pydantic
from pydantic import Field

from convzoo.plain import JsonObject, JsonValue
from convzoo.serve.limits import Refusal

JSON_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ["binary_tensor_data"]
DTYPES: dict[str, np.dtype] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1"), "INT64": np.dtype("<i8")}


class TensorSpec(NamedTuple):
    """What a model takes or gives: -1 stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def plain(self) -> JsonObject:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    def takes(self, shape: Sequence[int]) -> bool:
        """Tell whether a tensor of that shape fits."""
        return len(shape) == len(self.shape) and all(
            size in (-1, actual) and actual > 0 for size, actual in zip(self.shape, shape, strict=True)
        )


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    name: str
    parameters: dict[str, bool | int | float | str] = {}


class InputTensor(_Part):
    """A tensor that is sent: `data` nested or flat, or as many bytes as the parameter binary_data_size says."""

    datatype: Literal["FP32", "UINT8"]
    shape: Annotated[list[Annotated[int, Field(ge=1, le=1 << 31)]], Field(min_length=4, max_length=4)]
    data: list[JsonValue] | None = None


class OutputChoice(_Part):
    """A tensor that is asked for; the parameter binary_data says how it is to come."""


class InferRequest(pydantic.BaseModel):
    """The JSON of a request; the parameter binary_data_output is for all outputs that do not say otherwise."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    id: str | None = None
    parameters: dict[str, bool | int | float | str] = {}
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1)]
    outputs: list[OutputChoice] = []


def parse(body: bytes, json_length: str | None) -> tuple[InferRequest, np.ndarray]:
    """Return a request and its one tensor, in the shape and type that it says. Raises Refusal (400)."""
    if json_length is not None and not (json_length.isdecimal() and int(json_length) <= len(body)):
        raise Refusal(400, f"{JSON_LENGTH} {json_length:.20} does not fit a body of {len(body)} bytes")
    head = body if json_length is None else memoryview(body)[: int(json_length)].tobytes()
    try:
        request = InferRequest.model_validate_json(head)
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Refusal(400, f"the request's JSON: {place + ': ' if place else ''}{first['msg']}") from None
    tensor, rest = request.inputs[0], memoryview(body)[len(head) :]
    size = tensor.parameters.get("binary_data_size")
    array = _from_json(tensor) if size is None else _from_bytes(tensor, size, rest)
    if size is None and len(rest):
        raise Refusal(400, f"{len(rest)} bytes after the JSON belong to no input: binary_data_size is missing")
    return request, array


def _from_bytes(tensor: InputTensor, size: object, rest: memoryview) -> np.ndarray:
    dtype, count = DTYPES[tensor.datatype], math.prod(tensor.shape)
    if tensor.data is not None or size != len(rest) or size != count * dtype.itemsize:
        needs = f"{tensor.datatype} {tensor.shape} takes {count * dtype.itemsize} bytes"
        raise Refusal(400, f"input {tensor.name}: {needs}, binary_data_size says {size}, and {len(rest)} came")
    # A copy: bytes after a head of any length are not aligned for floats, and torch takes none that cannot be written.
    return np.frombuffer(rest, dtype).reshape(tensor.shape).astype(dtype.newbyteorder("="))


def _from_json(tensor: InputTensor) -> np.ndarray:
    if tensor.data is None:
        raise Refusal(400, f"input {tensor.name}: neither data nor binary_data_size")
    with contextlib.suppress(ValueError):  # lists of different lengths
        array = np.array(tensor.data)
        is_float = tensor.datatype == "FP32" and array.dtype.kind in "iuf"
        is_byte = tensor.datatype == "UINT8" and array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255
        if (is_float or is_byte) and array.shape in ((math.prod(tensor.shape),), tuple(tensor.shape)):
            return array.astype(DTYPES[tensor.datatype]).reshape(tensor.shape)
    raise Refusal(400, f"input {tensor.name}: its data is not {tensor.datatype} numbers of shape {tensor.shape}")


def chosen(request: InferRequest, specs: Sequence[TensorSpec]) -> list[tuple[TensorSpec, int, bool]]:
    """Return each output that is asked for, its place among the model's, and whether it comes as bytes.

    Raises:
        Refusal: 400, an output that the model does not have, or a parameter that is not served.
    """
    all_binary = request.parameters.get("binary_data_output", False)
    choices = request.outputs or [OutputChoice(name=spec.name) for spec in specs]
    names = [spec.name for spec in specs]
    for choice in choices:
        if choice.name not in names:
            raise Refusal(400, f"output {choice.name:.40}: the model gives {', '.join(names)}")
        if choice.parameters.get("classification"):
            raise Refusal(400, f"output {choice.name}: classification is not served; POST a picture to /predict")
    places = [names.index(choice.name) for choice in choices]
    binary = [bool(choice.parameters.get("binary_data", all_binary)) for choice in choices]
    return [(specs[place], place, flag) for place, flag in zip(places, binary, strict=True)]


def render(
    head: JsonObject, outputs: Sequence[np.ndarray], choices: Sequence[tuple[TensorSpec, int, bool]]
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and how long its JSON is where tensors follow it as bytes.

    Args:
        head: model_name, model_version, id.
    Raises:
        Refusal: 422, outputs that JSON cannot hold, because they are not finite.
    """
    described, parts = [], []
    for spec, place, binary in choices:
        array = outputs[place]
        entry = {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape)}
        if binary:
            parts.append(array.astype(DTYPES[spec.datatype]).tobytes())
            described.append({**entry, "parameters": {"binary_data_size": len(parts[-1])}})
        elif not np.isfinite(array).all():
            raise Refusal(422, f"output {spec.name} is not finite, which JSON cannot say: ask for binary_data")
        else:
            described.append({**entry, "data": array.ravel().tolist()})
    document = json.dumps({**head, "outputs": described}, allow_nan=False, separators=(",", ":")).encode()
    return b"".join([document, *parts]), len(document) if parts else None
