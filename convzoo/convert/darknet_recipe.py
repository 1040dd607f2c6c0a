"""The training settings of a Darknet `.cfg` as one of our recipes, and the name of every key left out.

Darknet counts in batches and a recipe in epochs, so a number of pictures is assumed and said. Its augmentation and its
loss are ours: the keys that have a meaning here are taken, the others are listed with the reason.
Facts: github.com/pjreddie/darknet, src/parser.c (parse_net_options) and src/network.c (get_current_rate);
github.com/AlexeyAB/darknet, src/data.c, for mosaic.
"""

import itertools
import math
import re
from pathlib import Path

from convzoo.convert.darknet_own import own_model
from convzoo.convert.darknet_pair import preprocessing, read_cfg_file, suppression
from convzoo.convert.mindspore_recipe import ZooRecipe
from convzoo.convert.state_dict import meta_network, resolve_model_spec
from convzoo.errors import UsageError
from convzoo.models.darknet_cfg import Section, read_sections
from convzoo.models.darknet_layers import HEADS, DarknetCfg, read_cfg
from convzoo.models.darknet_network import Network
from convzoo.plain import JsonObject

# (task, classes) of well-known data sets: their names and training pictures.
PICTURES = {
    ("detect", 80): ("COCO's", 118_287),
    ("detect", 20): ("Pascal VOC's", 16_551),
    ("classify", 1000): ("ImageNet's", 1_281_167),
}
MOMENTA = {"norm_momentum", "backbone_norm_momentum"}
RANDOM_SIDES_PX = list(range(320, 609, 32))  # of every tenth batch, where a head says random=1
WHY = {
    "--accumulate N": "subdivisions",
    "the loss is YOLOv3's": "truth_thresh iou_thresh iou_thresh_kind iou_loss iou_normalizer cls_normalizer "
    "obj_normalizer uc_normalizer delta_normalizer max_delta objectness_smooth focal_loss counters_per_class "
    "bias_match rescore object_scale noobject_scale class_scale coord_scale absolute thresh log sqrt",
    "all boxes of a picture are learned": "max",
    "not drawn for pictures with boxes": "angle aspect",
    "tracking is not here": "track_history_size sim_thresh dets_for_track dets_for_show track_ciou_norm",
}
REASONS = {key: why for why, keys in WHY.items() for key in keys.split()}


def is_cfg(path: Path) -> bool:
    """Tell from a file's name, or from its first section, whether it is a `.cfg`."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(4096)
    return path.suffix.lower() == ".cfg" or re.search(rb"\A(\s|[#;].*\n)*\[net(work)?\]", head) is not None


class Settings:
    """The keys of a section that matter in training alone, each taken at most once."""

    def __init__(self, section: Section):
        self.section = section
        self.taken: set[str] = set()

    def text(self, key: str, default: str) -> str:
        self.taken.add(key)
        return self.section.training.get(key, default)

    def number(self, key: str, default: float) -> float:
        """Take a finite number. Raises UsageError."""
        return self.numbers(key, f"{default!r}")[0]

    def whole(self, key: str, default: int) -> int:
        """Take a whole number above 0. Raises UsageError."""
        number = self.number(key, default)
        if number < 1 or number != int(number):
            raise self.section.error(f"{number:g} is not a whole number above 0", key)
        return int(number)

    def numbers(self, key: str, default: str) -> list[float]:
        """Take finite numbers with commas between. Raises UsageError."""
        text = self.text(key, default)
        try:
            numbers = [float(part) for part in text.removesuffix(",").split(",")]
        except ValueError:
            numbers = [math.nan]
        if not all(map(math.isfinite, numbers)):
            raise self.section.error(f"{text[:40]!r} is not a number, or numbers with commas between", key)
        return numbers

    def dropped(self) -> dict[str, str]:
        """Return the keys that were not taken with the reason."""
        keys = [key for key in self.section.training if key not in self.taken]
        return {f"[{self.section.name}] {key}": REASONS.get(key, "nothing here answers to it") for key in keys}


def convert(path: Path, resize: str | None = None) -> ZooRecipe:
    """Read the training settings of a `.cfg`.

    Args:
        resize: "letterbox" or "stretch", as the program that it is from does; None for what the file says.
    Raises:
        UsageError: a `.cfg` that is not read, or a setting that has no equivalent, with file and line.
    """
    file = read_cfg_file(path)
    cfg, net = read_cfg(file.text, file.name), Settings(read_sections(file.text, file.name)[0])
    if cfg.num_classes is None:
        raise UsageError(f"{path}: a backbone, which ends with neither heads nor [softmax]: nothing to train")
    last_head = next((layer.section for layer in reversed(cfg.layers) if layer.section.name in HEADS), None)
    head = Settings(last_head or net.section)
    task = "detect" if last_head else "classify"
    notes: list[str] = []
    model = own_model(cfg) or {"name": "darknet", "cfg": file.text, "num_classes": cfg.num_classes}
    train, schedule, lr = _in_epochs(net, task, cfg.num_classes, notes)
    transform, why = preprocessing(cfg, None, last_head is not None, resize)
    notes.append(why)
    augment = _boxes_transform if last_head else _classes_transform
    network = meta_network({"name": "darknet", "cfg": file.text})
    assert isinstance(network, Network)
    optim = {"name": "sgd", "lr": lr, "momentum": net.number("momentum", 0.9), "nesterov": False}
    sections = {
        "task": task,
        "seed": 0,
        "data": {"name": "coco" if last_head else "image_folder"},
        "transform": transform | augment(cfg, net, head, notes),
        "model": {**model, **dict.fromkeys(MOMENTA & resolve_model_spec(model).keys(), 0.01)},
        "loss": _loss(head) if last_head else {},
        "optim": {**optim, "weight_decay": net.number("decay", 0.0001)},
        "schedule": schedule,
        "train": train,
        "postprocess": suppression(network),
    }
    return ZooRecipe(sections, notes, {**net.dropped(), **(head.dropped() if last_head else {})})


def _in_epochs(net: Settings, task: str, num_classes: int, notes: list[str]) -> tuple[JsonObject, JsonObject, float]:
    """Return the sections `train` and `schedule`, and the learning rate."""
    batch_size, num_batches = net.whole("batch", 1), net.whole("max_batches", 1000)
    if batch_size == 1:
        batch_size = 64 if task == "detect" else 128
        notes.append(f"batch=1 is for testing: train.batch_size is {batch_size}, as Darknet trains")
    whose, pictures = PICTURES.get((task, num_classes), ("as many as batches", num_batches))
    steps = pictures / batch_size
    epochs = max(1, round(num_batches / steps))
    notes.append(
        f"{num_batches} batches are {epochs} epochs of {pictures} pictures, {whose}; with N pictures multiply "
        f"train.epochs, schedule.milestones and warmup_epochs by {pictures} / N"
    )
    train: JsonObject = {"epochs": epochs, "batch_size": batch_size}
    decay = net.number("ema_alpha", 0)
    if decay:
        train["ema_decay"] = decay
    schedule = _schedule(net, steps, epochs, num_batches, notes)
    power, burn_in = net.number("power", 4), net.number("burn_in", 0)
    if burn_in > 0:
        schedule |= {"warmup_epochs": round(burn_in / steps, 6), "warmup_power": power}
    if schedule["name"] == "polynomial":
        schedule["power"] = power
    return train, schedule, net.number("learning_rate", 0.001)


def _schedule(net: Settings, steps: float, epochs: int, num_batches: int, notes: list[str]) -> JsonObject:
    policy = net.text("policy", "constant")
    match policy:
        case "constant":
            return {"name": "constant"}
        case "poly":
            return {"name": "polynomial"}
        case "step":
            every, gamma = net.whole("step", 1), net.number("scale", 1)
            changes = [(float(at), gamma) for at in itertools.islice(range(every, num_batches, every), 1000)]
        case "steps":
            changes = _changes(net, notes)
        case _:
            raise net.section.error(f"{policy[:40]!r} has no equivalent; constant, steps, step and poly have", "policy")
    milestones = sorted({max(1, round(at / steps)) for at, _ in changes})
    milestones = [milestone for milestone in milestones if milestone < epochs]
    if len(milestones) < len(changes):
        notes.append(f"of {len(changes)} changes of the learning rate {len(milestones)} are within the {epochs} epochs")
    if not milestones:
        return {"name": "constant"}
    return {"name": "multi_step", "milestones": milestones, "gamma": changes[0][1]}


def _changes(net: Settings, notes: list[str]) -> list[tuple[float, float]]:
    """Return (batch, factor) of each change of the learning rate. Raises UsageError where factors differ."""
    steps, scales = net.numbers("steps", "1"), net.numbers("scales", "1")
    if len(steps) != len(scales):
        raise net.section.error(f"{len(steps)} steps and {len(scales)} scales", "scales")
    changes = list(zip(steps, scales, strict=True))
    if steps[0] <= 0 and len(changes) > 1 and math.isclose(scales[0] * scales[1], 1):
        notes.append(f"left out: the first {steps[1]:g} batches with {scales[0]:g} of the learning rate")
        changes = changes[2:]
    if len({scale for _, scale in changes}) > 1:
        raise net.section.error(f"factors that differ, {scales}, have no equivalent", "scales")
    return changes


def _hsv(net: Settings) -> list[JsonObject]:
    """Return the change of colours; a factor below 1 stands for its inverse, as both are drawn."""
    hue, saturation, exposure = net.number("hue", 0), net.number("saturation", 1), net.number("exposure", 1)
    for key, value in (("saturation", saturation), ("exposure", exposure)):
        if value <= 0:
            raise net.section.error(f"{value:g} is not above 0", key)
    if (hue, saturation, exposure) == (0, 1, 1):
        return []
    saturation, exposure = (round(max(value, 1 / value), 4) for value in (saturation, exposure))
    return [{"hsv_distort": {"hue": hue, "saturation": saturation, "exposure": exposure}}]


def _flip(net: Settings) -> list[JsonObject]:
    return [{"flip_lr": {"prob": 0.5}}] if net.number("flip", 1) else []


def _boxes_transform(cfg: DarknetCfg, net: Settings, head: Settings, notes: list[str]) -> JsonObject:
    size = cfg.width if cfg.width == cfg.height else [cfg.height, cfg.width]
    place: JsonObject = {"size_px": size, "jitter": head.number("jitter", 0.2)}
    if net.number("mosaic", 0):
        place["mosaic_prob"] = 0.5
    train = [{"random_place": place}, *_flip(net), *_hsv(net)]
    if not head.number("random", 0):
        return {"train": train}
    if cfg.width != cfg.height:
        notes.append("random: sizes are square here, the network's is not: every batch has the one size")
        return {"train": train}
    return {"train": train, "multi_scale_px": RANDOM_SIDES_PX, "multi_scale_every_steps": 10}


def _classes_transform(cfg: DarknetCfg, net: Settings, head: Settings, notes: list[str]) -> JsonObject:
    if cfg.width != cfg.height:
        notes.append("pictures are stretched in training: crops are square here, the network's input is not")
        stretch = {"resize": {"size_px": [cfg.height, cfg.width], "mode": "stretch", "antialias": False}}
        return {"train": [stretch, *_flip(net), *_hsv(net)]}
    aspect = net.number("aspect", 1)
    if aspect <= 0:
        raise net.section.error(f"{aspect:g} is not above 0", "aspect")
    low = net.whole("min_crop", cfg.width)
    high = net.whole("max_crop", 2 * cfg.width)
    crop = {"size_px": cfg.width, "short_side_px": [low, max(low, high)], "degrees": net.number("angle", 0)}
    crop["aspect"] = round(max(aspect, 1 / aspect), 4)
    return {"train": [{"rotate_scale_crop": crop}, *_flip(net), *_hsv(net)]}


def _loss(head: Settings) -> JsonObject:
    return {
        "label_smoothing": head.number("label_smooth_eps", 0),
        "ignore_threshold": head.number("ignore_thresh", 0.5),
    }
