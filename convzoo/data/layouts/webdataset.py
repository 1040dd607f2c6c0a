"""webdataset's layout of a shard: members KEY.jpg with KEY.cls, KEY.txt or KEY.json, read into pictures and labels.

KEY is a member's name up to the first dot; the picture may be a png, webp or bmp as well. KEY.cls and KEY.txt hold a
class's number or name, KEY.json {"label": number or name} or, for detection, {"boxes": [[x1, y1, x2, y2] in pixels,
...], "labels": [...]} with "crowd" and "areas" where they are known. Other members are left alone, and so is KEY.txt,
often a caption, beside another label.
"""

import json
import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from convzoo.data.datasets.boxed import box_areas
from convzoo.data.decode import EXTENSIONS
from convzoo.errors import DataError
from convzoo.logs import log
from convzoo.plain import JsonObject, JsonValue
from convzoo.storage.shards import Member, Shard

PICTURES = tuple(extension[1:] for extension in EXTENSIONS)
LABELS = ("cls", "json", "txt")
MAX_LABEL_BYTES = 1 << 24  # of a picture's boxes; a class takes less
KIND = "rows-1"  # of what the cache keeps of a shard; changes with Row
Label = int | str | dict[str, list]


class Row(NamedTuple):
    """A picture of a shard: its member's name, first byte and size, and its label; what the cache keeps."""

    name: str
    start: int
    size: int
    label: Label


def rows_of(shard: Shard) -> list[Row]:
    """Read a shard through, and return its pictures with their labels. Raises DataError."""
    log.info(f"indexing {shard.shown}: {shard.size / 1e6:,.1f} MB")
    pictures: dict[str, Member] = {}
    labels: dict[str, dict[str, Label]] = defaultdict(dict)
    for member, read in shard.members():
        folder, slash, base = member.name.rpartition("/")
        key, _, suffix = base.partition(".")
        key, suffix, shown = folder + slash + key, suffix.lower(), f"{shard.shown}/{member.name}"
        if suffix in PICTURES:
            if key in pictures:
                raise DataError(f"{shown}: a second picture, beside {pictures[key].name}")
            pictures[key] = member
        elif suffix in LABELS:
            if member.size > MAX_LABEL_BYTES:
                raise DataError(f"{shown}: {member.size:,} bytes, too many for a label")
            label = _label(read(), suffix, shown)
            if label is not None:
                labels[key][suffix] = label
    for key, others in labels.items():
        if key not in pictures and "txt" not in others:
            raise DataError(f"{shard.shown}/{key}.{next(iter(others))}: a label without a picture")
    return [Row(*member, _only(labels[key], f"{shard.shown}/{member.name}")) for key, member in pictures.items()]


def _only(labels: dict[str, Label], shown: str) -> Label:
    """Return the one label of a picture. Raises DataError."""
    said = {suffix: label for suffix, label in labels.items() if suffix != "txt"} or labels
    if not said:
        raise DataError(f"{shown}: no label beside it, in .cls, .json or .txt")
    first, *others = said.values()
    if any(other != first for other in others):
        raise DataError(f"{shown}: two labels, in {' and '.join(f'.{suffix}' for suffix in said)}, which differ")
    return first


def _label(content: bytes, suffix: str, shown: str) -> Label | None:
    """Return what a label's file says; None of a .json that has no label. Raises DataError."""
    try:
        text = content.decode("utf-8-sig").strip()
        plain = json.loads(text) if suffix == "json" else text
    except ValueError:
        raise DataError(f"{shown}: not {'JSON' if suffix == 'json' else 'UTF-8 text'}") from None
    if suffix == "json":
        if isinstance(plain, dict) and "boxes" in plain:
            return _boxes(plain, shown)
        if not isinstance(plain, dict) or "label" not in plain:
            return None
        plain = plain["label"]
    return _class(plain, shown)


def _class(value: JsonValue, shown: str) -> int | str:
    """Return a class's number or name; digits are a number. Raises DataError."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value) if len(value) < 8 else -1
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10_000_000:
        return value
    if isinstance(value, str) and value and len(value.splitlines()) == 1:
        return value
    raise DataError(f"{shown}: no class's number or name: {str(value)[:40]!r}")


def _boxes(plain: JsonObject, shown: str) -> dict[str, list]:
    boxes, labels = plain["boxes"], plain.get("labels")
    if not isinstance(boxes, list) or not isinstance(labels, list) or len(boxes) != len(labels):
        raise DataError(f"{shown}: boxes and labels must be two lists of one length")
    for box in boxes:
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
            raise DataError(f"{shown}: a box is four finite numbers, not {str(box)[:60]}")
    crowd, areas = plain.get("crowd", [False] * len(boxes)), plain.get("areas")
    if areas is None:
        areas = box_areas(np.array(boxes, np.float64).reshape(-1, 4)).tolist()
    for values in (crowd, areas):
        if not isinstance(values, list) or len(values) != len(boxes) or not all(map(_is_number, values)):
            raise DataError(f"{shown}: crowd and areas, where there are some, are one number a box")
    return {"boxes": boxes, "labels": [_class(name, shown) for name in labels], "crowd": crowd, "areas": areas}


def _is_number(value: JsonValue) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
