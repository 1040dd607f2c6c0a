"""MindSpore checkpoints of the model zoo's networks, plain or from a training run, and back.

The zoo's networks differ from the widely used definitions; the model section returned says how, in keyword arguments
of our builders. Names: facts of github.com/mindspore-ai/models, official/cv and research/cv.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from convzoo.convert import presets
from convzoo.convert.mindspore_ckpt import TEXT, read_records, write_records
from convzoo.convert.state_dict import (
    ANY,
    ConvertedWeights,
    ExpectedWeights,
    assemble,
    file_bytes,
    meta_network,
    model_label,
    require_same_numerics,
)
from convzoo.data.datasets.cifar10 import CLASS_NAMES as CIFAR10_CLASSES
from convzoo.data.imagenet import wnids
from convzoo.errors import ConvzooError, UsageError
from convzoo.models.darknet import STAGES_53, TINY_PLAN
from convzoo.models.yolov3 import Scale
from convzoo.plain import JsonObject, JsonValue

# What the zoo's networks are in our builders' words; vgg16 also has batch norm or not, and each its classes.
ZOO: dict[str, JsonObject] = {
    "vgg16": {"conv_bias": False},
    "densenet100": {"stem_norm": True},
    "densenet121": {"transition_pool": "max", "stem_pool": "bottom_right"},
    "tinydarknet": {"leaky_slope": 0.2, "norm_eps": 1e-3, "last": "norm_leaky", "init": "truncated_normal"},
    "yolov3": {
        "backbone_act": "relu",
        "backbone_norm_momentum": 0.9,
        "down_padding": "bottom_right",
        "init": "uniform_fan_in",
    },
}
PREFIXES = ("network.", "yolo_network.")
OPTIMIZER_PREFIXES = ("moments.", "moment1.", "moment2.", "accum.")
BOOKKEEPING = {
    "global_step",
    "learning_rate",
    "momentum",
    "weight_decay",
    "epoch_num",
    "step_num",
    "loss_scale",
    "scale_sense",
    "current_iterator_step",
    "last_overflow_iterator_step",
}
NORM_KEYS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def read(source: Path | bytes | memoryview, expected: ExpectedWeights = ANY) -> ConvertedWeights:
    """Read a MindSpore `.ckpt` file, or its bytes, of one of the zoo's networks.

    Returns:
        the weights; of a backbone on its own, its tensors and the names of those it lacks.
    Raises:
        UsageError: no such file.
        ConvzooError: not a whole checkpoint, or not exactly the parameters of one of the networks.
    """
    where = str(source) if isinstance(source, Path) else "MindSpore checkpoint"
    data = file_bytes(source)
    records = read_records(data, where)
    texts = [name for name, record in records.items() if record.dtype == TEXT]
    tensors = {name: record.tensor() for name, record in records.items() if record.dtype != TEXT}
    converted = convert(tensors, where, expected)
    converted.header = {"records": len(records), "bytes_used": len(data), "bytes_left": 0}
    converted.dropped += texts
    return converted


def convert(tensors: Mapping[str, Tensor], where: str, expected: ExpectedWeights = ANY) -> ConvertedWeights:
    """Convert parameters under the zoo's names, prefixed or not, without the state of a training run.

    Raises:
        ConvzooError: not exactly the parameters of one of the networks.
    """
    stripped: dict[str, Tensor] = {}
    dropped = [name for name in tensors if is_bookkeeping(name)]
    for name in [name for name in tensors if not is_bookkeeping(name)]:
        plain = _plain_name(name)
        if plain in stripped:
            raise ConvzooError(f"{where}: '{plain}' stands there twice, with a prefix and without")
        stripped[plain] = tensors[name]
    model = _recognise(where, stripped)
    expected.require(where, model)
    is_backbone = all(name.startswith("feature_map.backbone.") for name in stripped)
    state_dict, table, missing = assemble(
        where, model, stripped, zoo_names(model), lambda name: is_backbone and not name.startswith("backbone.")
    )
    transform, names, notes = evaluation(model)
    names = expected.class_names(model, names)
    is_detector = model["name"] == "yolov3"
    return ConvertedWeights(
        origin="mindspore",
        source=f"MindSpore checkpoint: {'the backbone of ' if is_backbone else ''}{model_label(model)}",
        model=model,
        state_dict=state_dict,
        task="detect" if is_detector else "classify",
        transform=None if is_backbone else transform,
        postprocess={"box_rule": "mindspore", "max_detections": None} if is_detector else {},
        class_names=None if is_backbone else names,
        table=table,
        missing=missing,
        dropped=dropped,
        notes=[] if is_backbone else notes,
    )


def write(state_dict: Mapping[str, Tensor], model: Mapping[str, JsonValue], crc: bool = False) -> bytes:
    """Write a network of the zoo's definition as a `.ckpt` file.

    Args:
        model: the recipe's `model` section.
        crc: append the CRC-32 that MindSpore verifies with crc_check=True.
    Raises:
        UsageError: the zoo has no such network, or one that computes something else.
        ConvzooError: the tensors are not exactly the network's.
    """
    name = model["name"]
    if name not in ZOO:
        raise UsageError(f"the MindSpore zoo's checkpoints are for {', '.join(ZOO)}, not {name}")
    zoo_model = {"name": name, **ZOO[name]}
    zoo_model.update(
        {key: model[key] for key in ("num_classes", "batch_norm") if key in model and name != "tinydarknet"}
    )
    require_same_numerics(model, zoo_model, "the zoo's")
    checked, _, _ = assemble("the network to write", model, state_dict, {})
    return write_records({theirs: checked[ours] for ours, theirs in zoo_names(model).items()}, crc)


def looks_like(head: bytes) -> bool:
    """Tell from the first bytes whether this may be a checkpoint: a record that begins with a name."""
    return head[:1] == b"\n"


def is_zoo_name(name: str) -> bool:
    """Tell whether a parameter's name, prefixed or not, is one of the zoo's naming."""
    return _plain_name(name).startswith(("layers.0.", "backbone.features.", "conv1.conv.", "feature_map."))


def zoo_names(model: Mapping[str, JsonValue]) -> dict[str, str]:
    """Return the zoo's name of every tensor of a network; MindSpore does not count batches."""
    network = meta_network(model)
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    modules = _zoo_modules(model["name"], network)
    names = {}
    for name in network.state_dict():
        module, _, key = name.rpartition(".")
        if key != "num_batches_tracked":
            names[name] = f"{modules(module)}.{NORM_KEYS[key] if module in norms else key}"
    return names


def _zoo_modules(name: str, network: nn.Module) -> Callable[[str], str]:
    """Return what turns a module's name into the zoo's."""
    if name == "vgg16":
        return lambda module: module.replace("features.", "layers.")
    if name.startswith("densenet"):
        return _densenet_module
    table = _yolov3_modules(network) if name == "yolov3" else _tinydarknet_modules()
    return table.__getitem__


def _densenet_module(module: str) -> str:
    if module == "classifier":
        return "head.fc"
    module = re.sub(r"denselayer(\d+)", lambda match: f"cell_list.{int(match[1]) - 1}", module)
    return "backbone." + re.sub(r"(transition\d+)", r"\1.features", module)


def _tinydarknet_modules() -> dict[str, str]:
    convolutions = [f"features.{i}" for i, step in enumerate(TINY_PLAN) if step != "M"] + ["head"]
    table = {}
    for number, block in enumerate(convolutions, 1):
        table |= {f"{block}.conv": f"conv{number}.conv", f"{block}.norm": f"conv{number}.bn"}
    return table


def _yolov3_modules(network: nn.Module) -> dict[str, str]:
    blocks = {"backbone.stem": "backbone.conv0", "lateral16": "conv1", "lateral8": "conv2"}
    for stage, (_, num_units) in enumerate(STAGES_53):
        blocks[f"backbone.stages.{stage}.down"] = f"backbone.conv{stage + 1}"
        for unit, conv in itertools.product(range(num_units), ("conv1", "conv2")):
            blocks[f"backbone.stages.{stage}.units.{unit}.{conv}"] = f"backbone.layer{stage + 1}.{unit}.{conv}"
    table = {}
    scales = [name for name, module in network.named_children() if isinstance(module, Scale)]  # the coarsest first
    for number, scale in enumerate(scales):
        blocks |= {f"{scale}.neck.{i}": f"backblock{number}.conv{i}" for i in range(5)}
        blocks[f"{scale}.head.block"] = f"backblock{number}.conv5"
        table[f"{scale}.head.out"] = f"feature_map.backblock{number}.conv6"
    for ours, theirs in blocks.items():
        table |= {f"{ours}.conv": f"feature_map.{theirs}.0", f"{ours}.norm": f"feature_map.{theirs}.1"}
    return table


def is_bookkeeping(name: str) -> bool:
    """Tell whether a name is that of an optimiser slot or of the state of a training run."""
    return name in BOOKKEEPING or name.startswith(OPTIMIZER_PREFIXES)


def _plain_name(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    # The zoo's fine-tuning script wraps VGG's last layer.
    return name.replace("classifier.6.dense.", "classifier.6.")


def _recognise(where: str, tensors: Mapping[str, Tensor]) -> JsonObject:
    """Return the model section of the network whose parameters these are."""
    if any(name.startswith("feature_map.") for name in tensors):
        outputs = _size(tensors, "feature_map.backblock0.conv6.weight", 255)
        name, num_classes = "yolov3", outputs // 3 - 5
        if outputs % 3 or num_classes < 1:
            raise ConvzooError(f"{where}: a YOLOv3 head of {outputs} channels, not of 3 * (5 + classes)")
    elif "conv1.conv.weight" in tensors:
        name, num_classes = "tinydarknet", _size(tensors, "conv16.conv.weight", 1000)
    elif "backbone.features.conv0.weight" in tensors:
        name = "densenet100" if _size(tensors, "backbone.features.conv0.weight", 0) == 24 else "densenet121"
        num_classes = _size(tensors, "head.fc.weight", 10 if name == "densenet100" else 1000)
    elif "layers.0.weight" in tensors:
        name, num_classes = "vgg16", _size(tensors, "classifier.6.weight", 1000)
    else:
        first = next(iter(tensors), None)
        what = "no weights" if first is None else f"not the names of a network of the zoo, the first is '{first}'"
        raise ConvzooError(f"{where}: {what}")
    model = {"name": name, "num_classes": num_classes, **ZOO[name]}
    if name == "vgg16":
        model["batch_norm"] = "layers.1.gamma" in tensors
        model["conv_bias"] = "layers.0.bias" in tensors
        if model["batch_norm"] and num_classes == 10:
            model.update(dropout=0.0, init="xavier")
    return model


def _size(tensors: Mapping[str, Tensor], name: str, default: int) -> int:
    """Return a tensor's first dimension; where it is not there, `assemble` will say so."""
    return tensors[name].shape[0] if name in tensors and tensors[name].dim() else default


def evaluation(model: Mapping[str, JsonValue]) -> tuple[JsonObject, list[str] | None, list[str]]:
    """Return transform and class names with which the zoo evaluates this network, and notes."""
    name, num_classes = model["name"], model["num_classes"]
    resize = {"size_px": 256, "mode": "stretch", "antialias": False}
    names = wnids() if num_classes == 1000 else None
    notes = []
    if name == "densenet100":
        transform = presets.transform([], mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    elif name == "vgg16" and model["batch_norm"] and num_classes == 10:
        # The zoo writes CIFAR-10's constants in BGR order and applies them to RGB.
        operations = [{"resize": {**resize, "size_px": 224}}]
        transform = presets.transform(operations, mean=(0.4465, 0.4822, 0.4914), std=(0.2010, 0.1994, 0.2023))
    elif name == "yolov3":
        operations = [{"resize": {"size_px": 416, "mode": "stretch", "interpolation": "by_scale"}}]
        transform = presets.transform(operations, presets.IMAGENET_MEAN, presets.IMAGENET_STD)
        names = presets.coco_names() if num_classes == 80 else None
    elif name == "tinydarknet":
        transform = presets.crop_transform({**resize, "mode": "short_side"}, 224)
        notes.append("taken for ImageNet; the zoo's CIFAR-10 training leaves 1000 outputs too, at 227x227 pixels")
    else:
        transform = presets.crop_transform(
            {**resize, "mode": "short_side" if model.get("batch_norm") else "stretch"}, 224
        )
    if num_classes == 10 and name in ("densenet100", "vgg16"):
        names = CIFAR10_CLASSES
    return transform, names, notes
