"""Model files: written whole or not at all, verified when read.

A model file is one `.safetensors`; its metadata holds one JSON document (`ModelInfo`) and a SHA-256 over the tensors
and that document.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from convzoo.errors import ConvzooError, UsageError
from convzoo.files import written_whole
from convzoo.version import __version__

FORMAT = 1
StateDict = dict[str, Tensor]


@dataclass
class ModelInfo:
    """What a model file says of itself.

    Attributes:
        recipe: the resolved recipe as plain values; with it the network is rebuilt.
        class_names: in the order of the outputs.
        metrics: what was measured on these weights, with the number of images.
        provenance: where the weights come from: versions, data, command, or a converted file and its hash.
        licence: of the weights, where known.
        input_hw: (height, width) of the pictures that the network was trained for; None in files of before it was kept.
    """

    recipe: dict[str, Any]
    class_names: list[str]
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    licence: str | None = None
    format: int = FORMAT
    convzoo: str = __version__
    input_hw: tuple[int, int] | None = None

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The evaluation transform: operations, mean and std."""
        return {key: self.recipe["transform"][key] for key in ("eval", "mean", "std")}

    def to_json(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "preprocessing": self.preprocessing}, sort_keys=True)


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
    document = json.loads(metadata["convzoo"])
    if document.get("format") != FORMAT:
        raise ConvzooError(
            f"{path}: model file format {document.get('format')}, this version reads {FORMAT}: update convzoo"
        )
    document.pop("preprocessing")
    if document.get("input_hw"):
        document["input_hw"] = tuple(document["input_hw"])  # JSON has lists only
    return tensors, ModelInfo(**document), metadata["sha256"]


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
