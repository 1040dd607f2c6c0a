"""Model files: written whole or not at all, verified when read.

A model file is one `.safetensors`; its metadata holds one JSON document (`ModelInfo`) and a SHA-256 over the tensors
and that document.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal, Self

import pydantic
import safetensors
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from convzoo.config.registry import explain
from convzoo.errors import ConvzooError, UsageError
from convzoo.files import written_whole
from convzoo.plain import JsonObject, JsonValue
from convzoo.version import __version__

FORMAT = 1
StateDict = dict[str, Tensor]
SidePx = Annotated[int, Field(gt=0, le=1 << 16)]


def _evaluation_transform(recipe: JsonValue) -> JsonObject:
    """Return the operations, mean and std of a plain recipe; none of what is no recipe."""
    transform = recipe.get("transform") if isinstance(recipe, dict) else None
    return {key: transform.get(key) for key in ("eval", "mean", "std")} if isinstance(transform, dict) else {}


class FileInfo(pydantic.BaseModel):
    """What a model file and an exported file say of themselves alike; checked key by key when one is read.

    Attributes:
        recipe: the resolved recipe as plain values; with it the network is rebuilt.
        preprocessing: its evaluation transform: operations, mean and std.
        class_names: in the order of the outputs.
        metrics: what was measured on these weights, with the number of images.
        provenance: where the weights come from: versions, data, command, or a converted file and its hash.
        licence: of the weights, where known.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = FORMAT
    convzoo: str = __version__
    recipe: JsonObject
    preprocessing: JsonObject = Field(default_factory=lambda data: _evaluation_transform(data["recipe"]))
    class_names: list[str]
    metrics: JsonObject = {}
    provenance: JsonObject = {}
    licence: str | None = None

    @pydantic.field_validator("preprocessing")
    @classmethod
    def _is_the_recipes(cls, preprocessing: JsonObject, info: pydantic.ValidationInfo) -> JsonObject:
        if preprocessing != _evaluation_transform(info.data.get("recipe")):
            raise ValueError("must be the recipe's transform")
        return preprocessing

    @classmethod
    def from_plain(cls, plain: JsonObject) -> Self:
        """Check plain values of JSON. Raises ConvzooError with the first key that is wrong."""
        try:
            return cls.model_validate_json(json.dumps(plain))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            raise ConvzooError(f"its metadata: {'.'.join(map(str, first['loc']))}: {explain(first)}") from None

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)  # ASCII, on one line


class ModelInfo(FileInfo):
    """The metadata of a model file.

    Attributes:
        input_hw: (height, width) of the pictures that the network was trained for; None in files of before it was kept.
    """

    input_hw: tuple[SidePx, SidePx] | None = None


def save_model(path: Path, state_dict: StateDict, info: ModelInfo) -> str:
    """Write a model file and return its SHA-256."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    document = info.to_json()
    digest = _digest(tensors, document)
    with written_whole(path) as temporary:
        save_file(tensors, temporary, metadata={"convzoo": document, "sha256": digest})
    return digest


def load_model(path: Path) -> tuple[StateDict, ModelInfo, str]:
    """Read and verify a model file; return its tensors, what it says of itself, and its SHA-256.

    Raises:
        UsageError: no such file.
        ConvzooError: not a model file of ours, of a later format, or damaged.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such model file")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        hint = "; weights of another program are read by `convzoo convert`"
        raise ConvzooError(f"{path}: {_what_it_is(path) or f'not a whole safetensors file ({error}){hint}'}") from None
    if "convzoo" not in metadata:
        raise ConvzooError(f"{path}: a safetensors file, but not one that convzoo wrote; `convzoo convert` reads it")
    if metadata.get("sha256") != _digest(tensors, metadata["convzoo"]):
        raise ConvzooError(f"{path}: damaged: its SHA-256 is not the one it was written with")
    try:
        document = json.loads(metadata["convzoo"])
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ConvzooError(f"{path}: its metadata is not a JSON object")
    if document.get("format") != FORMAT:
        raise ConvzooError(
            f"{path}: model file format {document.get('format')}, this version reads {FORMAT}: update convzoo"
        )
    try:
        return tensors, ModelInfo.from_plain(document), metadata["sha256"]
    except ConvzooError as error:
        raise ConvzooError(f"{path}: {error}") from None


def load_into(model: nn.Module, state_dict: StateDict, source: str) -> None:
    """Load weights strictly. Raises ConvzooError with the first tensor that is missing, extra or of another shape."""
    problem = first_mismatch(model, state_dict)
    if problem:
        raise ConvzooError(f"{source}: {problem}")
    model.load_state_dict(state_dict)


def first_mismatch(model: nn.Module, state_dict: StateDict) -> str | None:
    """Say what first keeps the weights from fitting the model, or None."""
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in state_dict:
            return f"'{name}' is missing ({len(set(own) - set(state_dict))} missing in all)"
        if state_dict[name].shape != tensor.shape:
            return f"'{name}' is {list(state_dict[name].shape)}, the network has {list(tensor.shape)}"
    extra = sorted(set(state_dict) - set(own))
    return f"'{extra[0]}' is not in the network ({len(extra)} extra in all)" if extra else None


def _digest(tensors: StateDict, document: str) -> str:
    digest = hashlib.sha256(document.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensors_sha256(state_dict: StateDict) -> str:
    """Return the SHA-256 of names, types, shapes and values, for weights that are not a file of their own."""
    return _digest({name: tensor.detach().cpu() for name, tensor in state_dict.items()}, "")


def _what_it_is(path: Path) -> str | None:
    """Recognise the usual impostors by their first bytes."""
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        return "an empty file"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page, not a model file; the download went wrong"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself; run git lfs pull"
    if head.startswith(b"PK"):
        return "a zip file, perhaps a PyTorch .pt; `convzoo convert` reads those"
    return None
