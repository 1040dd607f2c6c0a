"""Evaluation: every image once for any batch size, classes by name, n of N."""

import csv
import json
import re
import time

import pytest

from helpers import one_line


def result(run, *argv) -> dict:
    code, out, err = run("eval", *argv, "--json")
    assert code == 0, err
    return json.loads(out)


def without_time(result: dict) -> dict:
    return {key: value for key, value in result.items() if key not in ("seconds", "images_per_s")}


def test_the_number_does_not_depend_on_the_batch_size(run, digits_run):
    last = digits_run / "checkpoints/last.safetensors"
    results = [result(run, last, "--batch-size", size) for size in (1, 7, 64, 360, 1000)]
    assert all(without_time(r) == without_time(results[0]) for r in results)
    assert results[0]["images"] == results[0]["images_expected"] == 360
    assert results[0]["top1"] == json.loads((digits_run / "eval/metrics.json").read_text())["top1"]
    assert 0.7 < results[0]["top1"] <= results[0]["top5"] <= 1.0


def test_an_evaluation_says_how_long_it_took(run, digits_run):
    last = digits_run / "checkpoints/last.safetensors"
    started = time.perf_counter()
    one = result(run, last)
    assert 0 < one["seconds"] < time.perf_counter() - started
    assert one["images_per_s"] == pytest.approx(360 / one["seconds"], rel=0.1)
    assert re.search(r"360 of 360 images  \d+\.\d s, \d+ img/s$", run("eval", last)[1].splitlines()[0])


def test_bfloat16_is_near_and_val_means_eval(run, digits_run):
    last = digits_run / "checkpoints/last.safetensors"
    assert abs(result(run, last, "--precision", "bf16")["top1"] - result(run, last)["top1"]) < 0.02
    code, out, _ = run("val", last)
    assert code == 0 and "360 of 360 images" in out


def test_a_folder_of_checkpoints_gives_a_row_each(run, digits_run, tmp_path):
    code, out, _ = run("eval", digits_run)
    lines = out.splitlines()
    assert code == 0 and len(lines) == 3 and all("top-1" in line and "step-" in line for line in lines)
    (tmp_path / "empty").mkdir()
    code, _, err = run("eval", tmp_path / "empty")
    assert code == 2 and "no model files" in one_line(err)


@pytest.fixture
def tree(run, tmp_path):
    """The held-out digits as class folders named by digit."""
    assert run("data", "save", "digits", "--out", tmp_path / "flat", "--count", 120)[0] == 0
    for file in (tmp_path / "flat").iterdir():
        folder = tmp_path / "tree/val" / file.name[0]
        folder.mkdir(parents=True, exist_ok=True)
        file.rename(folder / file.name)
    return tmp_path / "tree"


def test_classes_are_matched_by_name(run, digits_run, tree):
    last, folder = digits_run / "checkpoints/last.safetensors", ["data={name: image_folder}", "--data", tree]
    whole = result(run, last, *folder)
    assert whole["images"] == 120 and whole["top1"] > 0.7
    for digit in "012":  # the folder's classes now begin at 3: matched by position, nothing would be right
        for file in (tree / "val" / digit).iterdir():
            file.unlink()
        (tree / "val" / digit).rmdir()
    fewer = result(run, last, *folder)
    assert fewer["images"] == 84 and fewer["top1"] > 0.7
    (tree / "val" / "3").rename(tree / "val" / "three")
    code, _, err = run("eval", last, *folder)
    assert code == 3 and "1 of 7 classes that the model does not know: three" in one_line(err)


def test_an_unreadable_picture_is_an_error_or_is_counted(run, digits_run, tree):
    last, folder = digits_run / "checkpoints/last.safetensors", ["data={name: image_folder}", "--data", tree]
    bad = next((tree / "val" / "4").iterdir())
    bad.write_bytes(b"no picture")
    code, out, err = run("eval", last, *folder)
    assert code == 3 and out == "" and str(bad) in one_line(err)
    counted = result(run, last, *folder, "--on-bad-sample", "skip")
    assert (counted["images"], counted["images_expected"]) == (119, 120)


def test_a_classifier_has_no_evaluator_of_boxes(run, digits_run):
    code, _, err = run("eval", digits_run / "checkpoints/last.safetensors", "--coco-eval", "pycocotools")
    assert code == 2 and "a classifier has no COCO numbers (--coco-eval)" in one_line(err)


def test_the_report(run, digits_run, tmp_path):
    code, _, _ = run("eval", digits_run / "checkpoints/last.safetensors", "--out", tmp_path / "report")
    assert code == 0
    table = list(csv.DictReader((tmp_path / "report/per_class.csv").open()))
    assert [row["class"] for row in table] == [str(i) for i in range(10)] and sum(
        int(row["images"]) for row in table
    ) == 360
    measured = json.loads((tmp_path / "report/metrics.json").read_text())
    assert sum(int(row["correct"]) for row in table) / 360 == measured["top1"]
    wrong = list(csv.DictReader((tmp_path / "report/worst.csv").open()))
    assert wrong and all(row["truth"] != row["predicted"] for row in wrong)
    confidence = [float(row["true_score"]) for row in wrong]
    assert confidence == sorted(confidence)


def test_overrides_of_an_evaluation_are_checked(run, digits_run):
    code, _, err = run("eval", digits_run / "checkpoints/last.safetensors", "transform.evl=[]")
    assert code == 2 and "did you mean 'eval'" in one_line(err)
