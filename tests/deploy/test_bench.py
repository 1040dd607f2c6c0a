"""The deployment table: every form measured in turn, and what cannot be measured says why."""

import json
import re

import pytest

from convzoo import errors
from convzoo.deploy import bench
from convzoo.deploy.quantize import comparison, schemes
from convzoo.inference.torch_model import open_model
from helpers import THREADS, one_line


@pytest.fixture(scope="module")
def model(digits_run):
    return digits_run / "checkpoints/last.safetensors"


def test_a_table_of_two_forms(run, model, tmp_path, monkeypatch):
    grown = bench.peak_memory  # in a process of its own, which takes seconds: once is enough
    monkeypatch.setattr(bench, "peak_memory", lambda row, real: grown(row, real) if row.name == "onnx" else 1)
    options = ["--rounds", 2, "--seconds", 0.05]
    code, out, err = run("bench", model, "--formats", "pytorch,onnx", *options, "--out", tmp_path, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said == json.loads((tmp_path / "bench.json").read_text())
    torch_row, onnx_row = said["rows"]
    assert [torch_row["form"], onnx_row["form"]] == ["pytorch", "onnx"]
    for row in said["rows"]:
        assert 0 < row["latency_ms"] <= row["latency_p95_ms"] and len(row["latency_ms_of_rounds"]) == 2
        assert row["pictures_per_s"] > 0 and 3e6 < row["bytes"] < 3e7 and 0 < row["peak_memory_bytes"] < 2e9
        assert row["result"] == torch_row["result"] and row["result"]["images"] == 360
    assert onnx_row["largest_difference"] < 1e-4 and onnx_row["agreed"] == onnx_row["predictions"] == 16
    assert "largest_difference" not in torch_row and said["threads"] == THREADS and said["data"] == "digits"
    table = (tmp_path / "bench.md").read_text()
    assert table.count("| onnx |") == 1 and "2 rounds of 0.05 s" in table and "onnxruntime 1." in table


def test_a_single_file(run, model, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "peak_memory", lambda *_: None)
    file = bench.export.export(open_model(model), bench.export.ExportOptions("onnx", out=tmp_path)).path
    code, out, _ = run("bench", file, "--rounds", 1, "--seconds", 0.01)
    rows = [line for line in out.splitlines() if line.startswith("| onnx")]
    assert code == 0 and len(rows) == 1 and " %" in rows[0]


def test_a_form_that_is_refused_says_why(model, monkeypatch):
    def refuse(*_):
        raise errors.ToleranceError("loses 9 points")

    monkeypatch.setattr(bench, "peak_memory", lambda *_: None)
    monkeypatch.setattr(bench.quantize, "quantize", refuse)
    monkeypatch.setattr(bench.distributed, "computes_bfloat16", lambda _: False)
    wanted = bench.BenchOptions(("pytorch", "openvino-bf16", "onnx-int8"), rounds=1, seconds=0.01)
    report = bench.bench(model, wanted)
    assert [row.name for row in report.rows if row.measured] == ["pytorch"]
    assert "- onnx-int8: refused: loses 9 points" in report.text()
    assert "- openvino-bf16: not measured: this CPU is no faster in bfloat16" in report.text()


def test_int8_that_is_slower_than_float_is_refused_in_the_table(model, monkeypatch):
    monkeypatch.setattr(bench, "peak_memory", lambda *_: None)
    monkeypatch.setattr(comparison, "measure_speed", lambda *_: {"float32": 1e-3, "int8": 2e-3})
    monkeypatch.setitem(schemes.SCHEMES, "onnx", schemes.SCHEMES["onnx"][:1])
    report = bench.bench(model, bench.BenchOptions(("pytorch", "onnx-int8"), rounds=1, seconds=0.01))
    assert [row.name for row in report.rows if row.measured] == ["pytorch"]
    assert re.search(r"^- onnx-int8: refused: .*slower than float \(float32", report.text(), re.M)


def test_an_unknown_form(run, model):
    code, _, err = run("bench", model, "--formats", "onnx,openvine")
    assert code == 2 and "did you mean 'openvino'" in one_line(err)
