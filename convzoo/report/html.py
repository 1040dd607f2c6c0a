"""A run, or several beside each other, as one page that needs nothing else: from plain values only.

Everything is in the file, and a policy in its head forbids it to ask for anything or to run any script but its own:
what stands in names of classes and files is text.
"""

import base64
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import jinja2

from convzoo.plain import JsonObject, JsonValue
from convzoo.report.charts import Chart
from convzoo.report.pictures import Picture

STATIC = Path(__file__).parent / "static"


@dataclass(frozen=True)
class Number:
    """A measured number as text: its value, its 95 % interval (or nothing), and how many pictures it is of."""

    label: str
    value: str
    interval: str = ""
    count: str = ""
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """Pictures of one true class that were taken for one class, as the title says; `share` of all of the true one."""

    title: str
    count: int
    share: float
    is_right: bool
    pictures: list[Picture]


@dataclass(frozen=True)
class ConfusionView:
    """Confusions: a cell for every pair where there are few classes, and the most frequent ones in any case."""

    rows: list[str]
    columns: list[str]
    cells: list[list[Cell]]
    frequent: list[Cell]


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; `note` says what the numbers stand on."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass
class RunView:
    """One run as it is shown.

    Attributes:
        name: by which it is told from the others; folder: where it lies.
        state: "finished", "running" or "interrupted"; progress: how far, in words.
        summary: in one sentence.
        numbers: the important ones; more_numbers: the others.
        missing: by the section's name, why it is not there.
        recipe: as plain values; recipe_text: as YAML.
        command, again: what repeats the training, and the evaluation.
    """

    name: str
    folder: str
    state: str
    progress: str
    summary: str
    command: str
    again: str
    recipe: JsonObject
    recipe_text: str
    charts: list[Chart] = field(default_factory=list)
    numbers: list[Number] = field(default_factory=list)
    more_numbers: list[Number] = field(default_factory=list)
    confusion: ConfusionView | None = None
    curve: Chart | None = None
    classes: Table | None = None
    worst: list[Picture] = field(default_factory=list)
    random: list[Picture] = field(default_factory=list)
    explained: list[Picture] = field(default_factory=list)
    has_boxes: bool = False
    pictures_gone: bool = False
    deployment: list[Table] = field(default_factory=list)
    machine: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def page(runs: Sequence[RunView], live: bool = False) -> str:
    """Return the page of one run, or of several beside each other.

    Args:
        live: it is served, and asks its server for news; otherwise it asks for nothing.
    """
    styles, script = ((STATIC / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    template = _templates().get_template("report.html.jinja")
    rendered = template.render(
        runs=runs,
        title=" · ".join(run.name for run in runs),
        charts=[chart.drawn() for chart in (compared_charts(runs) if len(runs) > 1 else runs[0].charts)],
        numbers=_compared_numbers(runs),
        differences=recipe_differences(runs),
        live=live,
        styles=styles,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )
    return rendered.lstrip()


def compared_charts(runs: Sequence[RunView]) -> list[Chart]:
    """Return the charts that several runs have, each with the line that stands for a run, under the run's name."""
    charts = []
    for title in dict.fromkeys(chart.title for run in runs for chart in run.charts):
        found = [(i, run, chart) for i, run in enumerate(runs) for chart in run.charts if chart.title == title]
        lines = [
            replace(chart.series[chart.main], name=run.name, colour=i % 8) for i, run, chart in found if chart.series
        ]
        charts.append(replace(found[0][2], series=lines))
    return charts


def recipe_differences(runs: Sequence[RunView]) -> list[tuple[str, list[str]]]:
    """Return the recipe's keys in which runs differ, with each run's value."""
    of_runs = [flat(run.recipe) for run in runs]
    keys = dict.fromkeys(key for keys in of_runs for key in keys)
    rows = [(key, [keys.get(key, "-") for keys in of_runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def flat(value: JsonValue, place: str = "") -> dict[str, str]:
    """Return nested values as text by their keys, joined with points."""
    if isinstance(value, dict) and value:
        parts = [flat(inner, f"{place}.{key}" if place else str(key)) for key, inner in value.items()]
        return {key: text for part in parts for key, text in part.items()}
    return {place: "none" if value is None else str(value)}


def _compared_numbers(runs: Sequence[RunView]) -> list[tuple[str, list[Number | None]]]:
    labels = dict.fromkeys(number.label for run in runs for number in [*run.numbers, *run.more_numbers])
    of_runs = [{number.label: number for number in [*run.numbers, *run.more_numbers]} for run in runs]
    return [(label, [numbers.get(label) for numbers in of_runs]) for label in labels]


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(STATIC),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
