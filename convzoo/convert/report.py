"""What a conversion says of itself: what it consumed, what it attached, what it compared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from convzoo.convert.sources import WeightSource
from convzoo.convert.state_dict import ConvertedWeights, meta_network, model_label
from convzoo.convert.verify import Check
from convzoo.model_file import ModelInfo
from convzoo.plain import JsonObject, JsonValue
from convzoo.types import Head


@dataclass
class ConversionReport:
    """What a conversion did, for people and for machines.

    Attributes:
        lines: (heading, text), in order: what fits on a screen.
        tensors: a line for each tensor.
        plain: the same as plain values.
        has_class_names: whether the source or the caller named the classes; else they are numbers.
    """

    lines: list[tuple[str, str]] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)
    plain: JsonObject = field(default_factory=dict)
    has_class_names: bool = True

    def text(self, verbose: bool = False) -> str:
        """Return the lines, and after them every tensor where that is asked for."""
        lines = [f"{heading:14} {text}".rstrip() for heading, text in self.lines]
        return "\n".join(lines + (self.tensors if verbose else []))

    def add(self, heading: str, text: str, **plain: JsonValue) -> None:
        self.lines.append((heading, text))
        self.plain.update(plain)


def report_weights(opened: WeightSource, info: ModelInfo, report: ConversionReport) -> None:
    """Add what was consumed, tensor by tensor, and what was attached."""
    converted = opened.converted
    report.add("source", f"{opened.name}: {converted.source}", source=opened.name, format=converted.source)
    report.add("network", f"{model_label(converted.model)}, to {converted.task}", model=converted.model)
    header = {key: value for key, value in converted.header.items() if not key.startswith("bytes_")}
    report.add("header", ", ".join(f"{key} {value}" for key, value in header.items()) or "-", header=converted.header)
    if "bytes_used" in converted.header:
        used, left = converted.header["bytes_used"], converted.header["bytes_left"]
        report.add("bytes", f"{used:,} used, {left:,} left")
    report.add("SHA-256", opened.sha256, source_sha256=opened.sha256)
    report.add("licence", opened.licence or "not known", licence=opened.licence)
    _report_tensors(converted, report)
    _report_meaning(converted, info, report)
    for note in converted.notes:
        report.add("note", note)
    report.plain["notes"] = converted.notes
    report.has_class_names = converted.class_names is not None


def _report_tensors(converted: ConvertedWeights, report: ConversionReport) -> None:
    count = sum(parameter.numel() for parameter in meta_network(converted.model).parameters())
    values = sum(math.prod(row.shape) for row in converted.table)
    report.add("tensors", f"{len(converted.table)}, {values:,} values, {count:,} of them parameters")
    width, ours = (max((len(row[i]) for row in converted.table), default=0) for i in (0, 1))
    for row in converted.table:
        shape = "x".join(map(str, row.shape)) or "scalar"
        report.tensors.append(f"{row.source:{width}}  {row.name:{ours}}  {shape:>16}  {row.dtype}")
    report.plain["tensors"] = [{**row._asdict(), "shape": list(row.shape)} for row in converted.table]
    if converted.dropped:
        some = ", ".join(converted.dropped[:4]) + (" ..." if len(converted.dropped) > 4 else "")
        report.add("left out", f"{len(converted.dropped)} that are not weights: {some}")
    report.plain["dropped"] = converted.dropped


def _report_meaning(converted: ConvertedWeights, info: ModelInfo, report: ConversionReport) -> None:
    """Add what the file does not hold, and the numbers mean nothing without: preprocessing, anchors, class names."""
    report.add("preprocessing", preprocessing_words(info.preprocessing), preprocessing=info.preprocessing)
    if converted.task == "detect":
        report.add("anchors", "; ".join(_anchors(converted.model)))
    names = info.class_names
    shown = ", ".join(names[:3]) + f", ... {names[-1]}" if len(names) > 4 else ", ".join(names)
    report.add("class names", f"{len(names)}: {shown}", class_names=names)


def _anchors(model: JsonObject) -> list[str]:
    """Return a text for each head of a detector, in the order of its outputs."""
    heads: Sequence[Head] = meta_network(model).heads  # pyright: ignore[reportAssignmentType]
    return [
        f"{' '.join(f'{width:g}x{height:g}' for width, height in head.anchors_px)} px at stride {head.stride}"
        for head in heads
    ]


def preprocessing_words(transform: JsonObject) -> str:
    """Say in words what a `transform` section does for evaluation."""
    steps = [_step_words(name, keys) for operation in transform["eval"] for name, keys in operation.items()]
    mean, std = (" ".join(f"{value:g}" for value in transform[key]) for key in ("mean", "std"))
    scaled = "values 0..1" if (mean, std) == ("0 0 0", "1 1 1") else f"values 0..1, minus {mean}, divided by {std}"
    return ", ".join([*(steps or ["pictures in the size that they have"]), f"RGB {scaled}"])


def _step_words(name: str, keys: JsonObject) -> str:
    side = keys.get("size_px")
    square = f"{side}x{side}" if isinstance(side, int) else "x".join(map(str, side or ()))
    if name == "resize":
        size = f"stretched to {square}" if keys.get("mode") == "stretch" else f"short side {side}"
        how = str(keys.get("interpolation", "bilinear")).replace("by_scale", "the zoo's choice of interpolation")
        return f"{size} ({how}{'' if keys.get('antialias', True) else ', not antialiased'})"
    if name == "letterbox":
        return f"letterboxed on grey to {square or '416x416'}"
    if name == "center_crop":
        return f"centre crop {square}"
    return " ".join([name, *(f"{key}={value}" for key, value in keys.items())])


def report_checks(done: list[Check], report: ConversionReport) -> None:
    """Add what was compared."""
    for check in done:
        exact = check.difference in (None, 0.0)
        report.add(
            "check", check.what if exact else f"{check.what}: largest relative difference {check.difference:.1e}"
        )
    report.plain["check"] = [check._asdict() for check in done]
