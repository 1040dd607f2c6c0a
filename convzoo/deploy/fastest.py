"""The fastest form of a model: every one that runs here is written, checked and measured, the best is kept."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from convzoo.deploy import SUFFIXES, bench, format_module
from convzoo.deploy import export as exporting
from convzoo.deploy.bench import BenchOptions, BenchResult, Row
from convzoo.deploy.exported import open_exported
from convzoo.deploy.metadata import UNSEALED
from convzoo.errors import ConvzooError, DataError, ToleranceError, UsageError
from convzoo.files import written_whole
from convzoo.inference.torch_model import TorchModel
from convzoo.logs import log
from convzoo.plain import JsonObject

PACKAGES = ()
ROUNDS, SECONDS = 5, 0.5  # of each form in each round


@dataclass(frozen=True)
class FastestResult:
    """A form that was measured beside all others and kept.

    Attributes:
        precision: to run it in, where it is not the file's own.
        drop: points of percent that it loses of the task's measure against PyTorch in float32.
    """

    path: Path
    form: str
    precision: str
    drop: float
    max_drop: float
    table: BenchResult

    @property
    def plain(self) -> JsonObject:
        return {"file": str(self.path), **self.description, "table": self.table.plain}

    @property
    def description(self) -> JsonObject:
        latency = {row.name: row.measured["latency_ms"] for row in self.table.rows if row.measured}
        return {
            "form": self.form,
            "precision": self.precision,
            "latency_ms": latency[self.form],
            "times_pytorch": round(latency["pytorch"] / latency[self.form], 3),
            "drop_points": round(self.drop, 4),
            "max_drop": self.max_drop,
        }

    def text(self) -> str:
        plain, measure = self.description, self.table.facts["measure"]
        speed = f"{plain['latency_ms']:.2f} ms a picture, {plain['times_pytorch']:.2f} times PyTorch"
        lost = f"{self.drop:.2f} points of {measure} lost, {self.max_drop:g} allowed"
        runs = "" if self.precision == "fp32" else f"; run it with --precision {self.precision}"
        return f"{self.table.text()}\n\n{self.path}  {self.form}: {speed}; {lost}{runs}"


def export(opened: TorchModel, options: exporting.ExportOptions) -> FastestResult:
    """Write a model in every form, and keep the one that answers one picture soonest and loses at most `max_drop`.

    Raises:
        UsageError: no data to measure accuracy on, or a file where a folder is needed.
        DataError: data that cannot be evaluated or calibrated on.
        ToleranceError: no form is within the budget; nothing is left behind.
    """
    _check_options(opened, options)
    if options.size:
        opened = exporting.resized(opened, options.size)
    measured = BenchOptions(
        formats=tuple(bench.ROWS),
        data=options.data,
        calibration=options.calibration,
        max_drop=options.max_drop,
        rounds=ROUNDS,
        seconds=SECONDS,
        exporting=replace(options, size=None),
        memory=False,
    )
    with (
        _folder(options.out or opened.path.parent) as folder,
        tempfile.TemporaryDirectory(prefix=".fastest.", dir=folder) as name,
    ):
        table = bench.measure(opened, measured, Path(name))
        row, drop = _choice(table, options.max_drop)
        suffix = SUFFIXES[bench.ROWS[row.name][0]]
        target = exporting.target_path(opened.path, folder, suffix, "-fastest")
        result = FastestResult(target, row.name, row.precision, drop, options.max_drop, table)
        _publish(row, result, Path(name))
    return result


def _check_options(opened: TorchModel, options: exporting.ExportOptions) -> None:
    """Raise UsageError for what not every form, or not the measuring, can do."""
    if options.preprocessing or options.dynamic_size:
        raise UsageError("--format fastest: forms are compared on normalised pictures of one size")
    if options.data is None and opened.recipe.data["name"] not in bench.EMBEDDED:
        raise UsageError("--format fastest: accuracy is measured on the recipe's data set", ("data",))


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[Path]:
    """Yield the folder of `--out`, made if need be; one that was made goes again where nothing gets into it."""
    if not folder.is_dir() and (folder.exists() or folder.name.endswith(tuple(SUFFIXES.values()))):
        raise UsageError(f"--out {folder}: names a folder; which file it will be is not known before it is measured")
    if not folder.parent.is_dir():
        raise UsageError(f"--out {folder}: {folder.parent} is no folder")
    is_new = not folder.exists()
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # what is in it stays, and what went wrong is said
                folder.rmdir()
        raise


def _choice(table: BenchResult, max_drop: float) -> tuple[Row, float]:
    """Return the fastest exported form within the budget, and its drop. Raises ToleranceError, DataError."""
    measure = table.facts["measure"]
    scores = {row.name: row.measured["result"].get(measure) for row in table.rows if row.measured}
    if scores["pytorch"] is None:
        raise DataError(f"{table.facts['data']}: gives no {measure} to compare by")
    drops = {name: 100 * (scores["pytorch"] - score) for name, score in scores.items()}
    rows = [row for row in table.rows if row.name in drops and row.name != "pytorch"]
    within = [row for row in rows if drops[row.name] <= max_drop + 1e-9]  # rounding of the subtraction
    if not within:
        log.warning(table.text())
        lost = ", ".join(f"{row.name} {drops[row.name]:.2f}" for row in rows)
        raise ToleranceError(f"no form loses at most {max_drop:g} points of {measure}, and none is kept: {lost}")
    best = min(within, key=lambda row: row.measured["latency_ms"])
    return best, drops[best.name]


def _publish(row: Row, result: FastestResult, folder: Path) -> None:
    """Write the row's file again, with the table in its metadata, and check that it answers as before."""
    before = open_exported(row.path)
    table = {key: value for key, value in result.table.plain.items() if key != "model"}
    provenance = {**before.info.provenance, "fastest": {**result.description, "table": table}}
    info = before.info.model_copy(update={"provenance": provenance, "seal": UNSEALED})
    final = folder / "final"
    final.mkdir()
    draft = final / result.path.name
    others = format_module(before.format).relabel(before.content, info, draft)
    images = torch.rand(1, 3, *info.size)
    runners = before.runner(row.precision), open_exported(draft).runner(row.precision)
    if not all(a.equal(b) for a, b in zip(*(run(images) for run in runners), strict=True)):
        raise ConvzooError(f"{draft.name}: written again, it answers otherwise than before; nothing is kept")
    for file in (*others, draft):  # the one that others open last
        with written_whole(result.path.with_name(file.name)) as temporary:
            os.replace(file, temporary)
