"""Darknet's `.cfg` files: the text of a network read into sections with typed options, and nothing passed over.

A file is `[section]` lines with `key=value` lines below them; `[net]` comes first, every other section is a layer and
counts from 0. Keys that matter in training alone are kept aside; any other key that a section does not know is refused
with its line, unless it says what is so anyway: an option passed over would be a wrong result.
Facts: github.com/pjreddie/darknet, src/parser.c and src/option_list.c; github.com/hank-ai/darknet.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from convzoo.config.registry import nearest
from convzoo.errors import UsageError
from convzoo.plain import JsonValue

MAX_CHARACTERS, MAX_SECTIONS = 2_000_000, 5_000
MAX_SIDE_PX, MAX_CHANNELS, MAX_WINDOW = 16_384, 100_000, 1_024
ACTIVATIONS = ("linear", "leaky", "relu", "relu6", "logistic", "swish", "mish", "ramp")
SHORT_NAMES = {
    "network": "net",
    "conv": "convolutional",
    "max": "maxpool",
    "avg": "avgpool",
    "conn": "connected",
    "soft": "softmax",
}


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise ValueError(f"a whole number in {low}..{high}")
        return int(text)

    return parse


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text) if re.fullmatch(r"[0-9.eE+-]{1,40}", text) and _is_float(text) else math.nan
        if not low <= value <= high:
            raise ValueError(f"a number in {low:g}..{high:g}")
        return value

    return parse


def _choice(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return text

    return parse


def _list(item: Callable[[str], object]) -> Callable[[str], tuple]:
    def parse(text: str) -> tuple:
        try:
            return tuple(item(part) for part in text.removesuffix(",").split(","))
        except ValueError as error:
            raise ValueError(f"a list with commas between, each {error}") from None

    return parse


def _pairs(text: str) -> tuple[tuple[float, float], ...]:
    values = _list(_number(1e-6, 1e6))(text)
    if len(values) % 2:
        raise ValueError("pairs of width and height")
    return tuple(zip(values[::2], values[1::2], strict=True))


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def _is_float(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


OptionValue = Any  # Any: a number, a word or a tuple of them, by the option; the layers of its kind know which


class Option(NamedTuple):
    """How a value is read, and what holds where the key is missing: None is derived by the layer, ... is refused."""

    parse: Callable[[str], OptionValue]
    default: OptionValue = ...


_LAYER = _whole(-MAX_SECTIONS, MAX_SECTIONS)
_CLASSES = Option(_whole(1, MAX_CHANNELS), 20)
_FROM = {"from": Option(_LAYER), "activation": Option(_choice(*ACTIVATIONS), "linear")}
OPTIONS: dict[str, dict[str, Option]] = {
    "net": {
        "width": Option(_whole(1, MAX_SIDE_PX)),
        "height": Option(_whole(1, MAX_SIDE_PX)),
        "channels": Option(_whole(3, 3)),
        "letter_box": Option(_flag, False),
    },
    "convolutional": {
        "filters": Option(_whole(1, MAX_CHANNELS), 1),
        "size": Option(_whole(1, MAX_WINDOW), 1),
        "stride": Option(_whole(1, MAX_WINDOW), 1),
        "pad": Option(_flag, False),
        "padding": Option(_whole(0, MAX_WINDOW), 0),
        "groups": Option(_whole(1, MAX_CHANNELS), 1),
        "batch_normalize": Option(_flag, False),
        "activation": Option(_choice(*ACTIVATIONS), "logistic"),
    },
    "connected": {
        "output": Option(_whole(1, MAX_CHANNELS), 1),
        "batch_normalize": Option(_flag, False),
        "activation": Option(_choice(*ACTIVATIONS), "logistic"),
    },
    "maxpool": {
        "stride": Option(_whole(1, MAX_WINDOW), 1),
        "size": Option(_whole(1, MAX_WINDOW), None),
        "padding": Option(_whole(0, MAX_WINDOW), None),
    },
    "avgpool": {},
    "dropout": {"probability": Option(_number(0, 1), 0.5)},
    "crop": {
        "crop_width": Option(_whole(1, MAX_SIDE_PX)),
        "crop_height": Option(_whole(1, MAX_SIDE_PX)),
        "noadjust": Option(_flag, False),
    },
    "route": {
        "layers": Option(_list(_LAYER)),
        "groups": Option(_whole(1, MAX_CHANNELS), 1),
        "group_id": Option(_whole(0, MAX_CHANNELS), 0),
    },
    "shortcut": _FROM,
    "scale_channels": _FROM,
    "sam": _FROM,
    "upsample": {"stride": Option(_whole(1, MAX_WINDOW), 2)},
    "reorg": {"stride": Option(_whole(1, MAX_WINDOW), 1)},
    "yolo": {
        "mask": Option(_list(_whole(0, 1000)), None),
        "anchors": Option(_pairs),
        "num": Option(_whole(1, 1000), 1),
        "classes": _CLASSES,
        "scale_x_y": Option(_number(0.01, 100), 1.0),
        "new_coords": Option(_flag, False),
        "nms_kind": Option(_choice("default", "cornersnms", "greedynms", "diounms"), "default"),
        "beta_nms": Option(_number(0.01, 100), 0.6),
    },
    "region": {
        "anchors": Option(_pairs),
        "num": Option(_whole(1, 1000), 1),
        "classes": _CLASSES,
        "softmax": Option(_whole(1, 1)),
    },
    "softmax": {},
    "cost": {},
}
_HEAD_TRAINING = """
    jitter ignore_thresh truth_thresh random resize max max_delta objectness_smooth iou_thresh iou_thresh_kind iou_loss
    iou_normalizer cls_normalizer obj_normalizer uc_normalizer delta_normalizer focal_loss label_smooth_eps
    counters_per_class beta1 bias_match rescore object_scale noobject_scale class_scale coord_scale absolute thresh log
    sqrt track_history_size sim_thresh dets_for_track dets_for_show track_ciou_norm
"""
# Keys that matter in training alone; every other key of [net] is one, and every key of [cost].
TRAINING = {
    "convolutional": {"stopbackward"},
    "yolo": set(_HEAD_TRAINING.split()),
    "region": set(_HEAD_TRAINING.split()),
    "crop": {"flip", "exposure", "saturation", "angle", "shift"},
    "route": {"onlyforward", "stream", "wait_stream"},
    "softmax": {"noloss"},
}
# What may be written though nothing here computes anything else.
NEUTRAL = {
    "convolutional": {
        "dilation": "1",
        **dict.fromkeys(("antialiasing", "binary", "xnor", "bin_output", "flipped", "dot"), "0"),
        **dict.fromkeys(("deform", "rotate", "stretch", "stretch_sway", "sway", "assisted_excitation"), "0"),
    },
    "maxpool": {"maxpool_depth": "0", "out_channels": "1", "antialiasing": "0"},
    "shortcut": {"weights_type": "none", "weights_normalization": "none", "alpha": "1", "beta": "1"},
    "scale_channels": {"scale_wh": "0"},
    "upsample": {"scale": "1"},
    "reorg": {"reverse": "0", "flatten": "0", "extra": "0"},
    "dropout": {"dropblock": "0", "dropblock_size_rel": "0", "dropblock_size_abs": "0"},
    "region": {"coords": "4", "groups": "1", "background": "0", "classfix": "0"},
    "softmax": {"groups": "1", "temperature": "1", "spatial": "0"},
}


@dataclass(frozen=True)
class Section:
    """One section of a file.

    Attributes:
        where: the file, for messages.
        number: the layer's, from 0; -1 of [net].
        name: in full, such as "convolutional".
        line: of its head, from 1.
        options: every option the network is built from, defaults written out.
        lines: of the keys that the file has.
        training: keys that matter in training alone, as text.
    """

    where: str
    number: int
    name: str
    line: int
    options: Mapping[str, JsonValue]
    lines: Mapping[str, int]
    training: Mapping[str, str]

    def error(self, message: str, key: str | None = None) -> UsageError:
        """Return an error that points at the section, or at one of its keys."""
        layer = "" if self.number < 0 else f"layer {self.number} "
        of_key = f" {_shown(key)}" if key else ""
        return UsageError(
            f"{self.where}:{self.lines.get(key or '', self.line)}: {layer}[{self.name}]{of_key}: {message}"
        )


def read_sections(text: str, where: str) -> list[Section]:
    """Read the text of a `.cfg`: [net] first, then the layers.

    Args:
        where: the file's name, for messages.
    Raises:
        UsageError: the text is no such file, or a section, key or value that is not known, with its line.
    """
    if len(text) > MAX_CHARACTERS:
        raise UsageError(f"{where}: {len(text)} characters; a network's description has at most {MAX_CHARACTERS}")
    sections: list[tuple[str, int, dict[str, tuple[str, int]]]] = []
    for line, raw in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        content = "".join(raw.split())  # Darknet takes spaces out wherever they stand
        if not content or content[0] in "#;":
            continue
        if content[0] == "[":
            sections.append((_section_name(content, f"{where}:{line}", is_first=not sections), line, {}))
            if len(sections) > MAX_SECTIONS:
                raise UsageError(f"{where}:{line}: more than {MAX_SECTIONS} sections")
            continue
        key, equals, value = content.partition("=")
        if not sections or not equals or not key:
            raise UsageError(f"{where}:{line}: {_shown(content)} is not key=value in a section: no Darknet network")
        # The first counts where a key stands twice.
        sections[-1][2].setdefault(key, (re.split("[#;]", value)[0], line))
    if len(sections) < 2:
        raise UsageError(f"{where}: no layers: a Darknet network is [net] and the sections of its layers")
    return [_typed(where, number, *section) for number, section in enumerate(sections, -1)]


def _section_name(content: str, place: str, is_first: bool) -> str:
    if not content.endswith("]"):
        raise UsageError(f"{place}: {_shown(content)}: a section's name ends with ]")
    name = SHORT_NAMES.get(content[1:-1], content[1:-1])
    if is_first != (name == "net"):
        raise UsageError(f"{place}: {_shown(content)}: a Darknet network begins with [net], once")
    if name not in OPTIONS:
        raise UsageError(f"{place}: {_shown(content)}: no section that is supported{_hint(name, OPTIONS)}")
    return name


def _typed(where: str, number: int, name: str, line: int, entries: dict[str, tuple[str, int]]) -> Section:
    """Read the values of one section. Raises UsageError for a key or value that it cannot have."""
    options, training, neutral = {}, {}, NEUTRAL.get(name, {})
    lines = {key: at for key, (_, at) in entries.items()}
    section = Section(where, number, name, line, options, lines, training)
    known = OPTIONS[name]
    for key, (value, _) in entries.items():
        if key in known:
            try:
                options[key] = known[key].parse(value)
            except ValueError as error:
                raise section.error(f"{_shown(value)} is not {error}", key) from None
        elif name in ("net", "cost") or key in TRAINING.get(name, ()):
            training[key] = value
        elif key not in neutral:
            raise section.error(f"unknown key, which may change the result{_hint(key, [*known, *neutral])}", key)
        elif value != neutral[key] and not (_is_float(value) and float(value) == _float(neutral[key])):
            raise section.error(f"{_shown(value)} is not supported, only {neutral[key]}", key)
    for key, option in known.items():
        if key not in options:
            if option.default is ...:
                raise section.error("is missing", key)
            options[key] = option.default
    return section


def _float(text: str) -> float:
    return float(text) if _is_float(text) else math.nan


def _hint(name: str, known: Iterable[str]) -> str:
    hint = nearest(name[:40], known)
    return hint if hint.startswith("; did") else ""


def _shown(text: str) -> str:
    """Return text of a file as it may stand in a message: short, on one line, quoted unless it is a plain word."""
    if re.fullmatch("[A-Za-z_][A-Za-z_0-9]{,39}", text):
        return text
    return ascii(text if len(text) <= 40 else f"{text[:37]}...")
