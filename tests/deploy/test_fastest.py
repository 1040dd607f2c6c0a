"""The fastest form: the quickest of the table within the budget is kept, with the table; else nothing is left."""

import json
import shutil

import pytest

from convzoo.deploy import bench, export, fastest, format_module
from convzoo.deploy.export import ExportOptions
from convzoo.deploy.exported import open_exported
from convzoo.deploy.metadata import UNSEALED
from convzoo.deploy.quantize import comparison
from convzoo.inference.torch_model import open_model
from helpers import one_line, skip_without_openvino
from networks import noise, write_model

SOME = {name: bench.ROWS[name] for name in ("pytorch", "onnx", "ncnn", "ncnn-fp16")}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(bench, "ROWS", SOME)
    monkeypatch.setattr(fastest, "ROUNDS", 2)
    monkeypatch.setattr(fastest, "SECONDS", 0.02)


@pytest.fixture
def model(digits_run, tmp_path):
    return shutil.copy(digits_run / "checkpoints/last.safetensors", tmp_path / "model.safetensors")


def test_the_fastest_within_the_budget_is_kept_with_the_table(run, quick, model, tmp_path):
    out = tmp_path / "out"  # made by the verb
    code, stdout, err = run("export", model, "--format", "fastest", "--out", out, "--json")
    assert code == 0, err
    plain = json.loads(stdout)
    rows = {row["form"]: row for row in plain["table"]["rows"]}
    assert list(rows) == list(SOME) and all(row["result"]["images"] == 360 for row in rows.values())
    limit = rows["pytorch"]["result"]["top1"] - 0.005 - 1e-9
    within = [name for name, row in rows.items() if name != "pytorch" and row["result"]["top1"] >= limit]
    assert plain["form"] == min(within, key=lambda name: rows[name]["latency_ms"])
    assert plain["times_pytorch"] == pytest.approx(rows["pytorch"]["latency_ms"] / plain["latency_ms"], abs=1e-3)
    opened = open_exported(plain["file"])
    table = opened.info.provenance["fastest"]
    assert table["form"] == plain["form"] and table["table"]["rows"] == plain["table"]["rows"]
    assert {file.name.partition(".")[0] for file in out.iterdir()} == {"model-fastest"}
    evaluated = json.loads(run("eval", plain["file"], "--json")[1])
    assert evaluated["top1"] == rows[plain["form"]]["result"]["top1"]


@pytest.mark.parametrize("format", ["pt2", "onnx", "openvino", "ncnn"])
def test_a_file_written_again_with_other_metadata_answers_as_before(tmp_path, format):
    skip_without_openvino(format)
    opened = open_model(write_model(tmp_path, "tinydarknet-digits"))
    before = open_exported(export.export(opened, ExportOptions(format)).path)
    info = before.info.model_copy(update={"provenance": {"fastest": {"form": format}}, "seal": UNSEALED})
    path = tmp_path / before.path.name.replace("tinydarknet-digits", "again")
    others = format_module(format).relabel(before.content, info, path)
    after, images = open_exported(path), noise(1, 32, 32)
    assert after.info.provenance == info.provenance
    assert after.runner()(images)[0].equal(before.runner()(images)[0])
    assert {path, *others} == {file for file in tmp_path.iterdir() if file.name.startswith("again")}


def test_no_form_within_the_budget(run, quick, model, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "ROWS", {name: SOME[name] for name in ("pytorch", "ncnn")})
    before = sorted(tmp_path.iterdir())
    code, stdout, err = run("export", model, "--format", "fastest", "--max-drop", "-100", "--out", tmp_path / "new")
    assert code == 4 and "no form loses at most -100 points of top1" in one_line(err) and not stdout
    assert err.count("| ncnn |") == 1 and sorted(tmp_path.iterdir()) == before  # the table


def test_int8_is_left_out_where_there_is_nothing_to_calibrate_on(run, quick, model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        bench, "ROWS", {name: bench.ROWS[name] for name in ("pytorch", "onnx")} | {"onnx-int8": ("onnx", "int8")}
    )
    data = tmp_path / "data/val"
    for digit in range(3):
        (data / str(digit)).mkdir(parents=True)
    pictures(data)
    folder = ["data={name: image_folder}"]
    model = write_model(tmp_path, "tinydarknet-digits", [*folder, "model.num_classes=3"])
    code, stdout, err = run("export", model, "--format", "fastest", "--data", data.parent, "--json")
    assert code == 0, err
    (row,) = [row for row in json.loads(stdout)["table"]["rows"] if row["form"] == "onnx-int8"]
    assert row["note"].startswith("not measured: ") and "train" in row["note"]
    missing = ["--data", data.parent, "--calibration", tmp_path / "none"]
    code, _, err = run("export", model, "--format", "fastest", *missing)
    assert code == 2 and "no such folder" in one_line(err)


def pictures(data) -> None:
    """Write two noisy pictures into each class's folder."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for folder in data.iterdir():
        for number in range(2):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def test_what_does_not_fit_is_refused_before_any_work(run, model, tmp_path):
    for options, message in (
        (["--out", tmp_path / "model.onnx"], "names a folder"),
        (["--out", tmp_path / "none/new"], "none is no folder"),
        (["--preprocessing"], "normalised pictures of one size"),
        (["--precision", "fp16"], "fastest has fp32"),
    ):
        code, _, err = run("export", model, "--format", "fastest", *options)
        assert code == 2 and message in one_line(err)
    other = write_model(tmp_path, "tinydarknet-digits", ["data={name: image_folder}"])
    code, _, err = run("export", other, "--format", "fastest")
    assert code == 2 and "(--data)" in one_line(err)
    code, _, err = run("export", model, "--format", "onnx", "--max-drop", 1)
    assert code == 2 and "for --format fastest" in one_line(err)


@pytest.mark.slow
def test_all_forms_of_a_trained_network(run, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "SECONDS", 0.1)
    assert run("train", "tinydarknet-digits", "train.epochs=2", "--out", tmp_path / "run")[0] == 0
    model = tmp_path / "run/checkpoints/last.safetensors"
    code, stdout, err = run("export", model, "--format", "fastest", "--out", tmp_path, "--json")
    assert code == 0, err
    plain = json.loads(stdout)
    assert [row["form"] for row in plain["table"]["rows"]] == list(bench.ROWS)
    (file,) = [file for file in tmp_path.iterdir() if str(file) == plain["file"]]
    evaluated = json.loads(run("eval", file, "--precision", plain["precision"], "--json")[1])
    (row,) = [row for row in plain["table"]["rows"] if row["form"] == plain["form"]]
    assert evaluated["top1"] == row["result"]["top1"] and open_exported(file).runner(plain["precision"]).device == "cpu"
