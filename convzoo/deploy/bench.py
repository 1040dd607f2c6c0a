"""What every form of a model costs and gives on this machine: size, speed, memory, accuracy, distance from PyTorch."""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convzoo import distributed
from convzoo.config.registry import nearest
from convzoo.deploy import bytes_of, export, library, timing
from convzoo.deploy.exported import ExportedModel, open_any
from convzoo.deploy.parity import compare, pictures
from convzoo.deploy.quantize import comparison, quantize
from convzoo.environment import environment
from convzoo.errors import ConvzooError, DataError, ToleranceError, UsageError
from convzoo.inference import evaluate
from convzoo.inference.bootstrap import Drop, drops
from convzoo.inference.loaded import LoadedModel
from convzoo.inference.torch_model import TorchModel
from convzoo.logs import log
from convzoo.plain import JsonObject
from convzoo.report.tables import percent, table
from convzoo.types import Metric, Runner

# The rows of a model file's table: which format, in which precision. int8 and fp16 are files of their own.
ROWS = {
    "pytorch": ("pytorch", "fp32"),
    "pt2": ("pt2", "fp32"),
    "onnx": ("onnx", "fp32"),
    "openvino": ("openvino", "fp32"),
    "openvino-bf16": ("openvino", "bf16"),
    "ncnn": ("ncnn", "fp32"),
    "ncnn-bf16": ("ncnn", "bf16"),
    "ncnn-fp16": ("ncnn", "fp16"),
    "onnx-int8": ("onnx", "int8"),
    "openvino-int8": ("openvino", "int8"),
}
THROUGHPUT_BATCH = 8
EMBEDDED = ("digits", "digit_scenes")
SAME_BOX = 0.02  # a detection of a lossy form is the same within this: of the input's side, and of the score
MB = 1e6
MEMORY = "growth of a fresh process from before the file is opened to its peak over three batches"


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        formats: keys of ROWS.
        data: folder of the recipe's data set, for accuracy and INT8; None also where it is embedded.
        calibration: a folder of pictures for INT8; max_drop: what INT8 may lose, in points of percent.
        rounds, seconds: every row is timed `seconds` in each round, one row after the other.
        batch: pictures in the batch whose latency is taken.
        out: folder for bench.json and bench.md.
        exporting: how each form is written, but for format, folder, data and precision.
        memory: measure each form's memory too, which takes a process.
    """

    formats: tuple[str, ...] = tuple(ROWS)
    data: Path | None = None
    calibration: Path | None = None
    max_drop: float = 0.5
    rounds: int = 3
    seconds: float = 2.0
    batch: int = 1
    out: Path | None = None
    exporting: export.ExportOptions = field(default_factory=lambda: export.ExportOptions(""))
    memory: bool = True


@dataclass
class Row:
    """One form of the model: how to open it, and what was measured, by the names of the JSON."""

    name: str
    path: Path
    precision: str = "fp32"
    measured: JsonObject = field(default_factory=dict)
    note: str = ""
    metric: Metric | None = None

    def open(self) -> LoadedModel:
        return open_any(self.path, torch.device("cpu"))

    def runner(self) -> Runner:
        return self.open().runner(self.precision)


@dataclass(frozen=True)
class BenchResult:
    """The table."""

    model: Path
    rows: list[Row]
    facts: JsonObject

    @property
    def plain(self) -> JsonObject:
        rows = [{"form": row.name, **row.measured, **({"note": row.note} if row.note else {})} for row in self.rows]
        return {"model": str(self.model), **self.facts, "rows": rows}

    def text(self) -> str:
        """Return the table in Markdown."""
        facts, measure = self.facts, self.facts["measure"]
        batch = facts["batch"]
        head = ["form", "MB", f"median ms, batch {batch}", "p95 ms", f"pictures/s, batch {THROUGHPUT_BATCH}", "peak MB"]
        head += [measure, "points lost", "largest difference", "agreement"]
        lines = [_cells(row, measure) for row in self.rows if row.measured]
        notes = [f"- {row.name}: {row.note}" for row in self.rows if row.note]
        where = facts["data"] or "no data given, so no accuracy"
        memory = f"Peak: {MEMORY}. " if facts["memory"] else ""
        about = (
            f"{facts['cpu']}, {facts['threads']} of {facts['cores']} cores; "
            f"{facts['rounds']} rounds of {facts['seconds']:g} s, "
            f"the forms one after the other in each; input {facts['size']}. Accuracy: {where}. "
            f"Points lost: of {measure}, against the first row, in brackets 95 % of 1000 resamplings of the pictures. "
            "Difference: the largest |a-b| / max|b| from PyTorch's outputs on real pictures, "
            "agreement of the predictions there. "
            f"{memory}{', '.join(f'{name} {version}' for name, version in facts['versions'].items())}."
        )
        return "\n".join([f"# {self.model.name}", "", table(head, lines), "", *notes, *[""] * bool(notes), about])


def _cells(row: Row, measure: str) -> list[str]:
    measured = row.measured
    agreed = f"{measured['agreed']} of {measured['predictions']}" if "agreed" in measured else ""
    memory, lost = measured.get("peak_memory_bytes"), measured.get("drops", {}).get(measure)
    return [
        row.name,
        f"{measured['bytes'] / MB:.1f}",
        f"{measured['latency_ms']:.2f}",
        f"{measured['latency_p95_ms']:.2f}",
        f"{measured['pictures_per_s']:.1f}",
        "" if memory is None else f"{memory / MB:.0f}",
        percent(measured["result"].get(measure)) if "result" in measured else "",
        str(Drop(**lost)) if lost else "",
        f"{measured['largest_difference']:.1e}" if "largest_difference" in measured else "",
        agreed,
    ]


def bench(model: Path, options: BenchOptions) -> BenchResult:
    """Measure a model file in every form asked for, or an exported file in its own.

    Raises:
        UsageError: no such file, or an unknown form.
        DataError: data that cannot be evaluated.
        ConvzooError: no form of it runs here.
    """
    unknown = [name for name in options.formats if name not in ROWS]
    if unknown:
        raise UsageError(f"--formats {unknown[0]}: unknown{nearest(unknown[0], ROWS)}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="convzoo-bench-") as name:
        result = measure(open_any(model, torch.device("cpu")), options, Path(name))
    if options.out:
        (options.out / "bench.json").write_text(json.dumps(result.plain, indent=2) + "\n", encoding="utf-8")
        (options.out / "bench.md").write_text(result.text() + "\n", encoding="utf-8")
    return result


def measure(opened: LoadedModel, options: BenchOptions, folder: Path) -> BenchResult:
    """Measure a model in every form asked for, which is written into a folder, or an exported file in its own.

    Raises: as `bench`.
    """
    real = _pictures(opened, options.data)
    rows = _forms(opened, options, folder) if isinstance(opened, TorchModel) else _own(opened)
    run = [row for row in rows if not row.note]
    if not run:
        notes = "; ".join(f"{row.name}: {row.note}" for row in rows)
        raise ConvzooError(f"{opened.path}: nothing to measure: {notes}")
    for row in run:
        row.measured["bytes"] = bytes_of(row.path)
        if options.memory:
            row.measured["peak_memory_bytes"] = peak_memory(row, real)
        _compare(row, opened, real)
        _evaluate(row, run[0], opened, options.data)
    _time(run, real, options)
    return BenchResult(opened.path, rows, _facts(opened, real, options))


def _own(opened: LoadedModel) -> list[Row]:
    assert isinstance(opened, ExportedModel)
    rows = [Row(opened.format, opened.path)]
    is_int8 = "quantization" in opened.info.provenance
    form = f"{opened.format}-bf16"
    if form in ROWS and not is_int8 and distributed.computes_bfloat16(torch.device("cpu")):
        rows.append(Row(form, opened.path, "bf16"))
    return [Row(f"{row.name}-int8", row.path) for row in rows] if is_int8 else rows


def _forms(opened: TorchModel, options: BenchOptions, folder: Path) -> list[Row]:
    """Write the model in every form asked for; a form that is not to be had gets a note instead."""
    floats: dict[tuple[str, str], Path] = {}
    rows = [Row(name, opened.path) for name in options.formats]
    for row in rows:
        format, precision = ROWS[row.name]
        if precision == "bf16" and not distributed.computes_bfloat16(torch.device("cpu")):
            row.note = "not measured: this CPU is no faster in bfloat16"
        elif format != "pytorch":
            log.info(f"{row.name}: writing and checking it")
            try:
                _write(row, opened, options, folder, floats)
            except ToleranceError as error:
                row.note = f"refused: {error}"
            except ConvzooError as error:
                if precision == "int8" and options.calibration and isinstance(error, UsageError | DataError):
                    raise  # these pictures were asked for
                row.note = f"not measured: {error}"
    return rows


def _write(row: Row, opened: TorchModel, options: BenchOptions, folder: Path, floats: dict) -> None:
    """Write a row's file, from the float file of the same format where it is INT8. Raises as `export`, `quantize`."""
    format, precision = ROWS[row.name]
    weights = "fp16" if precision == "fp16" else "fp32"
    if (format, weights) not in floats:
        place = folder / weights
        place.mkdir(exist_ok=True)
        asked = replace(options.exporting, format=format, out=place, data=options.data, precision=weights)
        floats[format, weights] = export.export(opened, asked).path
    row.path, row.precision = floats[format, weights], "bf16" if precision == "bf16" else "fp32"
    if precision == "int8":
        limits = options.data, options.max_drop, options.calibration
        row.path = quantize.quantize(opened, comparison.QuantizeOptions(format, *limits, out=folder), row.path).path


def _pictures(opened: LoadedModel, data: Path | None) -> Tensor:
    """Return real pictures [N, 3, H, W] uint8 as the network gets them."""
    if isinstance(opened, TorchModel):
        return pictures(opened, data, export.input_size(opened, data))
    assert isinstance(opened, ExportedModel)
    return pictures(opened, data, opened.info.size)


def _compare(row: Row, opened: LoadedModel, real: Tensor) -> None:
    """Add how far the row's outputs are from PyTorch's, where PyTorch's are known."""
    form = row.open()
    if not isinstance(opened, TorchModel) or not isinstance(form, ExportedModel):
        return
    parity = compare(opened, form.runner(row.precision), real, SAME_BOX)
    row.measured["largest_difference"] = max(kinds["real"] for kinds in parity.outputs.values())
    row.measured["agreed"], row.measured["predictions"] = parity.agreed, parity.predictions


def _evaluate(row: Row, first: Row, opened: LoadedModel, data: Path | None) -> None:
    """Add the row's accuracy, and what it lost against the first row."""
    if data is None and opened.recipe.data["name"] not in EMBEDDED:
        return
    evaluation = evaluate.evaluate_open(row.open(), data, precision=row.precision)
    row.measured["result"], row.metric = evaluation.result, evaluation.metric
    if row is not first and first.metric is not None:
        lost = drops(first.metric, evaluation.metric)
        row.measured["drops"] = {name: drop._asdict() for name, drop in lost.items()}


def _time(rows: list[Row], real: Tensor, options: BenchOptions) -> None:
    """Add latency and throughput, the rows one after the other in every round."""
    runners = {row.name: row.runner() for row in rows}
    for batch in dict.fromkeys((options.batch, THROUGHPUT_BATCH)):
        images = real[torch.arange(batch) % len(real)]
        calls: dict[str, Callable[[], object]] = {
            name: lambda run=run, images=images: run(images) for name, run in runners.items()
        }
        times = timing.alternate(calls, options.rounds, options.seconds)
        for row in rows:
            rounds = times[row.name]
            durations = [second for round_s in rounds for second in round_s]
            if batch == options.batch:
                row.measured["latency_ms"] = 1e3 * statistics.median(durations)
                row.measured["latency_p95_ms"] = 1e3 * float(np.percentile(durations, 95))
                row.measured["latency_ms_of_rounds"] = [1e3 * statistics.median(round_s) for round_s in rounds]
            if batch == THROUGHPUT_BATCH:
                row.measured["pictures_per_s"] = batch / statistics.median(durations)


def peak_memory(row: Row, real: Tensor) -> int | None:
    """Return the bytes by which a fresh process grows to open the file and run three batches of one; None off Linux."""
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file.name, real[:1].numpy())
        given = [str(row.path), row.precision, file.name, str(torch.get_num_threads())]
        code = "import sys; from convzoo.deploy.bench import measure_memory; measure_memory(*sys.argv[1:])"
        done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True)
    if done.returncode:
        raise ConvzooError(f"{row.path}: its memory cannot be measured: {done.stderr.strip()[-200:]}")
    grown = done.stdout.split()[-1]
    return None if grown == "None" else int(grown)


def measure_memory(path: str, precision: str, images: str, threads: str) -> None:
    """Print by how many bytes this process grows over one file; `peak_memory` calls it in a process of its own."""
    torch.set_num_threads(int(threads))
    pixels = np.load(images)
    row = Row("", Path(path), precision)
    libraries = {".onnx": ["onnx", "onnxruntime"], ".xml": ["openvino"], ".param": ["ncnn"]}
    for module in libraries.get(row.path.suffix, []):
        library(module, "bench")  # loaded before: it is the file's share that is asked for
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is not the file's
    before = memory_bytes("VmRSS")
    run = row.runner()
    for _ in range(3):
        run(pixels)
    after = memory_bytes("VmHWM")
    print(None if before is None or after is None else max(after - before, 0))


def memory_bytes(key: str) -> int | None:
    """Return a line of Linux's account of this process, in bytes: VmRSS is what it holds, VmHWM the most it held."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None


def _facts(opened: LoadedModel, real: Tensor, options: BenchOptions) -> JsonObject:
    env = environment(torch.device("cpu"))
    versions = {"convzoo": env["convzoo"], **export.versions()}
    name = opened.recipe.data["name"]
    return {
        "measure": opened.task().best_metric,
        "batch": options.batch,
        "throughput_batch": THROUGHPUT_BATCH,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "size": "x".join(map(str, real.shape[2:])),
        "cpu": env["device_name"],
        "cores": env["cpu_cores"],
        "threads": env["threads"],
        "platform": env["platform"],
        "commit": env["commit"],
        "versions": versions,
        "memory": MEMORY if options.memory else None,
        "computes_bfloat16": distributed.computes_bfloat16(torch.device("cpu")),
        "data": str(options.data) if options.data else name if name in EMBEDDED else None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
