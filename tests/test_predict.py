"""Prediction on files, folders and globs: in order, one batch in memory, every fault named."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import one_line
from PIL import Image

from convzoo import evaluate
from convzoo.predict import predict


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from convzoo import cli

    folder = tmp_path_factory.mktemp("pictures")
    assert cli.main(["data", "save", "digits", "--out", str(folder), "--count", "30"]) == 0
    return folder


def test_the_table_and_json_lines_agree(run, digits_run, pictures):
    last = digits_run / "checkpoints/last.safetensors"
    code, table, _ = run("predict", last, pictures)
    lines = table.splitlines()
    assert code == 0 and len(lines) == 30
    rows = [json.loads(line) for line in run("predict", last, pictures, "--json")[1].splitlines()]
    assert (
        [row["path"] for row in rows]
        == sorted(str(path) for path in pictures.iterdir())
        == [line.split("  ")[0] for line in lines]
    )
    assert sum(row["class"] == row["path"].rpartition("/")[2][0] for row in rows) >= 24
    for row in rows:
        scores = [entry["score"] for entry in row["classes"]]
        assert (
            len(scores) == 5 and scores == sorted(scores, reverse=True) and scores[-1] >= 0 and sum(scores) <= 1.00001
        )
        assert row["score"] == scores[0]


def test_files_globs_and_batches_give_the_same(run, digits_run, pictures):
    last = digits_run / "checkpoints/last.safetensors"
    everything = run("predict", last, pictures)[1].splitlines()
    nines = [line for line in everything if "/9-" in line]
    assert run("predict", last, f"{pictures}/9-*.png")[1].splitlines() == nines
    files = sorted(pictures.glob("9-*.png"))
    assert run("predict", last, *files, "--batch-size", 1)[1].splitlines() == nines


def test_annotated_copies_do_not_overwrite_each_other(run, digits_run, pictures, tmp_path):
    first = sorted(pictures.iterdir())[0]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.png").write_bytes(first.read_bytes())
    code, _, _ = run(
        "predict",
        digits_run / "checkpoints/last.safetensors",
        tmp_path / "a",
        tmp_path / "b",
        "--save",
        tmp_path / "out",
    )
    assert code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"same.png", "same-2.png", "overview.png"}
    copy = Image.open(tmp_path / "out/same.png")
    assert min(copy.size) >= 240
    enlarged = Image.open(first).resize((240, 240), Image.Resampling.NEAREST)
    assert (np.asarray(copy)[:240, :240] == np.asarray(enlarged)).all()


def test_faults(run, digits_run, pictures, tmp_path):
    last = digits_run / "checkpoints/last.safetensors"
    for source, code, message in [
        (tmp_path / "none.png", 2, "no such file"),
        (tmp_path, 2, "no pictures in this folder"),
    ]:
        got, _, err = run("predict", last, source)
        assert got == code and message in one_line(err)
    (tmp_path / "a.png").write_bytes(sorted(pictures.iterdir())[0].read_bytes())
    (tmp_path / "b.jpg").write_text("a text file")
    code, _, err = run("predict", last, tmp_path)
    assert code == 3 and "b.jpg: not a picture" in one_line(err)
    code, out, err = run("predict", last, tmp_path, "--on-bad-sample", "skip")
    assert code == 0 and len(out.splitlines()) == 1 and "skipped" in err


def test_memory_does_not_grow_with_the_number_of_pictures(digits_run, pictures):
    opened = evaluate.open_model(digits_run / "checkpoints/last.safetensors", torch.device("cpu"))
    runner = evaluate.TorchRunner(opened.model, opened.recipe, torch.device("cpu"))
    file = str(sorted(pictures.iterdir())[0])

    def peak(count: int) -> int:
        tracemalloc.start()
        for _ in predict(runner, opened.task(), opened.pipeline(), opened.class_names, (file for _ in range(count))):
            pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(50)
    assert peak(800) < peak(80) * 1.5
