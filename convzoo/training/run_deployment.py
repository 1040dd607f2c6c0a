"""What became of a run's model: the exported files in its folder, and what was measured of them."""

import json
from pathlib import Path

from convzoo.deploy import bytes_of, format_of
from convzoo.errors import ConvzooError
from convzoo.plain import JsonObject
from convzoo.report.html import Table
from convzoo.report.tables import percent

MB = 1e6
COLUMNS = ["file", "format", "weights", "input", "outputs", "MB", "largest difference allowed", "measured"]
BENCH = ["form", "MB", "median ms", "p95 ms", "pictures/s", "measure", "points lost (95 %)", "largest difference"]


def deployment(run: Path) -> list[Table]:
    """Return the exported files below a run's folder, each verified, and every table that `bench` wrote there."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and format_of(path)]
    tables = []
    if files:
        model = run / "checkpoints/last.safetensors"
        rows = [_model_row(model, run)] if model.is_file() else []
        rows += [_row(path, run) for path in files]
        note = "Each was compared with PyTorch when it was written; the difference is max|a-b| / max|b| of its outputs."
        tables.append(Table("Files", COLUMNS, rows, note))
    return tables + [_bench(path) for path in sorted(run.rglob("bench.json"))]


def _model_row(path: Path, run: Path) -> list[str]:
    return [str(path.relative_to(run)), "PyTorch", "fp32", "", "raw", f"{path.stat().st_size / MB:.2f}", "", ""]


def _row(path: Path, run: Path) -> list[str]:
    from convzoo.deploy.exported import open_exported

    name, size = str(path.relative_to(run)), f"{bytes_of(path) / MB:.2f}"
    try:
        opened = open_exported(path)
    except ConvzooError as error:
        return [name, format_of(path) or "", "", "", "", size, "", str(error).removeprefix(f"{path}: ")]
    info, quantized = opened.info, opened.info.provenance.get("quantization")
    height, width = info.size
    tolerance = "" if info.tolerance is None or quantized else f"{info.tolerance:.0e}"
    weights = "INT8" if quantized else info.precision
    return [name, opened.format, weights, f"{width}x{height}", info.stage, size, tolerance, _measured(info.metrics)]


def _measured(metrics: JsonObject) -> str:
    names = {"top1": "top-1", "AP": "AP", "AP50": "AP50"}
    parts = [f"{names[key]} {percent(metrics[key])}" for key in names if isinstance(metrics.get(key), float)]
    return ", ".join(parts) + (f" of {metrics['images']}" if parts and "images" in metrics else "")


def _bench(path: Path) -> Table:
    facts = json.loads(path.read_text(encoding="utf-8"))
    measure, rows = facts["measure"], []
    for row in facts["rows"]:
        if "bytes" not in row:
            rows.append([row["form"], *[""] * (len(BENCH) - 2), row.get("note", "")])
            continue
        lost = row.get("drops", {}).get(measure)
        rows.append(
            [
                row["form"],
                f"{row['bytes'] / MB:.2f}",
                f"{row['latency_ms']:.2f}",
                f"{row['latency_p95_ms']:.2f}",
                f"{row['pictures_per_s']:.1f}",
                percent(row["result"][measure]) if "result" in row else "",
                f"{lost['points']:.2f} ({lost['low']:.2f} to {lost['high']:.2f})" if lost else "",
                f"{row['largest_difference']:.1e}" if "largest_difference" in row else "",
            ]
        )
    note = (
        f"{facts['cpu']}, {facts['threads']} of {facts['cores']} cores, batch {facts['batch']}, input {facts['size']}, "
        f"{facts['time']}; accuracy: {facts['data'] or 'no data given'}."
    )
    return Table(f"Measured: {path.parent.name}", [measure if c == "measure" else c for c in BENCH], rows, note)
