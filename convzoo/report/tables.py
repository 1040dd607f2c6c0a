"""Results as a line, tables in Markdown, tables as files."""

import csv
from pathlib import Path

from convzoo.plain import JsonObject


def write_csv(path: Path, rows: list[JsonObject]) -> None:
    """Write rows under their own keys; no rows, no file."""
    if rows:
        with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def summary(result: JsonObject) -> str:
    """Return a result as one line in percent: `top-1 93.12 %  top-5 99.80 %  10000 of 10000 images`."""
    names = {"top1": "top-1", "top5": "top-5", "AP": "AP", "AP50": "AP50", "AP75": "AP75"}
    parts = [f"{names[key]} {100 * result[key]:.2f} %" for key in names if result.get(key) is not None]
    return "  ".join([*parts, f"{result['images']} of {result['images_expected']} images"])


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
