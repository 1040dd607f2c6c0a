"""State dicts of torchvision and timm: VGG-16 with and without batch norm, DenseNet-121, timm's DarkNet-53.

`.pth` and `.pt` are read with weights_only=True, which loads tensors and plain values and nothing else; a file with
other pickled objects is refused. Wrappers are taken off: `state_dict`, `model`, an EMA copy, `module.` and `model.`.
"""

import functools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from convzoo.convert import mindspore, presets
from convzoo.convert.state_dict import (
    ANY,
    ConvertedWeights,
    ExpectedWeights,
    Origin,
    assemble,
    meta_network,
    model_label,
    one_line,
    require_file,
)
from convzoo.data.imagenet import wnids
from convzoo.errors import ConvzooError
from convzoo.plain import JsonObject, JsonValue

# Where a training script keeps the weights, best first: the average is what such a run evaluates.
EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "model.", "_orig_mod.")
ZOO_NAMES = {"densenet121": "torchvision or timm"}  # whose names are the same; of the others, the origin
# torchvision's first DenseNet files have a dot where a number follows a name.
OLD_DENSENET = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
)


def read(path: Path, expected: ExpectedWeights = ANY) -> ConvertedWeights:
    """Read a `.pth`, `.pt` or `.safetensors` file of one of the networks.

    Raises:
        UsageError: no such file.
        ConvzooError: not a whole state dict, one with pickled objects, or not exactly the tensors of a network.
    """
    require_file(path)
    is_safetensors = path.open("rb").read(9)[8:] == b"{"
    tensors, notes = unwrap(_load_safetensors(path) if is_safetensors else _load_pickle(path), str(path))
    if any(map(mindspore.is_zoo_name, tensors)):
        converted = mindspore.convert(tensors, str(path), expected)
    else:
        converted = convert(tensors, str(path), expected)
    converted.notes = notes + converted.notes
    converted.header = {"tensors": len(tensors), "bytes_used": path.stat().st_size, "bytes_left": 0}
    return converted


def convert(tensors: Mapping[str, Tensor], where: str, expected: ExpectedWeights = ANY) -> ConvertedWeights:
    """Convert a state dict under torchvision's or timm's names, such as `timm.create_model(...).state_dict()`.

    Raises:
        ConvzooError: not exactly the tensors of one of the networks.
    """
    model, names, origin = _recognise(where, tensors)
    expected.require(where, model)
    flat = {
        name: tensor.flatten(1) if ".fc" in name and tensor.dim() == 4 else tensor for name, tensor in tensors.items()
    }
    state_dict, table, _ = assemble(where, model, flat, names)
    is_imagenet = model["num_classes"] == 1000
    assumed = f"preprocessing: {_assumed(model['name'])}"
    return ConvertedWeights(
        origin=origin,
        source=f"{ZOO_NAMES.get(model['name'], origin)} state dict: {model_label(model)}",
        model=model,
        state_dict=state_dict,
        transform=_transform(model["name"]) if is_imagenet else None,
        class_names=expected.class_names(model, wnids() if is_imagenet else None),
        table=table,
        notes=[assumed if is_imagenet else "no preprocessing: not ImageNet's classes"],
    )


def unwrap(loaded: JsonValue, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """Take the state dict out of what training scripts put around it, and say what was taken off.

    Raises:
        ConvzooError: there is no state dict in it.
    """
    notes = []
    for _ in range(4):
        if not isinstance(loaded, Mapping) or not loaded:
            kind = "an empty dictionary" if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
            raise ConvzooError(f"{where}: holds {kind}, not a state dict")
        key = next((key for key in EMA_KEYS + STATE_DICT_KEYS if isinstance(loaded.get(key), Mapping)), None)
        if key is None:
            break
        notes.append(f"taken from '{key}'" + (", the moving average of the weights" if key in EMA_KEYS else ""))
        loaded = loaded[key]
    wrong = next(
        (key for key, value in loaded.items() if not isinstance(key, str) or not isinstance(value, Tensor)), None
    )
    if wrong is not None:
        raise ConvzooError(f"{where}: no state dict in it: {wrong!r} is a {type(loaded[wrong]).__name__}, not a tensor")
    tensors = {name: tensor for name, tensor in loaded.items() if name != "n_averaged"}
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in tensors)), None):
        notes.append(f"prefix '{prefix}' taken off")
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors, notes


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if "convzoo" in metadata:
            raise ConvzooError(f"{path}: a model file that convzoo wrote; it needs no conversion")
        return load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ConvzooError(f"{path}: not a whole safetensors file: {one_line(error)}") from None


def _load_pickle(path: Path) -> JsonValue:
    is_zip = zipfile.is_zipfile(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # whatever a damaged file makes the reader raise
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise ConvzooError(
                f"{path}: holds the pickled object {refused[1]}, which could run any code, and is not loaded; "
                "save the weights alone, torch.save(model.state_dict(), FILE), or as safetensors"
            ) from None
        raise ConvzooError(f"{path}: not a whole PyTorch file: {one_line(error)}") from None
    damaged = None
    if is_zip:
        # torch.load does not look at the checksums in the file.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    if damaged is not None:
        raise ConvzooError(f"{path}: damaged: the CRC-32 of {damaged} is not the one it was written with")
    return loaded


def _recognise(where: str, tensors: Mapping[str, Tensor]) -> tuple[JsonObject, dict[str, str], Origin]:
    """Return the model section, the zoo's names where they differ from ours, and the library that runs the file."""
    if (
        "features.denseblock1.denselayer1.conv2.weight" in tensors
        or "features.denseblock1.denselayer1.conv.2.weight" in tensors
    ):
        model = {"name": "densenet121", "num_classes": _classes(tensors, "classifier.weight")}
        return model, {OLD_DENSENET.sub(r"\1\2", name): name for name in tensors}, "torchvision"
    if "features.0.weight" in tensors:
        is_timm = "pre_logits.fc1.weight" in tensors
        names = _timm_vgg_names() if is_timm else {}
        model = {
            "name": "vgg16",
            "num_classes": _classes(tensors, names.get("classifier.6.weight", "classifier.6.weight")),
        }
        model |= {"batch_norm": "features.1.running_mean" in tensors}
        return model, names, "timm" if is_timm else "torchvision"
    if "stem.conv1.conv.weight" in tensors:
        model = {"name": "darknet53", "num_classes": _classes(tensors, "head.fc.weight"), "leaky_slope": 0.01}
        return model, _timm_darknet53_names(model), "timm"
    first = next(iter(tensors))
    raise ConvzooError(
        f"{where}: not the names of vgg16, densenet121 or darknet53 in torchvision or timm, the first is '{first}'"
    )


def _classes(tensors: Mapping[str, Tensor], name: str) -> int:
    return tensors[name].shape[0] if name in tensors and tensors[name].dim() else 1000


def _timm_vgg_names() -> dict[str, str]:
    layers = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
    return {f"{ours}.{key}": f"{theirs}.{key}" for ours, theirs in layers.items() for key in ("weight", "bias")}


def _timm_darknet53_names(model: Mapping[str, JsonValue]) -> dict[str, str]:
    changes = (("classifier", "head.fc"), ("backbone.stem", "stem.conv1"), ("backbone.stages", "stages"))
    changes += ((".down.", ".conv_down."), (".units.", ".blocks."), (".norm.", ".bn."))
    names = {}
    for name in meta_network(model).state_dict():
        names[name] = functools.reduce(lambda changed, change: changed.replace(*change), changes, name)
    return names


def _transform(name: str) -> JsonObject:
    if name == "darknet53":
        return presets.crop_transform(
            {"size_px": 288, "mode": "short_side", "interpolation": "bicubic", "antialias": True}, 256
        )
    return presets.crop_transform(
        {"size_px": 256, "mode": "short_side", "interpolation": "bilinear", "antialias": True}, 224
    )


def _assumed(name: str) -> str:
    return "that of timm's darknet53.c2ns_in1k" if name == "darknet53" else "that of torchvision's weights"
