"""The keys of a MindSpore zoo configuration, each taken at most once, and what answers here to those not taken."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import yaml

from convzoo.convert import mindspore_config
from convzoo.errors import ConvzooError, UsageError
from convzoo.plain import JsonObject, JsonValue

MAX_BYTES = 1 << 20
CLOUD = "cloud: python -m convzoo.modelarts takes it"
EXPORT = "convzoo export MODEL --format F --out FILE --stage raw|decoded|nms"
DEVICE_RESULTS = "eval --raw-outputs DIR, whose index.json and --data have the labels"
DATA = "--data DIR"
WEIGHTS = "--weights FILE"
MODEL = "the MODEL argument of eval"
OUT = "--out DIR"
RANKS = "torchrun --nproc-per-node N -m convzoo train ..."
UNREAD = "the zoo's program does not read it"

# What is not in a recipe, and where it went: what is the machine's is a flag here, so these answers name flags.
ELSEWHERE = {
    CLOUD: "enable_modelarts data_url train_url checkpoint_url eval_url model_train_url data_path output_path "
    "load_path need_modelarts_dataset_unzip modelarts_dataset_unzip_name",
    "--device auto|cpu|cuda|npu": "device_target device_id",
    RANKS: "is_distributed rank device_num bind_cpu",
    DATA: "data_dir train_data_dir train_path split_path annFile",
    f"train --val-data DIR, eval {DATA}": "val_data_dir val_data_path eval_data_dir eval_path",
    WEIGHTS: "pre_trained train_pretrained pretrained_backbone resume_yolov3",
    f"{MODEL}, or {WEIGHTS} in training": "checkpoint_path",
    MODEL: "ckpt_file ckpt_files pretrained",
    f"{MODEL}, which may be a folder": "graph_ckpt",
    OUT: "ckpt_path ckpt_save_dir save_ckpt_path save_file log_path",
    "counted in steps: --save-every-steps N; 0 or less is every epoch's end, as here": "ckpt_interval",
    "always so: rank 0 writes": "is_save_on_master",
    "--log-every-steps N; metrics.jsonl has every step": "log_interval",
    "--profile": "need_profiler enable_profiling",
    "the whole set is shuffled": "buffer_size",
    EXPORT: "file_name file_format onnx_filename air_filename keep_detect",
    DEVICE_RESULTS: "result_dir result_path label_dir label_file img_path",
    "train --weights darknet53.conv.74 reads the original": "input_file output_file",
    "all boxes of a picture are learned": "max_box",
}
WHY = {key: why for why, keys in ELSEWHERE.items() for key in keys.split()}


KEY = re.compile(rb"^[ ]*['\"]?[A-Za-z_]\w*['\"]?[ ]*:", re.MULTILINE)


def is_text(path: Path) -> bool:
    """Tell from the first bytes whether a file is text with `key: value` lines, or Python, rather than weights."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(4096)
    printable = all(byte >= 32 or byte in b"\t\r\n" for byte in head)
    return printable and bool(path.suffix == ".py" or KEY.search(head)) and not head.lstrip().startswith((b"<", b"{"))


T = TypeVar("T")


class Keys:
    """One configuration's values, taken by type.

    Attributes:
        path: for messages.
        why: key -> why this configuration's program does not read it; goes before the general answers.
        notes: what the recipe does otherwise than the configuration's program, a line each.
    """

    def __init__(self, path: Path):
        self.path = path
        self.why: dict[str, str] = {}
        self.notes: list[str] = []
        self._values, self._lines = _read(path)
        self._taken: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def error(self, key: str, message: str) -> UsageError:
        """Return the error that names the key's place."""
        return UsageError(f"{self.path}:{self._lines.get(key, 1)}: {key}: {message}")

    def number(self, key: str, default: float | None = None) -> float:
        """Take a number; `5e-4`, which YAML reads as text, is one too. Raises UsageError."""
        value = self._take(key, default)
        try:
            if isinstance(value, bool):
                raise ValueError
            number = float(value)
        except (TypeError, ValueError):
            raise self.error(key, f"must be a number, not {value!r}") from None
        if not math.isfinite(number):
            raise self.error(key, f"must be finite, not {value!r}")
        return number

    def whole(self, key: str, default: int | None = None) -> int:
        """Take a whole number. Raises UsageError."""
        number = self.number(key, default)
        if number != int(number):
            raise self.error(key, f"must be a whole number, not {number}")
        return int(number)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Take True or False, which the zoo also writes as 1 and 0. Raises UsageError."""
        value = self._take(key, default)
        if value not in (True, False):
            raise self.error(key, f"must be True or False, not {value!r}")
        return bool(value)

    def choice(self, key: str, choices: Mapping[str, T], default: str | None = None) -> T:
        """Take one of several words and return what it stands for. Raises UsageError."""
        value = self._take(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.error(key, f"one of {', '.join(choices)}, not {value!r}")
        return choices[value]

    def whole_numbers(self, key: str, default: list[int]) -> list[int]:
        """Take a list of whole numbers, as a list or as `'30,60,90'`. Raises UsageError."""
        value = self._take(key, default)
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        try:
            return [int(part) for part in parts if str(part).strip()]
        except (TypeError, ValueError):
            raise self.error(key, f"must be whole numbers, not {value!r}") from None

    def pairs(self, key: str, default: list[list[int]]) -> list[list[int]]:
        """Take a list of pairs of positive whole numbers. Raises UsageError."""
        value = self._take(key, default)
        is_list = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
        if not is_list or any(type(side) is not int or side < 1 for pair in value for side in pair):
            raise self.error(key, f"must be pairs of positive whole numbers, not {value!r}")
        return value

    def side_px(self, key: str, default: int) -> int:
        """Take a square size: `[224, 224]`, `'224,224'` or `224`. Raises UsageError."""
        sides = self.whole_numbers(key, [default])
        if len(set(sides)) > 1 or any(side < 1 for side in sides):
            raise self.error(key, f"must be square, not {sides}")
        return sides[0] if sides else default

    def expect(self, key: str, *values: object) -> None:
        """Take a key that has one meaning here only. Raises UsageError for another value."""
        if key in self and self._take(key, None) not in values:
            raise self.error(key, f"only {' or '.join(map(repr, values))} is here, not {self._values[key]!r}")

    def dropped(self) -> dict[str, str]:
        """Return every key that was not taken, with what answers to it here, or why nothing does."""
        left = [key for key in self._values if key not in self._taken]
        return {key: self.why.get(key) or WHY.get(key) or "nothing here answers to it" for key in left}

    def _take(self, key: str, default: JsonValue) -> JsonValue:
        if key not in self._values and default is None:
            raise UsageError(f"{self.path}: no key {key}, which this network's configuration needs")
        self._taken.add(key)
        return self._values.get(key, default)


def _read(path: Path) -> tuple[JsonObject, dict[str, int]]:
    """Return the values and the lines of the first document; the zoo's second and third are help texts and choices."""
    if path.stat().st_size > MAX_BYTES:
        raise ConvzooError(f"{path}: {path.stat().st_size} bytes, more than a configuration has")
    try:
        text = path.read_text(encoding="utf-8-sig")
        python = mindspore_config.read(text, path) if path.suffix == ".py" else None
        if python is not None:
            return {key: value for key, (value, _) in python.items()}, {key: line for key, (_, line) in python.items()}
        node = next(iter(yaml.compose_all(text, Loader=yaml.SafeLoader)), None)
        values = next(iter(yaml.safe_load_all(text)), None)
    except UnicodeDecodeError:
        raise ConvzooError(f"{path}: not UTF-8 text") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join(str(getattr(error, "problem", None) or type(error).__name__).split())
        raise ConvzooError(f"{path}:{mark.line + 1 if mark else 1}: not YAML: {problem}") from None
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise ConvzooError(f"{path}: not a configuration of the MindSpore zoo: no keys with values")
    lines: dict[str, int] = {}
    for key_node, _ in node.value:
        key = str(key_node.value)
        if key in lines:
            raise UsageError(f"{path}:{key_node.start_mark.line + 1}: {key}: duplicate key")
        lines[key] = key_node.start_mark.line + 1
    return {str(key): value for key, value in values.items()}, lines
