"""What a claim is: commands, the values read from their JSON, the conditions, and what was measured so far."""

import itertools
import json
import math
import statistics
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field

HERE = Path(__file__).parent
ROOT = HERE.parent
MEASUREMENTS = HERE / "measurements.json"
VERIFICATION = HERE / "verification.json"  # the last comparison that was kept
KEPT_SPEEDS = 5  # measurements of a kind of CPU: a speed on a shared machine is a range
# Infinite is what a program gives that fails; JSON has no such number, so null stands for it.
Number = Annotated[
    float,
    pydantic.BeforeValidator(lambda number: math.inf if number is None else number),
    pydantic.PlainSerializer(lambda number: None if number == math.inf else number),
]
Unit = Literal["percent", "points", "times", "difference", "count", "bytes"]


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class Value(_Part):
    """One number of a claim.

    Attributes:
        read: "FILE KEY", a file below the claim's folder, or "stdout KEY", the last command's JSON; KEY is dotted, with
            `rows[form=onnx]` for the row of a list. Two of them with ` / ` between are a ratio.
        margin: how far outside the range seen a new measurement may lie.
        at_least, at_most: what it must reach besides, where something was promised.
    """

    read: str
    unit: Unit = "percent"
    margin: Annotated[float, Field(ge=0)] = 0.0
    at_least: float | None = None
    at_most: float | None = None


class Claim(_Part):
    """Commands and what they give.

    Attributes:
        commands: run in order; {out} is the claim's folder, {seed} the seed, {shared} the reference data, {ID} another
            claim's folder, which is then measured first.
        seeds, settings: what a recorded measurement covers; a check takes the first of each.
        needs: avx2, vnni, no-vnni, amx, no-amx, bfloat16, cuda, darknet2any, or a path below the reference data.
        threads: of a command; minutes: what it takes on two cores.
        quick: part of `--quick`.
    """

    title: str
    commands: Annotated[list[str], Field(min_length=1)]
    values: dict[str, Value]
    seeds: list[int] = [0]
    settings: list[Literal["native", "avx2"]] = ["native"]
    needs: list[str] = []
    threads: int = 2
    minutes: float
    quick: bool = False

    @property
    def needs_quiet(self) -> bool:
        """Whether other work on the machine would change what is measured, or be slowed down by it."""
        return self.threads > 1 or any(value.unit == "times" for value in self.values.values())


class Measurement(_Part):
    """What one run of a claim's commands gave, and where."""

    claim: str
    seed: int
    setting: str
    values: dict[str, Number]
    cpu: str
    torch: str
    seconds: float | None
    commit: str
    date: str


class Range(_Part):
    """What was seen of a value."""

    mean: float
    low: float
    high: float
    count: int


@cache
def claims() -> dict[str, Claim]:
    """Return all claims by id, in the order of the files. Raises ValueError for a broken one or an id used twice."""
    found: dict[str, Claim] = {}
    for path in sorted(HERE.glob("[0-9]*.yaml")):
        for name, plain in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            if name in found:
                raise ValueError(f"{path.name}: {name}: is there twice")
            found[name] = Claim.model_validate(plain)
    return found


@cache
def measurements() -> tuple[Measurement, ...]:
    return tuple(Measurement.model_validate(plain) for plain in json.loads(MEASUREMENTS.read_text(encoding="utf-8")))


def measured(name: str) -> list[Measurement]:
    """Return what was measured of a claim, oldest first."""
    return [one for one in measurements() if one.claim == name]


def expected(name: str, value: str, cpu: str | None = None, new: Measurement | None = None) -> Range | None:
    """Return the range seen of a value, None where it was never measured.

    Args:
        cpu: on this kind of CPU alone.
        new: what is to be compared; where it was recorded already it is no evidence for itself.
    """
    others = [one for one in measured(name) if one != new and cpu in (None, one.cpu)]
    seen = [one.values[value] for one in others if value in one.values]
    return Range(mean=statistics.fmean(seen), low=min(seen), high=max(seen), count=len(seen)) if seen else None


def is_within(value: Value, seen: Range | None, got: float) -> bool:
    """Tell whether a new measurement bears the claim out."""
    enough = (value.at_least is None or got >= value.at_least) and (value.at_most is None or got <= value.at_most)
    return enough and (seen is None or seen.low - value.margin <= got <= seen.high + value.margin)


def shown(value: Value, number: float) -> str:
    """Return a number as the documents print it."""
    forms = {
        "percent": lambda: f"{100 * number:.2f} %",
        "points": lambda: f"{number:.2f}",
        "times": lambda: f"{number:.2f}",
        "difference": lambda: "fails" if number == math.inf else "0" if number == 0 else f"{number:.1e}",
        "count": lambda: f"{number:.0f}",
        "bytes": lambda: f"{number / 1e6:.1f} MB",
    }
    return forms[value.unit]()


def has_speeds(name: str) -> bool:
    """Tell whether a claim has a number that a shared machine gives differently each time."""
    return name in claims() and any(value.unit == "times" for value in claims()[name].values.values())


def record(new: list[Measurement]) -> None:
    """Add measurements to the file, each in the place of an earlier one of its claim, seed, setting and kind of CPU.

    With speeds in it that is only one of the same commit, and of the others the last `KEPT_SPEEDS` stay.
    """
    of = lambda one: (one.claim, one.seed, one.setting, one.cpu)
    key = lambda one: (*of(one), one.commit if has_speeds(one.claim) else "")
    replaced = {key(one) for one in new}
    every = [one for one in measurements() if key(one) not in replaced] + new
    order = {name: i for i, name in enumerate(claims())}
    every.sort(key=lambda one: (order.get(one.claim, len(order)), one.setting, one.cpu, one.seed, one.date))
    last = [one for _, group in itertools.groupby(every, of) for one in list(group)[-KEPT_SPEEDS:]]
    lines = ",\n".join(json.dumps(one.model_dump(), allow_nan=False) for one in last)
    MEASUREMENTS.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    measurements.cache_clear()


def read_value(document: Any, key: str) -> float:
    """Return the number under a dotted key, infinite for null. Raises KeyError where there is none."""
    for part in key.split("."):
        name, _, chosen = part.partition("[")
        document = document[name] if name else document
        if chosen:
            field, _, wanted = chosen.rstrip("]").partition("=")
            document = next((row for row in document if str(row.get(field)) == wanted), None)
            if document is None:
                raise KeyError(part)
    return math.inf if document is None else float(document)
