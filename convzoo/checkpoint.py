"""Model files and training state on disk: written whole or not at all, verified when read.

A model file is one `.safetensors`; its metadata holds one JSON document (`ModelInfo`) and a SHA-256 over the tensors
and that document. The training state lies beside it as `.state.pt` (tensors and plain values) with a `.sha256`.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import convzoo
from convzoo.errors import ConvzooError, UsageError
from convzoo.logs import log

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
    convzoo: str = convzoo.__version__
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
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        if name not in state_dict:
            return f"'{name}' is missing ({len(set(wanted) - set(state_dict))} missing in all)"
        if state_dict[name].shape != tensor.shape:
            return f"'{name}' is {list(state_dict[name].shape)}, the network has {list(tensor.shape)}"
    extra = sorted(set(state_dict) - set(wanted))
    return f"'{extra[0]}' is not in the network ({len(extra)} extra in all)" if extra else None


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state and its checksum."""
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        torch.save(state, file)
    with written_whole(Path(f"{path}.sha256")) as temporary:
        temporary.write_text(f"{file_sha256(path)}  {path.name}\n")


def load_state(path: Path) -> dict[str, Any]:
    """Read and verify a training state. Raises ConvzooError where it is missing or damaged."""
    try:
        expected = Path(f"{path}.sha256").read_text().split()[0]
        if file_sha256(path) != expected:
            raise ConvzooError(f"{path}: damaged: its SHA-256 is not the one it was written with")
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ConvzooError(f"{path}: holds more than tensors and plain values; it is not opened") from None
    except (OSError, IndexError):
        raise ConvzooError(f"{path}: missing, or without its .sha256") from None


class RunCheckpoints:
    """The `checkpoints/` folder of a run: `step-NNNNNNNN`, and `last` and `best` as links to such a pair."""

    def __init__(self, folder: Path, keep_max: int):
        self.folder = folder
        self.keep_max = keep_max

    def save(self, step: int, state_dict: StateDict, info: ModelInfo, state: dict[str, Any], is_best: bool) -> Path:
        """Write a pair and point `last`, and `best` if it is, at it; then drop the oldest beyond keep_max."""
        self.folder.mkdir(exist_ok=True)
        stem = f"step-{step:08d}"
        model_path = self.folder / f"{stem}.safetensors"
        digest = save_model(model_path, state_dict, info)
        save_state(self.folder / f"{stem}.state.pt", {**state, "step": step, "model_sha256": digest})
        for name in ["last"] + ["best"] * is_best:
            for suffix in (".safetensors", ".state.pt", ".state.pt.sha256"):
                _link(self.folder / f"{stem}{suffix}", self.folder / f"{name}{suffix}")
        for old in self.steps()[self.keep_max :]:
            for suffix in (".safetensors", ".state.pt", ".state.pt.sha256"):
                (self.folder / f"step-{old:08d}{suffix}").unlink(missing_ok=True)
        return model_path

    def steps(self) -> list[int]:
        """Return the steps of the pairs on disk, latest first."""
        return sorted(
            (int(path.stem.removeprefix("step-")) for path in self.folder.glob("step-*.safetensors")), reverse=True
        )

    def newest_whole(self) -> tuple[StateDict, dict[str, Any]] | None:
        """Return the weights and state of the latest pair that is whole, warning of each that is not."""
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink()
        for step in self.steps():
            stem = self.folder / f"step-{step:08d}"
            try:
                state_dict, _, digest = load_model(Path(f"{stem}.safetensors"))
                state = load_state(Path(f"{stem}.state.pt"))
                if state["model_sha256"] != digest:
                    raise ConvzooError(f"{stem}.state.pt: belongs to other weights than the file beside it")
                return state_dict, state
            except ConvzooError as error:
                log.warning(f"{error}; using the one before it")
        return None


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


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; only a whole file, safely on disk, gets the final name.

    Raises:
        ConvzooError: it cannot be written, the disk being full or the folder closed; what was there stays.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())  # safetensors creates files that only their owner may read
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        why = _why_not_written(error)
        if why:
            raise ConvzooError(f"{path}: cannot be written: {why}; what was saved before is untouched") from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _why_not_written(error: BaseException) -> str | None:
    """Say why a file could not be written, or None for another error; libraries wrap the system's answer."""
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        wrapped = re.search(r"os error (\d+)", str(cause))
        number = number or (int(wrapped[1]) if wrapped else None)
        if number is not None:
            return (
                "no space left" if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else os.strerror(number).lower()
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(source: Path, target: Path) -> None:
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


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
