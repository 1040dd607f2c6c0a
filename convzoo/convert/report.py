"""What a conversion says of itself: what it consumed, what it attached, what it compared."""

import math
from dataclasses import dataclass, field
from typing import Any

from convzoo.convert.sources import WeightSource
from convzoo.convert.verify import Check
from convzoo.model_file import ModelInfo


@dataclass
class ConversionReport:
    """What a conversion did, for people and for machines.

    Attributes:
        lines: (heading, text), in order.
        plain: the same as plain values.
        has_class_names: whether the source or the caller named the classes; else they are numbers.
    """

    lines: list[tuple[str, str]] = field(default_factory=list)
    plain: dict[str, Any] = field(default_factory=dict)
    has_class_names: bool = True

    def text(self) -> str:
        return "\n".join(f"{heading:14} {text}".rstrip() for heading, text in self.lines)

    def add(self, heading: str, text: str, **plain: Any) -> None:
        self.lines.append((heading, text))
        self.plain.update(plain)


def report_weights(opened: WeightSource, info: ModelInfo, report: ConversionReport) -> None:
    """Add what was consumed, tensor by tensor, and what was attached."""
    converted, transform = opened.converted, info.preprocessing
    report.add("source", f"{opened.name}: {converted.source}", source=opened.name, format=converted.source)
    header = {key: value for key, value in converted.header.items() if not key.startswith("bytes_")}
    report.add("header", ", ".join(f"{key} {value}" for key, value in header.items()) or "-", header=converted.header)
    if "bytes_used" in converted.header:
        used, left = converted.header["bytes_used"], converted.header["bytes_left"]
        report.add("bytes", f"{used:,} used, {left:,} left")
    report.add("SHA-256", opened.sha256, source_sha256=opened.sha256)
    report.add("licence", opened.licence or "not known", licence=opened.licence)
    report.add("tensors", f"{len(converted.table)}, {sum(math.prod(row.shape) for row in converted.table):,} values")
    width, ours = (max((len(row[i]) for row in converted.table), default=0) for i in (0, 1))
    for row in converted.table:
        shape = "x".join(map(str, row.shape)) or "scalar"
        report.add("", f"{row.source:{width}}  {row.name:{ours}}  {shape:>16}  {row.dtype}")
    report.plain["tensors"] = [{**row._asdict(), "shape": list(row.shape)} for row in converted.table]
    if converted.dropped:
        some = ", ".join(converted.dropped[:4]) + (" ..." if len(converted.dropped) > 4 else "")
        report.add("left out", f"{len(converted.dropped)} that are not weights: {some}")
    report.plain["dropped"] = converted.dropped
    operations = "; ".join(
        f"{name} {' '.join(f'{key}={value}' for key, value in keys.items())}"
        for op in transform["eval"]
        for name, keys in op.items()
    )
    numbers = "; ".join(f"{key} {' '.join(f'{value:g}' for value in transform[key])}" for key in ("mean", "std"))
    report.add("preprocessing", f"{operations or 'none'}; {numbers}", preprocessing=transform)
    names = info.class_names
    shown = ", ".join(names[:3]) + (f", ... {names[-1]}" if len(names) > 3 else "")
    report.add("class names", f"{len(names)}: {shown}", class_names=names)
    for note in converted.notes:
        report.add("note", note)
    report.plain.update(notes=converted.notes, model=converted.model)
    report.has_class_names = converted.class_names is not None


def report_checks(done: list[Check], report: ConversionReport) -> None:
    """Add what was compared."""
    for check in done:
        exact = check.difference in (None, 0.0)
        report.add(
            "check", check.what if exact else f"{check.what}: largest relative difference {check.difference:.1e}"
        )
    report.plain["check"] = [check._asdict() for check in done]
