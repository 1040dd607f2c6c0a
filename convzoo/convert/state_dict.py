"""What every reader of foreign weights returns, and the strict way there.

A reader recognises the network, names the model section that rebuilds it, and hands over its tensors under their own
names together with a name map. `assemble` then takes exactly the tensors that the network has, shape by shape.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from convzoo.config import registry
from convzoo.errors import ConvzooError, UsageError
from convzoo.plain import JsonObject, JsonValue

StateDict = dict[str, Tensor]
Origin = Literal["darknet", "mindspore", "torchvision", "timm", "convzoo"]

# Keys of a model section that change training only: two networks that differ in nothing else compute the same.
TRAINING_KEYS = {"dropout", "init", "norm_momentum", "backbone_norm_momentum"}
BACKBONE = "backbone."


class AmbiguousWeights(ConvzooError):
    """A file that fits no network as it is, and fits one if more were known: `candidate` is what would have to be."""

    def __init__(self, message: str, candidate: "ExpectedWeights"):
        super().__init__(message)
        self.candidate = candidate


@dataclass(frozen=True)
class ExpectedWeights:
    """What the caller knows of weights; None leaves it to the file.

    Attributes:
        model_name: refuse any other network; a partial Darknet file needs it.
        num_classes: refuse any other number of classes; a Darknet file of a network trained on other classes needs it.
        classes: a file of class names, one a line in the order of the outputs.
        cfg: the `.cfg` file that describes the network of a Darknet weight file.
        resize: "letterbox" or "stretch": how its pictures get the network's size, where the files tell otherwise.
    """

    model_name: str | None = None
    num_classes: int | None = None
    classes: Path | None = None
    cfg: Path | None = None
    resize: str | None = None

    def require(self, where: str, model: Mapping[str, JsonValue]) -> None:
        """Compare with the model section of what a file holds.

        Raises:
            UsageError: there is no network of the name that was asked for.
            ConvzooError: the file holds another network or another number of classes.
        """
        spec = resolve_model_spec(model)
        name, num_classes = spec["name"], spec["num_classes"]
        if num_classes < 1:
            raise ConvzooError(f"{where}: {name} with {num_classes} classes")
        if self.model_name not in (None, name):
            registry.builder("model", self.model_name)
            raise ConvzooError(f"{where}: holds {name}, not {self.model_name}")
        if self.num_classes not in (None, num_classes):
            raise ConvzooError(f"{where}: {name} with {num_classes} classes, not {self.num_classes}")

    def class_names(self, model: Mapping[str, JsonValue], known: Sequence[str] | None) -> list[str] | None:
        """Return the names in the caller's file, else those known of the source. Raises UsageError."""
        if self.classes is not None:
            return read_class_names(self.classes, resolve_model_spec(model)["num_classes"])
        return None if known is None else list(known)


ANY = ExpectedWeights()


class Row(NamedTuple):
    """One tensor: its name in the source, its name here, its shape here and the source's data type."""

    source: str
    name: str
    shape: tuple[int, ...]
    dtype: str


class CfgFile(NamedTuple):
    """A Darknet `.cfg` as it came with weights: its name, its text, and the SHA-256 of its bytes."""

    name: str
    text: str
    sha256: str

    def encoded(self) -> bytes:
        """Return the file's bytes; comments may be in another encoding than UTF-8."""
        data = self.text.encode()
        return data if hashlib.sha256(data).hexdigest() == self.sha256 else self.text.encode("latin-1")


@dataclass
class ConvertedWeights:
    """Foreign weights as a network of ours.

    Attributes:
        origin: the program or library whose naming and layout it is.
        source: one line about the file: format, version, what it holds.
        model: the recipe's `model` section that rebuilds the network.
        state_dict: float32 tensors under our names; they may be views of the file, copy them before it changes.
        task: what the network does, as a recipe's `task`.
        transform: the recipe's `transform` section with which the source evaluates, or None where it is not known.
        postprocess: the recipe's `postprocess` section with which a detector's source evaluates.
        class_names: in the order of the outputs, or None where the source does not say.
        table: what was consumed, tensor by tensor.
        header: what the file says of itself, and `bytes_used` and `bytes_left`.
        missing: names of the network's tensors that the file does not hold; empty but for a backbone on its own.
        dropped: names in the file that are not weights, such as optimiser slots.
        notes: what a reader should know, a line each.
        cfg: the `.cfg` that came with the weights.
    """

    origin: Origin
    source: str
    model: JsonObject
    state_dict: StateDict
    task: str = "classify"
    transform: JsonObject | None = None
    postprocess: JsonObject = field(default_factory=dict)
    class_names: list[str] | None = None
    table: list[Row] = field(default_factory=list)
    header: JsonObject = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cfg: CfgFile | None = None


def resolve_model_spec(model: Mapping[str, JsonValue]) -> JsonObject:
    """Return a model section with every default written out. Raises UsageError for an unknown key or name."""
    bound = registry.bind("model", model)
    defaults = bound.func.__kwdefaults__ or {}
    return {"name": model["name"], **defaults, **bound.keywords}


def meta_network(model: Mapping[str, JsonValue]) -> nn.Module:
    """Build a network without memory for its weights, to know their names and shapes."""
    with torch.device("meta"):
        return registry.bind("model", model)()


def network(converted: ConvertedWeights) -> nn.Module:
    """Build the network with the converted weights in eval mode; its tensors are those of the state dict.

    Raises:
        ConvzooError: the weights are a backbone on its own.
    """
    if converted.missing:
        first = converted.missing[0]
        raise ConvzooError(
            f"{converted.source}: a backbone on its own ('{first}' is missing), for training a whole network from"
        )
    model = meta_network(converted.model)
    model.load_state_dict(converted.state_dict, assign=True)
    return model.eval()


def backbone_numerics(model: Mapping[str, JsonValue]) -> dict[str, str]:
    """Return what the backbone of a network computes besides its weights, under the names of YOLOv3's keys."""
    full = resolve_model_spec(model)
    act = full.get("backbone_act", "leaky")
    slope = full.get("leaky_slope", 0.1)
    return {
        "backbone_act": f"leaky {slope:g}" if act == "leaky" else act,
        "down_padding": full.get("down_padding", "symmetric"),
    }


def load_backbone(model: nn.Module, converted: ConvertedWeights) -> int:
    """Copy the backbone's weights into a network that has the same one, such as yolov3, and leave the rest.

    Returns:
        how many convolutions were filled.
    Raises:
        ConvzooError: no backbone in it, or not a whole one of the same shape.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(BACKBONE)}
    given = {name: tensor for name, tensor in converted.state_dict.items() if name.startswith(BACKBONE)}
    if not own or not given:
        raise ConvzooError(f"{converted.source}: no backbone to take from it for this network")
    for name, tensor in own.items():
        if name not in given or given[name].shape != tensor.shape:
            have = f"is {list(given[name].shape)}, not {list(tensor.shape)}" if name in given else "is missing"
            raise ConvzooError(f"{converted.source}: '{name}' {have}")
    if len(given) > len(own):
        raise ConvzooError(f"{converted.source}: '{min(set(given) - set(own))}' is not in this network's backbone")
    model.load_state_dict(given, strict=False)
    return sum(tensor.dim() == 4 for tensor in given.values())


def require_same_numerics(model: Mapping[str, JsonValue], other: Mapping[str, JsonValue], whose: str) -> None:
    """Refuse to write weights for a program whose network of that name computes something else.

    Raises:
        UsageError: with the first key that differs.
    """
    ours, theirs = resolve_model_spec(model), resolve_model_spec(other)
    for key, value in theirs.items():
        if key not in TRAINING_KEYS and ours[key] != value:
            differs = f"{whose} {model['name']} has {key} {value}, this model {ours[key]}"
            raise UsageError(f"{differs}: written out, it would compute something else there")


def assemble(
    where: str,
    model: Mapping[str, JsonValue],
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    may_miss: Callable[[str], bool] = lambda name: False,
) -> tuple[StateDict, list[Row], list[str]]:
    """Take exactly the tensors that the network has.

    Args:
        where: the file, for messages.
        tensors: under the source's names.
        names: ours -> the source's, where they differ.
        may_miss: whether a tensor, by its name here, may be absent.
    Returns:
        state dict, table and the names of absent tensors.
    Raises:
        ConvzooError: with the first tensor that is missing, extra, of another shape or type, or not finite.
    """
    own = meta_network(model).state_dict()
    theirs = {name: names.get(name, name) for name in own}
    missing = [name for name in own if theirs[name] not in tensors and not _is_counter(name)]
    bad = [name for name in missing if not may_miss(name)]
    if bad:
        raise ConvzooError(
            f"{where}: '{theirs[bad[0]]}' of {model_label(model)} is missing ({len(bad)} missing in all)"
        )
    extra = sorted(set(tensors) - set(theirs.values()))
    if extra:
        raise ConvzooError(f"{where}: '{extra[0]}' is not in {model_label(model)} ({len(extra)} extra in all)")
    state_dict: StateDict = {}
    table = []
    for name, expected in own.items():
        tensor = tensors.get(theirs[name])
        if tensor is None:
            if _is_counter(name) and not may_miss(name):
                state_dict[name] = torch.tensor(0)
            elif name not in missing:
                missing.append(name)
            continue
        if tensor.shape != expected.shape:
            raise ConvzooError(
                f"{where}: '{theirs[name]}' is {list(tensor.shape)}, {model_label(model)} has {list(expected.shape)}"
            )
        state_dict[name] = tensor.long() if _is_counter(name) else _float32(where, theirs[name], tensor)
        table.append(Row(theirs[name], name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")))
    return state_dict, table, missing


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _float32(where: str, name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise ConvzooError(f"{where}: '{name}' is {str(tensor.dtype).removeprefix('torch.')}, not floating point")
    tensor = tensor.float()
    # The sum of finite numbers is finite but for overflow; it is 5 times faster than looking at each.
    if not tensor.sum().isfinite() and not tensor.isfinite().all():
        raise ConvzooError(f"{where}: '{name}' holds values that are not finite")
    if name.endswith(("running_var", "moving_variance", "rolling_variance")) and (tensor < 0).any():
        raise ConvzooError(f"{where}: '{name}' holds a negative variance")
    return tensor


def model_label(model: Mapping[str, JsonValue]) -> str:
    """Name a network for messages, such as `vgg16 (batch_norm True, 10 classes)`."""
    full, defaults = resolve_model_spec(model), registry.builder("model", model["name"]).__kwdefaults__ or {}
    unseen = {*TRAINING_KEYS, "name", "cfg"}  # a .cfg is a text of pages
    changed = {key: value for key, value in full.items() if key not in unseen and value != defaults.get(key)}
    if changed.pop("anchors_px", None):
        changed["anchors"] = "of its own"
    classes = f"{changed.pop('num_classes', full['num_classes'])} classes"
    return f"{model['name']} ({', '.join([*(f'{key} {value}' for key, value in changed.items()), classes])})"


def require_file(path: Path) -> None:
    """Raise UsageError for what is no file."""
    if not path.is_file():
        raise UsageError(f"{path}: {'a folder, not a weight file' if path.is_dir() else 'no such weight file'}")


def one_line(error: object) -> str:
    """Return a library's message as one line of at most 160 characters, or its type where it says nothing."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def file_bytes(source: Path | bytes | bytearray | memoryview) -> np.ndarray:
    """Return the bytes of a file, mapped copy-on-write instead of read, or of a buffer, as uint8 [N].

    Raises:
        UsageError: no such file.
        ConvzooError: an empty file.
    """
    if not isinstance(source, Path):
        return np.frombuffer(bytearray(source), np.uint8)
    require_file(source)
    if source.stat().st_size == 0:
        raise ConvzooError(f"{source}: an empty file")
    return np.memmap(source, np.uint8, "c")


def read_class_names(path: Path, num_classes: int) -> list[str]:
    """Read class names, one a line in the order of the outputs; one that stands there again is numbered.

    Raises:
        UsageError: no such file, not text, or not as many lines as there are classes.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a list of class names ({error.__class__.__name__})") from None
    if len(names) == 21842 and num_classes == 1000:
        names = names[:1000]  # Darknet's own imagenet.labels.list, of which its networks use the head
    if len(names) != num_classes:
        raise UsageError(f"{path}: {len(names)} class names, the network has {num_classes} outputs")
    return _numbered(names)


def _numbered(names: list[str]) -> list[str]:
    """Return distinct names: Darknet's ImageNet list has a bird and a machine called crane: "crane", "crane (2)"."""
    distinct: dict[str, None] = {}
    for name in names:
        spellings = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
        distinct[next(spelling for spelling in spellings if spelling not in distinct)] = None
    return list(distinct)
