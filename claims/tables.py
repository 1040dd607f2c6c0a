"""The documents' tables, written from the claims: `<!-- claims: NAME -->` to `<!-- end -->` holds the table NAME."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from claims.claim import HERE, ROOT, VERIFICATION, Range, Value, claims, expected, measured, shown

BLOCK = re.compile(r"(<!-- claims: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
CELL = re.compile(r"\{([\w-]+)\.(\w+)(?::(\w+))?\}")
NOT_MEASURED = "not measured"


def table(name: str, chinese: bool = False) -> str:
    """Return a table in Markdown. Raises KeyError for a table, a claim or a value that does not exist."""
    if name == "verification":
        kept = json.loads(VERIFICATION.read_text(encoding="utf-8"))
        return markdown([kept["columns"], *kept["rows"]])
    spec, words = _yaml("tables.yaml")[name], _yaml("tables.zh.yaml") if chinese else {}
    rows = [[words.get(str(text), str(text)) for text in row] for row in [spec["columns"], *spec["rows"]]]
    filled = [[CELL.sub(lambda match: cell(*match.groups()), text) for text in row] for row in rows]
    return markdown([[_in_chinese(text) for text in row] for row in filled] if chinese else filled)


@cache
def _yaml(name: str) -> dict[str, Any]:
    return yaml.safe_load((HERE / name).read_text(encoding="utf-8"))


def _in_chinese(text: str) -> str:
    """Return a filled cell without the English words of ranges and of what was not measured."""
    return re.sub(r"\((\S+) to (\S+)\)", r"（\1至\2）", text).replace(NOT_MEASURED, "未测")


def markdown(rows: list[list[str]]) -> str:
    """Return a table whose first row is its head."""
    head, *body = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *body])


def cell(name: str, what: str, form: str | None = None) -> str:
    """Return a value with its range, or what belongs to a claim: command, commit, date, cpu, torch, runs.

    Args:
        form: "mean" leaves the range out, "each" gives every run's number.
    """
    claim, seen = claims()[name], measured(name)
    if what in claim.values:
        return _number(name, what, form)
    if what == "command":
        return "; ".join(f"`{command.format_map(_Placeholders())}`" for command in claim.commands).replace("|", "\\|")
    if what == "runs":
        return ", ".join(f"{one.setting} {one.seed}" for one in seen) if len(seen) > 1 else str(len(seen))
    if what not in ("commit", "date", "cpu", "torch"):
        raise KeyError(f"{name}.{what}")
    return "; ".join(dict.fromkeys(getattr(one, what) for one in seen)) or NOT_MEASURED


def _number(name: str, what: str, form: str | None) -> str:
    value, seen = claims()[name].values[what], expected(name, what)
    if seen is None:
        return NOT_MEASURED
    if form == "each":
        return ", ".join(shown(value, one.values[what]).removesuffix(" %") for one in measured(name))
    if form == "mean":
        return shown(value, seen.mean)
    # A speed is a property of a kind of CPU: one range for each, in the order of {CLAIM.cpu}.
    kinds = dict.fromkeys(one.cpu for one in measured(name)) if value.unit == "times" else [None]
    return "; ".join(_range(value, one) for kind in kinds if (one := expected(name, what, kind)))


def _range(value: Value, seen: Range) -> str:
    mean, low, high = (shown(value, number) for number in (seen.mean, seen.low, seen.high))
    return mean if low == high else f"{mean} ({low.removesuffix(' %')} to {high.removesuffix(' %')})"


class _Placeholders(dict):
    """What stands for a path in a printed command."""

    def __missing__(self, key: str) -> str:
        return {"out": "OUT", "seed": "SEED", "shared": "shared"}.get(key, f"{key.upper()}")


def documents() -> list[Path]:
    paths = [ROOT / "README.md", ROOT / "README_CN.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [path for path in paths if BLOCK.search(_text(path))]


def rendered(path: Path) -> str:
    """Return a document with its tables as the claims have them now."""
    chinese = path.name.endswith(("_CN.md", ".zh.md"))
    return BLOCK.sub(lambda match: f"{match[1]}{table(match[2], chinese)}{match[3]}", _text(path))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
