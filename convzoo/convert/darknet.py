"""Darknet's `.weights` files: a header, then bare float32 in the order of the cfg file's layers.

Per convolution: bias (with batch norm: beta, gamma, running mean, running variance), then weights OIHW; a fully
connected layer likewise. Nothing in the file names the network, so its size must fit one exactly. Our networks
register their modules in the cfg's order, which is therefore the order of `named_modules`.
Facts: github.com/pjreddie/darknet, src/parser.c, load_weights_upto and load_convolutional_weights.
"""

import functools
import itertools
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from convzoo.convert import presets
from convzoo.convert.state_dict import (
    ANY,
    AmbiguousWeights,
    ConvertedWeights,
    ExpectedWeights,
    assemble,
    file_bytes,
    meta_network,
    model_label,
    require_same_numerics,
    resolve_model_spec,
)
from convzoo.data.imagenet import darknet_wnids
from convzoo.errors import ConvzooError, UsageError
from convzoo.plain import JsonObject, JsonValue


class Original(NamedTuple):
    """A network as Darknet's authors trained it, and how they evaluate it: `transform` and `postprocess` sections."""

    num_classes: int
    class_names: Callable[[], Sequence[str]]
    transform: JsonObject
    task: str = "classify"
    postprocess: Mapping[str, JsonValue] = {}


VALID = {"score_threshold": 0.005, "iou_threshold": 0.45, "multi_label": True}  # of `detector valid`


def crop(size_px: int) -> JsonObject:
    """Return how Darknet's classifiers get their pictures, as measured on ImageNet: short side 256 for what fits in."""
    resize = {"size_px": 256 if 224 <= size_px <= 256 else size_px, "mode": "short_side", "antialias": True}
    return presets.crop_transform(resize, size_px, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


ORIGINALS = {
    "tinydarknet": Original(1000, darknet_wnids, crop(224)),
    "darknet53": Original(1000, darknet_wnids, crop(256)),
    "yolov3": Original(
        80,
        presets.coco_names,
        presets.transform([{"letterbox": {"size_px": 416, "align_corners": True}}]),
        "detect",
        VALID,
    ),
}
ORIGINALS["yolov3_tiny"] = ORIGINALS["yolov3"]
MAX_CLASSES = 22_000  # ImageNet-22k's 21,842 fit
LONG_HEADER = 20  # bytes, from version 0.2 on
BACKBONE_LAYERS = 52  # darknet53.conv.74: 74 layers of the cfg, 52 of them convolutions
COCO_ANCHORS = "anchors: COCO's are assumed; a .cfg beside the weights would tell"
IMAGENET_ORDER = "class names: ImageNet's WordNet ids in Darknet's order, as if trained on ImageNet"
NORM_KEYS = ("bias", "weight", "running_mean", "running_var")  # of a batch norm, in file order


def input_px(name: str) -> int:
    """Return the side of the pictures that one of Darknet's own networks was trained for."""
    (keys,) = ORIGINALS[name].transform["eval"][-1].values()
    return keys["size_px"]


class Header(NamedTuple):
    """Version and the number of training images seen; `seen` takes 8 bytes from version 0.2 on, before that 4."""

    major: int
    minor: int
    revision: int
    seen: int
    num_bytes: int


# The tensors of one convolution or fully connected layer with their shapes, in file order.
Layer = dict[str, tuple[int, ...]]


def read(source: Path | bytes | memoryview, expected: ExpectedWeights = ANY) -> ConvertedWeights:
    """Read a Darknet weight file, or its bytes; the network is the one whose size fits.

    Returns:
        the weights; of a partial file, such as darknet53.conv.74, the tensors it has and the names of those it lacks.
    Raises:
        UsageError: no such file, or a model that Darknet does not have.
        ConvzooError: not such a file, or its size fits no network.
    """
    where = str(source) if isinstance(source, Path) else "Darknet weights"
    data = file_bytes(source)
    header = read_header(data, where)
    model, num_layers = _recognise(where, header.num_bytes, len(data) - header.num_bytes, expected)
    layers = layers_of(model["name"], model["num_classes"])
    floats = torch.from_numpy(data[header.num_bytes :].view("<f4"))
    unfilled = {name.rpartition(".")[0] for layer in layers[num_layers:] for name in layer}
    tensors = dict(_tensors(floats, layers[:num_layers]))
    state_dict, table, missing = assemble(where, model, tensors, {}, lambda name: name.rpartition(".")[0] in unfilled)
    original = ORIGINALS[model["name"]]
    known = original.class_names() if model["num_classes"] == original.num_classes else None
    names = None if unfilled else expected.class_names(model, known)
    version = ".".join(map(str, header[:3]))
    what = (
        f"the first {num_layers} of {len(layers)} convolutions of {model['name']}" if unfilled else model_label(model)
    )
    return ConvertedWeights(
        origin="darknet",
        source=f"Darknet weights, version {version}, {header.seen} images seen: {what}",
        model=model,
        state_dict=state_dict,
        task=original.task,
        transform=None if unfilled else original.transform,
        postprocess=dict(original.postprocess),
        class_names=names,
        table=table,
        header={**header._asdict(), "bytes_used": len(data), "bytes_left": 0},
        missing=missing,
        notes=_notes(model, names),
    )


def _notes(model: Mapping[str, JsonValue], names: list[str] | None) -> list[str]:
    anchors = [COCO_ANCHORS] if model["name"] == "yolov3" else []
    return anchors + ([IMAGENET_ORDER] if names == list(darknet_wnids()) else [])


def write(
    state_dict: Mapping[str, Tensor],
    model: Mapping[str, JsonValue],
    seen: int = 0,
    version: tuple[int, int, int] = (0, 2, 0),
) -> bytes:
    """Write a network of Darknet's definition as a `.weights` file.

    Args:
        model: the recipe's `model` section.
        seen: training images; Darknet stops at once where it exceeds max_batches, unless run with -clear.
    Raises:
        UsageError: Darknet has no such network, or one that computes something else.
    """
    name = model["name"]
    _require_darknet(name)
    num_classes = resolve_model_spec(model)["num_classes"]
    described = {key: model[key] for key in ("anchors_px", "width") if model.get(key)}  # by the .cfg
    require_same_numerics(model, {"name": name, "num_classes": num_classes, **described}, "Darknet's")
    checked, _, _ = assemble("the network to write", model, state_dict, {})
    parts = [struct.pack("<iiiq" if _long_seen(*version[:2]) else "<iiii", *version, seen)]
    for layer in layers_of(name, num_classes, model.get("width")):
        parts += [checked[key].detach().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes() for key in layer]
    return b"".join(parts)


def read_written(data: bytes, model: Mapping[str, JsonValue]) -> dict[str, Tensor]:
    """Read a file that `write` has written for a model section.

    Raises:
        ConvzooError: not a Darknet file, or not of that network's size.
    """
    array = np.frombuffer(data, np.uint8)
    floats = torch.from_numpy(array[read_header(array, "the file written").num_bytes :].view("<f4").copy())
    layers = layers_of(model["name"], resolve_model_spec(model)["num_classes"], model.get("width"))
    if sum(map(_num_floats, layers)) != len(floats):
        raise ConvzooError(f"the file written has {len(floats)} floats, {model['name']} another number")
    return dict(_tensors(floats, layers))


def looks_like(head: bytes) -> bool:
    """Tell from the first bytes whether this may be a Darknet file; major and minor are small numbers."""
    if len(head) < 12:
        return False
    major, minor, revision = struct.unpack("<iii", head[:12])
    return 0 <= major < 10 and 0 <= minor < 100 and 0 <= revision < 1000


def read_header(data: np.ndarray, where: str) -> Header:
    """Read the header. Raises ConvzooError for anything but one."""
    if not looks_like(data[:12].tobytes()):
        raise ConvzooError(f"{where}: not a Darknet weight file: it does not begin with a version")
    major, minor, revision = struct.unpack("<iii", data[:12].tobytes())
    num_bytes = 20 if _long_seen(major, minor) else 16
    if len(data) < num_bytes:
        raise ConvzooError(f"{where}: truncated: {len(data)} bytes, the header alone takes {num_bytes}")
    (seen,) = struct.unpack("<q" if num_bytes == 20 else "<i", data[12:num_bytes].tobytes())
    return Header(major, minor, revision, seen, num_bytes)


def _long_seen(major: int, minor: int) -> bool:
    return major * 10 + minor >= 2


@functools.lru_cache(maxsize=16)
def layers_of(name: str, num_classes: int, width: float | None = None) -> list[Layer]:
    """Return the convolutions and fully connected layers of one of our networks in the order of a weight file."""
    network = meta_network({"name": name, "num_classes": num_classes, **({"width": width} if width else {})})
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    layers = []
    for path, module in network.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        # Batch norm is the convolution's own: its beta stands in the bias's place.
        norm = f"{path.removesuffix('conv')}norm"
        has_norm = path.endswith("conv") and f"{norm}.weight" in shapes
        keys = [f"{norm}.{key}" for key in NORM_KEYS] if has_norm else [f"{path}.bias"]
        layers.append({key: shapes[key] for key in [*keys, f"{path}.weight"]})
    return layers


def _num_floats(layer: Layer) -> int:
    return sum(math.prod(shape) for shape in layer.values())


def _tensors(floats: Tensor, layers: Sequence[Layer]) -> Iterator[tuple[str, Tensor]]:
    at = 0
    for layer in layers:
        for name, shape in layer.items():
            size = math.prod(shape)
            yield name, floats[at : at + size].view(shape)
            at += size


def _require_darknet(name: str) -> None:
    if name not in ORIGINALS:
        raise UsageError(f"Darknet's weight files are for {', '.join(ORIGINALS)}, not {name}")


def _recognise(where: str, header_bytes: int, num_bytes: int, expected: ExpectedWeights) -> tuple[JsonObject, int]:
    """Return the model section whose layers the bytes after the header fill, and how many of them.

    Without a name only whole networks and darknet53.conv.74 are found: a cut-off file could end at any layer's end.
    """
    model_name, num_classes = expected.model_name, expected.num_classes
    if model_name is not None:
        _require_darknet(model_name)
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"a network has at least one class, not {num_classes}")
    ends = {}  # where each network's layers end, in bytes after the header
    for name in ORIGINALS:
        layers = layers_of(name, _num_classes(name, expected))
        ends[name] = [4 * floats for floats in itertools.accumulate(map(_num_floats, layers))]
        if ends[name][-1] == num_bytes and model_name not in (None, name):
            raise ConvzooError(f"{where}: holds {name}, not {model_name}")
    if model_name:
        ends = {model_name: ends[model_name]}
    for name, layer_ends in ends.items():
        num_layers = layer_ends.index(num_bytes) + 1 if num_bytes in layer_ends else 0
        is_backbone = num_layers == BACKBONE_LAYERS and name == "darknet53"
        if num_layers == len(layer_ends) or is_backbone or (num_layers and model_name):
            return {"name": name, "num_classes": _num_classes(name, expected)}, num_layers
    raise _misfit(where, header_bytes, num_bytes, ends, expected)


def _num_classes(name: str, expected: ExpectedWeights) -> int:
    return expected.num_classes or ORIGINALS[name].num_classes


def _misfit(
    where: str, header_bytes: int, num_bytes: int, ends: dict[str, list[int]], expected: ExpectedWeights
) -> ConvzooError:
    """Return the error that says which network is nearest, or what the file may be where its size is no accident."""
    name = min(ends, key=lambda name: abs(ends[name][-1] - num_bytes))
    needed = f"{name} with {_num_classes(name, expected)} classes takes {header_bytes + ends[name][-1]}"
    text = f"{header_bytes + num_bytes} bytes, {needed}"
    for other, layer_ends in ends.items():
        classes = _num_classes(other, expected)
        # One more class makes the file longer by a fixed step, which tells other classes from damage.
        step = 4 * sum(map(_num_floats, layers_of(other, classes + 1))) - layer_ends[-1]
        more, rest = divmod(num_bytes - layer_ends[-1], step)
        classes += more
        if num_bytes in layer_ends:
            message = f"{where}: {text}; it is cut off, or {other} up to a layer: then say that it is {other}"
            return AmbiguousWeights(message, ExpectedWeights(other))
        if rest == 0 and 0 < classes < MAX_CLASSES:
            message = f"{where}: {text}; it is damaged, or {other} with {classes} classes: then say how many"
            return AmbiguousWeights(message, ExpectedWeights(num_classes=classes))
    is_near = abs(num_bytes - ends[name][-1]) < ends[name][-1] / 100
    if is_near or expected.model_name or num_bytes < min(layer_ends[-1] for layer_ends in ends.values()):
        return ConvzooError(f"{where}: {'truncated' if num_bytes < ends[name][-1] else 'over-long'}: {text}", ("cfg",))
    return ConvzooError(f"{where}: fits no network that is known without its .cfg: {text}", ("cfg",))
