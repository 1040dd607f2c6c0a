"""A MindSpore zoo configuration as one of our recipes: what trains the network, and the name of every key left out.

The values are the configuration's; what its program does besides (pipelines, schedules, smoothing) is written out, and
its defects are not repeated. Facts: github.com/mindspore-ai/models, official/cv and research/cv.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convzoo.convert import mindspore, presets
from convzoo.convert.mindspore_keys import UNREAD, Keys
from convzoo.errors import ConvzooError
from convzoo.plain import JsonObject

CIFAR10_MEAN, CIFAR10_STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
DATASETS = {"cifar10": "cifar10", "imagenet": "imagenet", "imagenet2012": "imagenet"}
# Keys of each schedule; a configuration has those of all and its program reads those of one.
SCHEDULE_KEYS = {
    "step": {"lr_init", "lr_max"},
    "exponential": {"lr", "lr_epochs", "lr_gamma"},
    "cosine_annealing": {"lr", "eta_min", "T_max"},
}
EXPORT_BATCH = "the batch of its export; training reads per_batch_size"
ANCHORS = [[10, 13], [16, 30], [33, 23], [30, 61], [62, 45], [59, 119], [116, 90], [156, 198], [373, 326]]


@dataclass
class ZooRecipe:
    """A recipe's plain sections, notes on what differs, and the keys that are not in it with the reason."""

    sections: JsonObject
    notes: list[str]
    dropped: dict[str, str]


def convert(path: Path) -> ZooRecipe:
    """Read a zoo configuration.

    Raises:
        UsageError: a key with a value that has no equivalent, with file and line.
        ConvzooError: neither YAML nor, where it is called .py, plain Python values, or not the configuration of one of
            the zoo's networks.
    """
    keys = Keys(path)
    sections = _network(keys)(keys)
    group = keys.whole("group_size", 1)
    keys.notes.insert(
        0,
        f"train.batch_size is for all devices: the zoo's, which is per device, times group_size {group}"
        if group > 1
        else "the zoo's batch sizes are per device, ours is global: on N devices multiply train.batch_size by N",
    )
    return ZooRecipe(sections, keys.notes, keys.dropped())


def _network(keys: Keys) -> Callable[[Keys], JsonObject]:
    if "net" in keys:
        return _densenet
    if "anchor_scales" in keys or "backbone_layers" in keys or "pretrained_backbone" in keys:
        return _yolov3
    if "initialize_mode" in keys or "has_dropout" in keys:
        return _vgg16
    if "epoch_size" in keys or "image_height" in keys:
        return _tinydarknet
    raise ConvzooError(f"{keys.path}: text, but not the configuration of a network of the MindSpore zoo")


def _recipe(task: str, data: str, parts: JsonObject) -> JsonObject:
    """Return the sections in the order in which data runs."""
    order = ("transform", "model", "loss", "optim", "schedule", "train", "postprocess")
    return {"task": task, "seed": 0, "data": {"name": data}, **{key: parts[key] for key in order if key in parts}}


def _optim(keys: Keys, lr: float) -> JsonObject:
    momentum, decay = keys.number("momentum", 0.9), keys.number("weight_decay", 0.0)
    return {"name": "sgd", "lr": lr, "momentum": momentum, "nesterov": False, "weight_decay": decay}


def _train(keys: Keys, epochs: int, batch_size: int) -> JsonObject:
    train: JsonObject = {"epochs": epochs, "batch_size": batch_size * keys.whole("group_size", 1)}
    scale = keys.number("loss_scale", 1.0)
    if keys.flag("is_dynamic_loss_scale", False):
        train["loss_scale"] = "dynamic"
    elif scale != 1:
        train["loss_scale"] = scale
    for key in ("keep_checkpoint_max", "max_checkpoint_num"):
        if key in keys:
            train["keep_checkpoint_max"] = keys.whole(key)
    return train


def _schedule(keys: Keys, epochs: int, least_t_max: int = 0) -> tuple[float, JsonObject]:
    """Return the base rate and the schedule."""
    name = keys.choice("lr_scheduler", {name: name for name in SCHEDULE_KEYS})
    keys.why |= {key: f"not read with lr_scheduler {name}" for others in SCHEDULE_KEYS.values() for key in others}
    warmup = {"warmup_epochs": keys.number("warmup_epochs", 0)}
    if name == "step":  # its name misleads: it falls with the square, step by step
        start, lr = keys.number("lr_init"), keys.number("lr_max")
        return lr, {"name": "polynomial", "power": 2.0, "warmup_start_lr": start, **warmup}
    # Tiny-DarkNet's base rate has another name.
    lr = keys.number("lr") if "lr" in keys else keys.number("lr_init")
    if name == "exponential":
        return lr, {**_multi_step(keys, epochs), **warmup}
    t_max = max(keys.number("T_max", epochs), least_t_max)
    if t_max < epochs:
        keys.notes.append(
            f"T_max {t_max:g} is less than the {epochs} epochs: here the rate stays at eta_min afterwards"
        )
    cosine = {"name": "cosine_annealing", "eta_min": keys.number("eta_min", 0.0), "T_max": t_max, "per": "epoch"}
    return lr, {**cosine, **warmup}


def _multi_step(keys: Keys, epochs: int) -> JsonObject:
    listed = keys.whole_numbers("lr_epochs", [])
    gamma = keys.number("lr_gamma", 0.1)
    milestones = [milestone for milestone in listed if 0 < milestone < epochs]
    if len(milestones) < len(listed):
        keys.notes.append(f"milestones {sorted(set(listed) - set(milestones))} are never reached in {epochs} epochs")
    if not milestones:
        return {"name": "constant"}
    if sorted(set(milestones)) != milestones:
        raise keys.error("lr_epochs", f"must rise, not {listed}")
    return {"name": "multi_step", "milestones": milestones, "gamma": gamma}


def _smoothing(keys: Keys, key: str, num_classes: int) -> JsonObject:
    """Turn the zoo's smoothing, spread over the other classes, into ours, spread over all: the same targets."""
    factor = keys.number("label_smooth_factor", 0.1)
    if not keys.flag(key, False) or factor == 0:
        return {"label_smoothing": 0.0}
    ours = round(factor * num_classes / (num_classes - 1), 9) if num_classes > 1 else factor
    keys.notes.append(f"smoothing {factor:g} over the other classes is {ours:g} over all: the same targets")
    return {"label_smoothing": ours}


def _imagenet_transform(size_px: int, eval_mode: str, *more: JsonObject) -> JsonObject:
    crop = {"size_px": size_px, "scale": [0.08, 1.0], "ratio": [0.75, 1.333], "antialias": False}
    transform = presets.crop_transform({"size_px": 256, "mode": eval_mode, "antialias": False}, size_px)
    return {**transform, "train": [{"random_resized_crop": crop}, {"flip_lr": {"prob": 0.5}}, *more]}


def _cifar_train(*more: JsonObject) -> list[JsonObject]:
    return [{"pad_crop": {"padding_px": 4}}, {"flip_lr": {"prob": 0.5}}, *more]


def _jitter(**more: float) -> JsonObject:
    return {"color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, **more}}


def _stretch(size_px: int) -> JsonObject:
    return {"resize": {"size_px": size_px, "mode": "stretch", "antialias": False}}


def _dataset(keys: Keys, num_classes: int, **more: str) -> str:
    """Return cifar10, imagenet or one of `more`."""
    names = [keys.choice(key, DATASETS | more) for key in ("dataset", "dataset_name") if key in keys]
    return names[0] if names else "cifar10" if num_classes == 10 else "imagenet"


def _vgg16(keys: Keys) -> JsonObject:
    num_classes = keys.whole("num_classes")
    dataset = _dataset(keys, num_classes, custom="custom")
    size_px = keys.side_px("image_size", 224)
    keys.expect("padding", keys.choice("pad_mode", {"same": 0, "pad": 1}, "same"))  # both pad 1 on every side
    init = keys.choice("initialize_mode", {"XavierUniform": "xavier", "KaimingNormal": "kaiming"}, "KaimingNormal")
    dropout = 0.5 if keys.flag("has_dropout", False) else 0.0
    model = {
        "name": "vgg16",
        "num_classes": num_classes,
        "batch_norm": keys.flag("batch_norm", False),
        "head": "imagenet",
    }
    model |= {"dropout": dropout, "conv_bias": keys.flag("has_bias", False), "init": init}
    if dataset == "custom":
        return _vgg16_fine_tuning(keys, model, size_px)
    epochs = keys.whole("max_epoch")
    lr, schedule = _schedule(keys, epochs)
    if dataset == "cifar10":
        operations = [_stretch(size_px)]
        transform = presets.transform(operations, tuple(CIFAR10_MEAN), tuple(CIFAR10_STD))
        transform["train"] = _cifar_train(*operations)
        loss = {"label_smoothing": 0.0}
        keys.notes.append("mean and std are CIFAR-10's in RGB order; the zoo applies them in BGR order to RGB pictures")
        keys.why |= {"label_smooth": UNREAD, "label_smooth_factor": UNREAD}
    else:
        transform = _imagenet_transform(size_px, "stretch")
        loss = _smoothing(keys, "label_smooth", num_classes)
    keys.why["per_batch_size"] = "the zoo's program overwrites it with batch_size"
    train = _train(keys, epochs, keys.whole("batch_size"))
    train["save_every_epochs"] = keys.whole("ckpt_interval", 1)  # epochs here, steps in the other networks' files
    if train["save_every_epochs"] < 1:
        raise keys.error("ckpt_interval", "must be 1 epoch or more")
    parts = {"transform": transform, "model": model, "loss": loss, "optim": _optim(keys, lr), "schedule": schedule}
    return _recipe("classify", "cifar10" if dataset == "cifar10" else "image_folder", {**parts, "train": train})


def _vgg16_fine_tuning(keys: Keys, model: JsonObject, size_px: int) -> JsonObject:
    """Return what the zoo's fine_tune.py does: the network with batch norm, trained in its last layer alone."""
    if not model["batch_norm"]:
        keys.notes.append("fine_tune.py builds the network with batch norm whatever batch_norm says")
    model = {**model, "batch_norm": True}
    keys.notes.append("only the last layer is trained; start from trained weights, as the zoo does")
    train = {**_train(keys, keys.whole("num_epochs"), keys.whole("batch_size"))}
    train["freeze"] = ["features.*", "classifier.0.*", "classifier.3.*"]
    parts = {"transform": _imagenet_transform(size_px, "short_side"), "model": model}
    parts |= {"optim": _optim(keys, keys.number("lr")), "schedule": {"name": "constant"}, "train": train}
    return _recipe("classify", "image_folder", parts)


def _densenet(keys: Keys) -> JsonObject:
    name = keys.choice("net", {"densenet100": "densenet100", "densenet121": "densenet121"})
    num_classes, epochs = keys.whole("num_classes"), keys.whole("max_epoch")
    dataset = _dataset(keys, num_classes)
    size_px = keys.side_px("image_size", 224 if dataset == "imagenet" else 32)
    lr, schedule = _schedule(keys, epochs)
    if dataset == "imagenet":
        transform = _imagenet_transform(size_px, "stretch", _jitter())
    else:
        transform = presets.transform([], (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        transform["train"] = _cifar_train(_jitter())
    loss = _smoothing(keys, "label_smooth", num_classes)
    model = {"name": name, "num_classes": num_classes, **mindspore.ZOO[name]}
    train = _train(keys, epochs, keys.whole("per_batch_size"))
    keys.why |= {"batch_size": EXPORT_BATCH, "backbone": UNREAD}
    parts = {"transform": transform, "model": model, "loss": loss, "optim": _optim(keys, lr), "schedule": schedule}
    return _recipe("classify", "cifar10" if dataset == "cifar10" else "image_folder", {**parts, "train": train})


def _tinydarknet(keys: Keys) -> JsonObject:
    num_classes, epochs = keys.whole("num_classes"), keys.whole("epoch_size")
    dataset = _dataset(keys, num_classes)
    size_px = keys.side_px("image_height", 224)
    keys.expect("image_width", size_px)
    lr, schedule = _schedule(keys, epochs)
    model = {"name": "tinydarknet", "num_classes": num_classes, **mindspore.ZOO["tinydarknet"]}
    if dataset == "imagenet":
        transform = _imagenet_transform(size_px, "short_side", _jitter(hue=0.1))
        loss = _smoothing(keys, "use_label_smooth", num_classes)
    else:
        transform = presets.transform([_stretch(size_px)], tuple(CIFAR10_MEAN), tuple(CIFAR10_STD))
        cut = {"cutout": {"size_px": 112, "fill": CIFAR10_MEAN}}
        transform["train"] = _cifar_train(_jitter(), _stretch(size_px), cut)
        loss = {"label_smoothing": 0.0}
        keys.why |= dict.fromkeys(("use_label_smooth", "label_smooth_factor"), f"{UNREAD} for CIFAR-10")
        keys.notes.append("evaluated without augmentation; the zoo evaluates CIFAR-10 with the training augmentation")
    if num_classes != 1000:
        keys.notes.append(f"{num_classes} outputs; the zoo's network has 1000 whatever num_classes says")
    train = _train(keys, epochs, keys.whole("batch_size"))
    parts = {"transform": transform, "model": model, "loss": loss, "optim": _optim(keys, lr), "schedule": schedule}
    return _recipe("classify", "cifar10" if dataset == "cifar10" else "image_folder", {**parts, "train": train})


def _yolov3(keys: Keys) -> JsonObject:
    num_classes, epochs = keys.whole("num_classes", 80), keys.whole("max_epoch")
    keys.expect("out_channel", 3 * (5 + num_classes))
    keys.expect("backbone_input_shape", [32, 64, 128, 256, 512])
    keys.expect("backbone_shape", [64, 128, 256, 512, 1024])
    keys.expect("backbone_layers", [1, 2, 8, 8, 4])
    lr, schedule = _schedule(keys, epochs, least_t_max=epochs)  # as its program raises it
    size_px = keys.side_px("testing_shape", keys.side_px("test_img_shape", 416))
    distort = {"hue": keys.number("hue", 0.1), "saturation": keys.number("saturation", 1.5)}
    zoos = {"size_px": size_px, "mode": "stretch", "interpolation": "by_scale"}
    transform = presets.transform([{"resize": zoos}], presets.IMAGENET_MEAN, presets.IMAGENET_STD)
    transform["train"] = [
        {"random_place": {"size_px": size_px, "jitter": keys.number("jitter", 0.3)}},
        {"flip_lr": {"prob": 0.5}},
        {"hsv_distort": {**distort, "exposure": keys.number("value", 1.5)}},
    ]
    transform |= _multi_scale(keys)
    postprocess: JsonObject = {"box_rule": "mindspore", "max_detections": None}
    postprocess["score_threshold"] = keys.number("eval_ignore_threshold", 0.001)
    postprocess["iou_threshold"] = keys.number("nms_thresh", 0.5)
    model = {"name": "yolov3", "num_classes": num_classes, **mindspore.ZOO["yolov3"], **_anchors(keys)}
    smoothing = keys.number("label_smooth_factor", 0.1)  # over the other classes, as detection's is here too
    loss = {
        "label_smoothing": smoothing if keys.flag("label_smooth", False) else 0.0,
        "ignore_threshold": keys.number("ignore_threshold", 0.7),
    }
    keys.notes.append(
        "without its program's faults: box centres are not rounded down, "
        "and boxes of all scales count for what is ignored"
    )
    if lr >= 0.1:
        keys.notes.append(
            f"base rate {lr:g} is for the zoo's GPU program, which divides gradients by 1024 "
            "without having scaled the loss; "
            "0.001 is its rate elsewhere"
        )
    parts = {"transform": transform, "model": model, "loss": loss, "optim": _optim(keys, lr)}
    train = _train(keys, epochs, keys.whole("per_batch_size"))
    keys.why["batch_size"] = EXPORT_BATCH
    return _recipe("detect", "coco", {**parts, "schedule": schedule, "train": train, "postprocess": postprocess})


def _multi_scale(keys: Keys) -> JsonObject:
    """Return the sizes that batches take: one where training_shape says so, else the square ones of multi_scale."""
    every = keys.whole("resize_rate", 1)
    listed = keys.pairs("multi_scale", [])
    fixed = keys.side_px("training_shape", 0) if "training_shape" in keys else 0
    if any(height != width for height, width in listed):
        raise keys.error("multi_scale", "must be square sizes")
    sides = [fixed] if fixed else [height for height, _ in listed]
    return {"multi_scale_px": sides, "multi_scale_every_steps": every} if sides else {}


def _anchors(keys: Keys) -> JsonObject:
    """Return the anchors where they are not COCO's; the zoo lists nine of (width, height), the smallest first."""
    listed = keys.pairs("anchor_scales", ANCHORS)
    if len(listed) != 9:
        raise keys.error("anchor_scales", f"must be nine pairs, not {len(listed)}")
    return {} if listed == ANCHORS else {"anchors_px": [listed[i : i + 3] for i in (0, 3, 6)]}
