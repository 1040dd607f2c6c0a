"""Prediction on files, folders and globs: in order, one batch in memory, every fault named."""

import ctypes
import json
import os
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convzoo.config import recipe, registry
from convzoo.data.transforms.pipeline import Pipeline
from convzoo.inference import answers as predict_files
from convzoo.inference import predict as predict_module
from convzoo.inference import torch_model
from convzoo.inference.predict import predict
from convzoo.model_file import ModelInfo, save_model
from convzoo.models import yolov3
from convzoo.tasks.detect import Detect
from convzoo.types import Prediction
from helpers import one_line

STATM = Path("/proc/self/statm")


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


def test_large_pictures_make_small_batches_of_the_same_answers(digits_run, pictures, monkeypatch):
    opened = torch_model.open_model(digits_run / "checkpoints/last.safetensors")
    model, sizes = opened.runner(), []

    def runner(images):
        sizes.append(len(images))
        return model(images)

    def answers():
        sizes.clear()
        found = predict(runner, opened.task(), opened.pipeline(), opened.class_names, [pictures])  # type: ignore[arg-type]
        return [(answer.path, answer.names, answer.scores) for answer in found]

    whole = [(path, names, pytest.approx(scores, abs=1e-5)) for path, names, scores in answers()]
    assert sizes == [16, 14]
    monkeypatch.setattr(predict_module, "MAX_PIXELS", 4 * 8 * 8)
    assert answers() == whole and sizes == [4] * 7 + [2]
    monkeypatch.setattr(predict_module, "MAX_PIXELS", 1)
    assert answers() == whole and sizes == [1] * 30


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


def test_ctrl_c_leaves_whole_lines(run, digits_run, pictures, monkeypatch):
    inner, seen = predict_module.decode_rgb, []

    def decode_rgb(*arguments):
        seen.append(arguments)
        if len(seen) == 12:  # at most nine of them ahead of the answers
            signal.raise_signal(signal.SIGINT)
        return inner(*arguments)

    monkeypatch.setattr(predict_module, "decode_rgb", decode_rgb)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        last = digits_run / "checkpoints/last.safetensors"
        code, out, err = run("predict", last, pictures, "--batch-size", 1, "--json")
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130 and err == "" and out.endswith("\n")
    assert 2 <= len([json.loads(line) for line in out.splitlines()]) <= 11


def test_memory_does_not_grow_with_the_number_of_pictures(digits_run, pictures):
    opened = torch_model.open_model(digits_run / "checkpoints/last.safetensors", torch.device("cpu"))
    runner = torch_model.TorchRunner(opened.model, opened.recipe, torch.device("cpu"))
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


class Seen(Detect):
    """A detector that sees what it was told, whatever the picture shows."""

    def __init__(self, boxes_xyxy, labels, scores):
        super().__init__(["dog", "a/b"], yolov3.heads())
        self.seen = (
            np.array(boxes_xyxy, dtype=np.float32).reshape(-1, 4),
            np.array(labels, dtype=np.int64),
            np.array(scores),
        )

    def postprocess(self, outputs, batch):
        boxes, labels, scores = self.seen
        return [Prediction(i, labels, scores, boxes) for i in batch.ids.tolist()]


class Unchanged:
    """A runner whose outputs are the pictures themselves."""

    name, device, input, stage = "unchanged", "cpu", "uint8_nhwc", "raw"

    def __call__(self, images):
        return (images,)


def answers(task: Seen, sources, **options):
    return predict(Unchanged(), task, Pipeline([], seed=0), task.class_names, sources, **options)


@pytest.fixture
def two_seen(tmp_path):
    """Two pictures of one name, the second to be turned upright, and a detector that sees three boxes in each."""
    image = np.arange(60 * 100 * 3, dtype=np.uint32).reshape(60, 100, 3).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for folder, turned in (("a", False), ("b", True)):
        (tmp_path / folder).mkdir()
        picture = Image.fromarray(np.rot90(image) if turned else image)
        picture.save(tmp_path / folder / "same.png", exif=exif if turned else None)
    boxes = [[10.5, 20, 30, 40.25], [0, 0, 100, 60], [5, 5, 5, 9]]
    return Seen(boxes, [0, 1, 0], [0.9, 0.25, 0.1]), [tmp_path / "a", tmp_path / "b"], image


def test_detections_as_json_and_text(two_seen):
    task, folders, _ = two_seen
    for folder, answer in zip(folders, answers(task, folders, min_score=0.25), strict=True):
        path = str(folder / "same.png")
        assert answer.row() == {
            "path": path,
            "width": 100,
            "height": 60,
            "detections": [
                {"class": "dog", "score": 0.9, "box_xyxy": [10.5, 20.0, 30.0, 40.25]},
                {"class": "a/b", "score": 0.25, "box_xyxy": [0.0, 0.0, 100.0, 60.0]},
            ],
        }
        assert answer.text() == f"{path}  1 x dog (90.0 %)  1 x a/b (25.0 %)"
    (answer,) = answers(task, folders[:1])
    assert answer.text().endswith("  2 x dog (up to 90.0 %)  1 x a/b (25.0 %)")
    (answer,) = answers(task, folders[:1], min_score=1.0)
    assert answer.text().endswith("  nothing") and answer.row()["detections"] == []


def test_label_files_and_crops(two_seen, tmp_path):
    task, folders, image = two_seen
    written = predict_files.save_yolo_txt(answers(task, folders), tmp_path / "txt", ["dog", "a/b"])
    assert len(list(predict_files.save_crops(written, tmp_path / "crops"))) == 2
    assert (tmp_path / "txt/classes.txt").read_text() == "dog\na/b\n"
    for name in ("same", "same-2"):
        assert (tmp_path / f"txt/{name}.txt").read_text().splitlines() == [
            "0 0.202500 0.502083 0.195000 0.337500 0.900000",
            "1 0.500000 0.500000 1.000000 1.000000 0.250000",
            "0 0.050000 0.116667 0.000000 0.066667 0.100000",
        ]
        whole = np.asarray(Image.open(tmp_path / f"crops/a_b/{name}-002.png"))
        part = np.asarray(Image.open(tmp_path / f"crops/dog/{name}-001.png"))
        assert (whole == image).all() and (part == image[20:41, 10:30]).all()
    crops = sorted(str(path.relative_to(tmp_path / "crops")) for path in (tmp_path / "crops").rglob("*.png"))
    assert crops == ["a_b/same-002.png", "a_b/same-2-002.png", "dog/same-001.png", "dog/same-2-001.png"]


def test_a_picture_where_nothing_is_seen(two_seen, tmp_path):
    _, folders, _ = two_seen
    written = predict_files.save_yolo_txt(answers(Seen([], [], []), folders[:1]), tmp_path / "txt", ["dog"])
    (answer,) = predict_files.save_annotated(written, tmp_path / "drawn")
    assert (tmp_path / "txt/same.txt").read_text() == ""
    drawn = np.asarray(Image.open(tmp_path / "drawn/same.png"))
    assert (drawn[::6, ::6] == answer.image).all() and (tmp_path / "drawn/overview.png").is_file()


def test_no_picture_overwrites_what_belongs_to_all(two_seen, tmp_path):
    task, folders, _ = two_seen
    for name in ("overview", "classes"):
        (folders[0] / f"{name}.png").write_bytes((folders[0] / "same.png").read_bytes())
    written = predict_files.save_yolo_txt(answers(task, folders[:1]), tmp_path / "out", ["dog", "a/b"])
    list(predict_files.save_annotated(written, tmp_path / "out"))
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {
        "classes.png",
        "overview-2.png",
        "same.png",
        "overview.png",
        "classes-2.txt",
        "overview.txt",
        "same.txt",
        "classes.txt",
    }
    assert Image.open(tmp_path / "out/overview.png").width > 1000


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A small detector that was never trained: it sees much, everywhere."""
    small = [
        "model.width=0.125",
        "model.anchors_px=null",
        "transform.eval=[{letterbox: {size_px: 96}}]",
        "postprocess.score_threshold=0.01",
    ]
    loaded = recipe.load("yolov3-digits", small)
    torch.manual_seed(0)
    model = registry.bind("model", loaded.model, loaded.at("model"))()
    path = tmp_path_factory.mktemp("models") / "detector.safetensors"
    save_model(
        path, model.state_dict(), ModelInfo(recipe=loaded.plain(), class_names=[str(digit) for digit in range(10)])
    )
    return path


def test_a_detector_on_the_command_line(run, detector, pictures, tmp_path):
    files = sorted(pictures.iterdir())[:5]
    outputs = ["--yolo-txt", tmp_path / "txt", "--crops", tmp_path / "crops", "--save", tmp_path / "drawn"]
    code, out, err = run("predict", detector, *files, "--json", "--min-score", "0.02", *outputs)
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["path"] for row in rows] == list(map(str, files)) and sum(len(row["detections"]) for row in rows) > 50
    for row, file in zip(rows, files, strict=True):
        scores = [one["score"] for one in row["detections"]]
        assert scores == sorted(scores, reverse=True) and scores[-1] >= 0.02 and len(scores) <= 100
        lines = (tmp_path / f"txt/{file.stem}.txt").read_text().splitlines()
        for line, one in zip(lines, row["detections"], strict=True):
            label, x, y, width, height, score = map(float, line.split())
            box = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2]) * (
                [row["width"], row["height"]] * 2
            )
            assert np.abs(box - one["box_xyxy"]).max() < 0.01 and [str(int(label)), score] == [
                one["class"],
                one["score"],
            ]
        assert (tmp_path / f"drawn/{file.stem}.png").is_file()
    assert len(list((tmp_path / "crops").rglob("*.png"))) == sum(len(row["detections"]) for row in rows)
    scores = sorted(one["score"] for row in rows for one in row["detections"])
    level = (scores[len(scores) // 2] + scores[len(scores) // 2 + 1]) / 2
    code, out, _ = run("predict", detector, *files, "--json", "--min-score", level)
    fewer = [json.loads(line) for line in out.splitlines()]
    for row, less in zip(rows, fewer, strict=True):
        assert less["detections"] == [one for one in row["detections"] if one["score"] >= level]
    usual = json.loads(run("predict", detector, files[0], "--json")[1])["detections"]
    expected = [one for one in rows[0]["detections"] if one["score"] >= 0.25]
    assert [one["class"] for one in usual] == [one["class"] for one in expected]
    for one, other in zip(usual, expected, strict=True):  # a batch of one may round its last printed digit otherwise
        assert one["score"] == pytest.approx(other["score"], abs=2e-6)
        assert one["box_xyxy"] == pytest.approx(other["box_xyxy"], abs=0.011)


def test_options_of_detectors_are_refused_for_a_classifier(run, digits_run, pictures, tmp_path):
    last = digits_run / "checkpoints/last.safetensors"
    for option in (["--min-score", "0.5"], ["--yolo-txt", tmp_path / "txt"], ["--crops", tmp_path / "crops"]):
        code, out, err = run("predict", last, pictures, *option)
        assert code == 2 and "take a detector" in one_line(err) and out == ""
    assert list(tmp_path.iterdir()) == []
    code, _, err = run("predict", last, pictures, "--save", last)
    assert code == 2 and "is a file" in one_line(err)
    assert run("predict", last, pictures, "--min-score", "1.5")[0] == 2
    code, _, err = run("predict", last, pictures, "--provider", "CPUExecutionProvider")
    assert code == 2 and "ONNX" in one_line(err)


@pytest.mark.skipif(not STATM.exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("keeps", [False, True])
def test_a_large_folder_is_annotated_in_constant_memory(tmp_path, keeps):
    """With `keeps` the answers are held on to, which the measurement must notice."""
    Image.new("RGB", (360, 330), (90, 120, 150)).save(tmp_path / "a.jpg")
    task = Seen([[10, 10, 200, 200], [250, 250, 300, 300]], [0, 1], [0.9, 0.8])
    flow = answers(task, [tmp_path / "a.jpg"] * 180)
    getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)  # else what other tests freed would be used first
    flow = predict_files.save_yolo_txt(flow, tmp_path / "txt", ["dog", "a/b"])
    flow = predict_files.save_annotated(predict_files.save_crops(flow, tmp_path / "crops"), tmp_path / "drawn")
    held, used_mb = [], []
    for answer in flow:
        held += [answer] * keeps
        used_mb.append(int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
    assert len(used_mb) == 180 == len(list((tmp_path / "txt").iterdir())) - 1
    grown_mb = max(used_mb[-50:]) - max(used_mb[50:100])
    assert grown_mb > 15 if keeps else grown_mb < 8  # 80 pictures of 0.34 MB
