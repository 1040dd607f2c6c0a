"""A recipe for somebody's own pictures: what the data, the machine and the time allow, each choice with its reason."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from convzoo import distributed
from convzoo.config import recipe as recipes
from convzoo.config.recipe import Recipe
from convzoo.config.yaml_places import parse
from convzoo.data.checks.anchors import find_anchors, letterboxed_sizes, mean_best_iou
from convzoo.data.checks.boxes import gather
from convzoo.data.datasets.boxed import BoxedImages, picture_size
from convzoo.data.datasets.own import own
from convzoo.data.layouts.labels import Reading
from convzoo.data.layouts.recognise import read_labels
from convzoo.errors import DataError, UsageError
from convzoo.logs import log
from convzoo.models.yolov3_tiny import ANCHORS_PX
from convzoo.plain import JsonObject, JsonValue
from convzoo.training.measure import seconds_per_picture
from convzoo.training.setup import RunOptions
from convzoo.types import Dataset

EPOCHS_ENOUGH, MOST_EPOCHS = 40, 300  # from scratch; with fewer a smaller input learns more in the same time
TRIED_BATCH = 4  # on which sizes are compared
STEPS_AN_EPOCH = 8  # at least so many: fewer would leave too few updates
UNEVEN = 3  # times the pictures of the smallest class, from where on classes are weighed
RESERVED = 0.2  # of the time, for evaluations, checkpoints and the start
LOOKED_AT = 500  # pictures whose sizes are read
MOST_BATCH = {"classify": 64, "detect": 16}
LR_PER_PICTURE = {"classify": 0.05 / 32, "detect": 0.01 / 8}  # as tinydarknet-own, and as yolov3-bccd on a CPU
LARGEST_LR = {"classify": 0.1, "detect": 0.02}
SIDES_PX = {"classify": (224, 160, 128, 96, 64, 32), "detect": (416, 320, 256, 192, 160, 128, 96, 64)}
Measure = Callable[[Recipe], float | None]  # the seconds of a picture, None where a batch does not fit
WIDTHS = {"classify": (1.0,), "detect": (1.0, 0.5)}


@dataclass(frozen=True)
class OwnRecipe:
    """A recipe in the making.

    Attributes:
        data: its section of that name.
        width: of the detector's network, a share.
        reasons: of the choices, a line each, by the section of the recipe.
    """

    task: str
    data: JsonObject
    class_names: list[str]
    size_px: int
    width: float = 1.0
    batch_size: int = TRIED_BATCH
    epochs: int = MOST_EPOCHS
    anchors_px: list | None = None
    class_weights: str | None = None
    reasons: dict[str, list[str]] = field(default_factory=dict)

    @property
    def lr(self) -> float:
        return float(f"{min(LARGEST_LR[self.task], LR_PER_PICTURE[self.task] * self.batch_size):.3g}")

    def because(self, section: str, reason: str, **choices: JsonValue) -> "OwnRecipe":
        """Return a copy with choices and their reason."""
        reasons = {**self.reasons, section: [*self.reasons.get(section, []), reason]}
        return dataclasses.replace(self, reasons=reasons, **choices)

    def recipe(self) -> Recipe:
        """Return it as what is trained with."""
        places: dict[tuple, str] = {}
        return recipes.from_plain(parse(self.text(), "recipe", places), "own", places)

    def text(self) -> str:
        """Return it as YAML, the reasons above each section."""
        lines = []
        for section, value in self._sections().items():
            lines += [f"# {reason}" for reason in self.reasons.get(section, [])]
            if section == "transform":
                lines.append("transform:")
                lines += [line for key, part in value.items() for line in _transform_lines(key, part)]
            else:
                lines.append(f"{section}: {_flow(value)}")
        return "\n".join(lines) + "\n"

    def _sections(self) -> JsonObject:
        boxes = self.task == "detect"
        transform = _boxed_transform(self.size_px) if boxes else _whole_transform(self.size_px)
        model = {"name": "yolov3_tiny" if boxes else "tinydarknet", "num_classes": len(self.class_names)}
        model |= {"width": self.width} if self.width != 1 else {}
        model |= {"anchors_px": self.anchors_px} if self.anchors_px else {}
        train = {"epochs": self.epochs, "batch_size": self.batch_size, "eval_every_epochs": max(1, self.epochs // 10)}
        return {
            "task": self.task,
            "seed": 0,
            "data": self.data,
            "transform": transform,
            "model": model,
            "loss": {"class_weights": self.class_weights} if self.class_weights else {},
            "optim": {"name": "sgd", "lr": self.lr, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0005},
            "schedule": {"name": "cosine_annealing", "warmup_epochs": round(min(3.0, self.epochs / 10), 2)},
            "train": {**train, **({"ema_decay": 0.99, "clip_grad_norm": 20.0} if boxes else {})},
            "postprocess": {"max_detections": 200} if boxes else {},
        }


def _boxed_transform(size_px: int) -> JsonObject:
    place = {"size_px": size_px, "jitter": 0.2, "scale": [0.8, 1.5], "min_visible": 0.3}
    colours = {"hue": 0.02, "saturation": 1.3, "exposure": 1.3}
    return {
        "train": [{"random_place": place}, {"flip_lr": {"prob": 0.5}}, {"hsv_distort": colours}],
        "eval": [{"letterbox": {"size_px": size_px}}],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    }


def _whole_transform(size_px: int) -> JsonObject:
    crop, colours = {"size_px": size_px, "scale": [0.5, 1.0]}, {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
    return {
        "train": [{"random_resized_crop": crop}, {"flip_lr": {"prob": 0.5}}, {"color_jitter": colours}],
        "eval": [{"resize": {"size_px": size_px, "mode": "short_side"}}, {"center_crop": {"size_px": size_px}}],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }


def _transform_lines(key: str, value: JsonValue) -> list[str]:
    if key != "train":
        return [f"  {key}: {_flow(value)}"]
    return ["  train:", *(f"    - {_flow(operation)[1:-1]}" for operation in value)]


def _flow(value: JsonValue) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def make_recipe(
    folder: Path, keys: JsonObject, minutes: float, device: str = "auto", workers: int | None = None
) -> tuple[str, OwnRecipe]:
    """Return a recipe as YAML and as what was chosen; a few training steps are run, so that their time is known.

    Args:
        keys: of the data set `own`.
        minutes: what training and its evaluations may take on this machine.
    Raises:
        UsageError: no such folder, or no time for one epoch.
        DataError: as the data set's builder; no memory for one picture.
    """
    where = distributed.resolve_device(device)
    if where.type == "cpu":
        log.info("no accelerator is used: the time is that of this machine's processor")
    train_set = own(folder, "train", **keys)
    measure = functools.partial(seconds_per_picture, options=RunOptions(data=folder, device=device, workers=workers))
    reading = Reading(keys.get("class_names"), keys.get("rename", {}), keys.get("one_based", True))
    layout = read_labels(folder, keys.get("layout"), reading).layout
    made = _described(train_set, {"name": "own", "layout": layout, **keys})
    made = _sized(made, len(train_set), measure, minutes * 60 * (1 - RESERVED))
    if isinstance(train_set, BoxedImages):
        made = _anchored(made, train_set)
    made, seconds = _batched(made, len(train_set), measure)
    made = _timed(made, len(train_set), seconds, minutes)
    rate = f"lr: {LR_PER_PICTURE[made.task]:.3g} for each picture of a batch, at most {LARGEST_LR[made.task]:g}"
    made = made.because("optim", rate)
    purpose = f"{folder.resolve().name}, {minutes:g} minutes on {where}"
    head = f"# For {purpose}, by `convzoo data recipe`; all of it may be changed."
    return f"{head}\n{made.text()}", made


def _described(train_set: Dataset, data: JsonObject) -> OwnRecipe:
    """Choose the task, the classes, the largest input that the pictures fill, and weights for uneven classes."""
    boxed, names = isinstance(train_set, BoxedImages), train_set.class_names
    task = "detect" if boxed else "classify"
    chosen = np.unique(np.linspace(0, len(train_set) - 1, min(LOOKED_AT, len(train_set))).round().astype(int))
    sides = np.array([picture_size(train_set.path(int(i))) for i in chosen])
    side = float(np.median(sides.max(1) if boxed else sides.min(1)))
    allowed = SIDES_PX[task]
    size_px = next((size for size in allowed if size <= side), allowed[-1])
    made = OwnRecipe(task, data, names, size_px)
    made = made.because("task", "boxes are labelled: a detector" if boxed else "pictures have one class: a classifier")
    made = made.because("data", f"{len(train_set):,} pictures to train on")
    what = "longer" if boxed else "shorter"
    made = made.because(
        "transform", f"size_px: up to {size_px}, for half of the pictures' {what} sides are at most {side:.0f}"
    )
    made = made.because("model", f"num_classes: {', '.join(names[:6])}{' ...' * (len(names) > 6)}")
    counts = np.bincount(train_set.labels, minlength=len(names))
    if boxed or counts.min() * UNEVEN > counts.max():
        return made
    least, most = names[int(counts.argmin())], names[int(counts.argmax())]
    reason = f"class_weights: {counts.max():,} pictures of {most}, {counts.min():,} of {least}; each class counts alike"
    return made.because("loss", reason, class_weights="balanced")


def _sized(made: OwnRecipe, pictures: int, measure: Measure, seconds: float) -> OwnRecipe:
    """Choose the largest input, and of a detector the widest network, with which enough epochs fit into the time."""
    rungs = [(size, width) for size in SIDES_PX[made.task] if size <= made.size_px for width in WIDTHS[made.task]]
    fit = 0.0
    for size_px, width in rungs:
        tried = dataclasses.replace(made, size_px=size_px, width=width)
        per_picture = measure(tried.recipe())
        if per_picture is None:
            continue
        fit = seconds / (per_picture * pictures)
        log.info(f"{size_px} px, width {width:g}: {1000 * per_picture:.0f} ms a picture, {fit:.1f} epochs fit")
        if fit >= EPOCHS_ENOUGH or (size_px, width) == rungs[-1]:
            break
    else:
        raise DataError(f"not {TRIED_BATCH} pictures of {rungs[-1][0]} pixels fit into the memory")
    if fit < 1:
        needed = seconds / fit / (1 - RESERVED) / 60
        raise UsageError(
            f"no epoch fits into the time: one takes {needed:.2g} minutes at the smallest input", ("minutes",)
        )
    largest = (size_px, width) == rungs[0]
    reason = f"size_px: {size_px}, " + (
        "the largest" if largest else f"the first size at which {EPOCHS_ENOUGH} epochs fit"
    )
    made = made.because("transform", reason, size_px=size_px, width=width)
    return made if width == 1 else made.because("model", f"width: {width:g}, for the time's sake")


def _anchored(made: OwnRecipe, train_set: BoxedImages) -> OwnRecipe:
    """Choose the anchors by the training boxes at the size that was chosen."""
    sizes = letterboxed_sizes(gather(train_set), (made.size_px, made.size_px))
    known = np.reshape(ANCHORS_PX, (-1, 2))
    count = len(known)
    if len(np.unique(sizes, axis=0)) < count:
        return made.because("model", f"anchors_px: COCO's, for there are fewer than {count} different sizes of boxes")
    anchors = find_anchors(sizes, count)
    better = f"{100 * anchors.mean_iou:.0f} % mean IoU with the training boxes; COCO's have"
    reason = f"anchors_px: {better} {100 * mean_best_iou(sizes, known):.0f} %"
    return made.because("model", reason, anchors_px=anchors.rows([len(row) for row in ANCHORS_PX]))


def _batched(made: OwnRecipe, pictures: int, measure: Measure) -> tuple[OwnRecipe, float]:
    """Double the batch while it fits; return the seconds that a picture takes with it too."""
    most = MOST_BATCH[made.task]
    seconds, batch_size, reason = None, 1, f"batch_size: at most {most}"
    while batch_size <= most:
        measured = measure(dataclasses.replace(made, batch_size=batch_size).recipe())
        if measured is None:
            reason = f"batch_size: {batch_size} do not fit into the memory"
            break
        made, seconds = dataclasses.replace(made, batch_size=batch_size), measured
        if 2 * batch_size * STEPS_AN_EPOCH > pictures:
            reason = f"batch_size: so that an epoch has {STEPS_AN_EPOCH} steps or more"
            break
        batch_size *= 2 if batch_size >= TRIED_BATCH else TRIED_BATCH
    if seconds is None:
        raise DataError("not one picture fits into the memory")
    return made.because("train", reason), seconds


def _timed(made: OwnRecipe, pictures: int, seconds: float, minutes: float) -> OwnRecipe:
    """Choose the epochs that fit into the time. Raises UsageError where none does."""
    epochs = int(minutes * 60 * (1 - RESERVED) / (seconds * pictures))
    if epochs < 1:
        needed = seconds * pictures / (1 - RESERVED) / 60
        raise UsageError(f"no epoch fits into {minutes:g} minutes: one takes {needed:.2g}", ("minutes",))
    per_epoch = f"{1000 * seconds:.3g} ms a picture, measured, so {seconds * pictures:.3g} s an epoch"
    limit = f"; more than {MOST_EPOCHS} are not planned" if epochs > MOST_EPOCHS else ""
    reason = f"epochs: {per_epoch}; {100 * RESERVED:.0f} % of the time is for evaluation{limit}"
    return made.because("train", reason, epochs=min(MOST_EPOCHS, epochs))
