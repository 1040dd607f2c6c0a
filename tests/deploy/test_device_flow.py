"""The device flow: what is dumped is what the network gets, and scoring its answers gives what `eval` measures."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convzoo import build
from convzoo.data.checks.splits import is_boxed
from convzoo.data.transforms.pipeline import normalize
from convzoo.deploy import raw_outputs
from convzoo.deploy.exported import ExportedModel, RuntimeOptions
from convzoo.deploy.metadata import ExportInfo
from convzoo.errors import DataError, UsageError, report
from convzoo.inference import evaluate, torch_model
from convzoo.model_file import load_model, save_model
from convzoo.models.yolov3 import STRIDES
from convzoo.types import Key
from helpers import confusion, one_line
from networks import CPU, SMALL_YOLO, write_model


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """An opened classifier, a folder of its dumped inputs, and how it evaluates on the embedded digits."""
    folder = tmp_path_factory.mktemp("digits")
    opened = torch_model.open_model(write_model(folder, "tinydarknet-digits", ["transform.eval=[]"]), CPU)
    assert raw_outputs.dump_inputs(opened, folder / "inputs") == 360
    return opened, folder / "inputs", evaluate.evaluate_open(opened, None)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    opened = torch_model.open_model(
        write_model(folder, "yolov3-digits", [*SMALL_YOLO, "postprocess.score_threshold=0.2"]), CPU
    )
    assert raw_outputs.dump_inputs(opened, folder / "inputs") == 120
    return opened, folder / "inputs", evaluate.evaluate_open(opened, None)


def index_of(folder: Path) -> list[dict]:
    return json.loads((folder / "index.json").read_text())["pictures"]


@functools.cache
def answers(network, inputs: Path) -> list[torch.Tensor]:
    """Be the device: compute the outputs of all dumped inputs."""
    x = np.concatenate(
        [np.fromfile(inputs / row["file"], row["dtype"]).reshape(row["shape"]) for row in index_of(inputs)]
    )
    with torch.inference_mode():
        found = network(torch.from_numpy(x))
    return list(found) if isinstance(found, tuple) else [found]


def compute(inputs: Path, outputs: Path, found, name="{}_{}.bin", dtype="<f4") -> Path:
    """Write the network's outputs as a device would, and the index beside them."""
    outputs.mkdir()
    for n, row in enumerate(index_of(inputs)):
        for i, output in enumerate(found):
            path, array = outputs / name.format(row["name"], i), output[n : n + 1].numpy().astype(dtype)
            array.tofile(path) if path.suffix == ".bin" else np.save(path, array)
    return Path(shutil.copy(inputs / "index.json", outputs)).parent


def as_exported(opened, **fields) -> ExportedModel:
    """Return what an exported file of the model says of itself."""
    recipe = opened.recipe.plain()
    about = {"recipe": recipe, "class_names": opened.class_names, "task": opened.recipe.task, "size": (64, 64)}
    info = ExportInfo(**about, source_sha256=64 * "0", **fields)
    return ExportedModel(opened.path, "om", info, opened.recipe, None, RuntimeOptions())


# --- inputs


def test_inputs_are_what_the_network_gets(scenes, tmp_path):
    opened, inputs, _ = scenes
    rows, dataset, pipeline = index_of(inputs), build.build_dataset(opened.recipe, None, "val"), opened.pipeline()
    for i in (0, 7, 119):
        row, placed = rows[i], pipeline(dataset.load(i), Key(0, i))
        assert (row["id"], row["shape"], row["dtype"]) == (i, [1, 3, 64, 64], "float32")
        assert is_boxed(dataset) and row["original_hw"] == list(dataset.size_hw(i)) == list(placed.original_hw)
        assert row["placement"] == list(placed.placement)
        transform = opened.recipe.transform
        wanted = normalize(placed.image[None], transform.mean, transform.std).numpy()
        assert (np.fromfile(inputs / row["file"], "<f4").reshape(row["shape"]) == wanted).all()
    inside = as_exported(opened, input="uint8_nhwc")
    source = tmp_path / "a.b.png"
    Image.fromarray(dataset.load(7).image.permute(1, 2, 0).numpy()).save(source)
    assert raw_outputs.dump_inputs(inside, tmp_path / "out", [source], kind="npy") == 1
    (row,) = index_of(tmp_path / "out")
    assert (row["file"], row["dtype"], row["path"]) == ("a.npy", "uint8", str(source))
    assert (
        np.load(tmp_path / "out/a.npy") == pipeline(dataset.load(7), Key(0, 7)).image.permute(1, 2, 0)[None].numpy()
    ).all()


def test_a_folder_is_not_written_twice(digits, capsys):
    with pytest.raises(UsageError, match=r"has an index\.json already") as caught:
        raw_outputs.dump_inputs(digits[0], digits[1])
    assert report(caught.value) == 2 and "choose another folder" in one_line(capsys.readouterr().err)


# --- outputs


@pytest.mark.parametrize(
    ("name", "dtype"), [("{}_{}.bin", "<f4"), ("{}.bin", "<f2"), ("{}_{}.npy", "<f4"), ("{}_output_{}.bin", "<f4")]
)
def test_a_classifiers_outputs(digits, tmp_path, name, dtype):
    opened, inputs, wanted = digits
    outputs = compute(inputs, tmp_path / "o", answers(opened.model, inputs), name, dtype)
    found = raw_outputs.score_raw_outputs(opened, outputs, batch_size=50)
    assert found.result["images"] == found.result["images_expected"] == 360
    # float16 may turn a tie
    assert abs(confusion(found) - confusion(wanted)).sum() <= (0 if dtype == "<f4" else 4)
    assert found.result["top1"] == pytest.approx(wanted.result["top1"], abs=0 if dtype == "<f4" else 2 / 360)


@pytest.mark.parametrize("order", [1, -1])
def test_head_maps_in_either_order(scenes, tmp_path, order):
    opened, inputs, wanted = scenes
    outputs = compute(inputs, tmp_path / "o", answers(opened.model, inputs)[::order])
    found = raw_outputs.score_raw_outputs(opened, outputs)
    assert found.result == pytest.approx(wanted.result, abs=1e-6) and wanted.result["AP"] > 0


def test_decoded_boxes(scenes, tmp_path):
    opened, inputs, wanted = scenes
    boxes = opened.task().decode(answers(opened.model, inputs))
    outputs = compute(inputs, tmp_path / "o", boxes)
    found = raw_outputs.score_raw_outputs(as_exported(opened, stage="decoded"), outputs)
    assert found.result == pytest.approx(wanted.result, abs=1e-6)


def test_what_suppression_in_the_graph_leaves(scenes, tmp_path):
    opened, inputs, wanted = scenes
    task, dataset, pipeline = opened.task(), build.build_dataset(opened.recipe, None, "val"), opened.pipeline()
    most = task.options["max_detections"]
    for row in index_of(inputs):
        batch = task.collate([pipeline(dataset.load(row["id"]), Key(0, row["id"]))])
        (one,) = task.postprocess(opened.runner()(batch.images), batch)
        scale, offset = batch.placement.numpy()[0].reshape(2, 2)
        boxes = np.zeros((1, most, 4), "<f4")
        boxes[0, : len(one.labels)] = one.boxes_xyxy * np.tile(scale, 2) + np.tile(offset, 2)
        boxes.tofile(tmp_path / f"{row['name']}_0.bin")
        scores, labels = np.zeros((1, most), "<f4"), np.full((1, most), -1, "<i8" if row["id"] % 2 else "<i4")
        scores[0, : len(one.labels)], labels[0, : len(one.labels)] = one.scores, one.labels
        scores.tofile(tmp_path / f"{row['name']}_1.bin")
        labels.tofile(tmp_path / f"{row['name']}_2.bin")
    found = raw_outputs.score_raw_outputs(as_exported(opened, stage="nms"), tmp_path)
    assert found.result == pytest.approx(wanted.result, abs=1e-3) and wanted.result["AP50"] > 0


def test_a_bad_output_is_named(digits, tmp_path, capsys):
    opened, inputs, _ = digits
    outputs = compute(inputs, tmp_path / "o", answers(opened.model, inputs))
    third = outputs / f"{index_of(inputs)[2]['name']}_0.bin"
    whole = third.read_bytes()

    def score(match: str) -> str:
        with pytest.raises(DataError, match=match) as caught:
            raw_outputs.score_raw_outputs(opened, outputs)
        assert report(caught.value) == 3
        return one_line(capsys.readouterr().err)

    third.unlink()
    assert str(third) in score("missing; every picture's outputs are needed")
    third.write_bytes(whole[:-1])
    assert str(third) in score(r"39 bytes, which is no \[1, 10\] of <f4 or <f2")
    np.full((1, 10), np.nan, "<f4").tofile(third)
    assert str(third) in score("NaN")
    third.unlink()
    np.save(third.with_suffix(".npy"), np.zeros((1, 11), "<f4"))
    score(r"\[1, 11\], which is no \[1, 10\]")
    third.with_suffix(".npy").write_bytes(b"\x93NUMPY")
    score("not a whole .npy file")
    (outputs / "index.json").write_text('{"pictures": [1]}')
    score("not an index of --dump-inputs")
    with pytest.raises(UsageError, match="no such folder"):
        raw_outputs.score_raw_outputs(opened, tmp_path / "none")


def test_two_sizes_of_one_map(scenes, tmp_path):
    opened, inputs, _ = scenes
    outputs = compute(inputs, tmp_path / "o", answers(opened.model, inputs))
    name = index_of(inputs)[0]["name"]
    shutil.copy(outputs / f"{name}_0.bin", outputs / f"{name}_1.bin")
    with pytest.raises(DataError, match=f"{name}_0.bin: it and its like are"):
        raw_outputs.score_raw_outputs(opened, outputs)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A data set of pictures that are called alike in each class, and a model of its classes that reads them."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        (folder / "val" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (40, 30 + i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "val" / name / f"{i}.x.png")
    overrides = [
        "data={name: image_folder}",
        "model.num_classes=2",
        "transform.eval=[{resize: {size_px: 32}}, {center_crop: {size_px: 32}}]",
    ]
    model = write_model(folder, "tinydarknet-digits", overrides)
    tensors, info, _ = load_model(model)
    save_model(model, tensors, info.model_copy(update={"class_names": ["one", "two"]}))
    return torch_model.open_model(model, CPU), folder


def test_pictures_of_the_same_name(pictures, tmp_path, monkeypatch):
    """Dumped by name, in another order and from another folder than they are scored."""
    opened, folder = pictures
    monkeypatch.chdir(folder)
    assert raw_outputs.dump_inputs(opened, tmp_path / "inputs", ["val/two", "val/one"]) == 12
    names = [row["name"] for row in index_of(tmp_path / "inputs")]
    assert names == [*(str(i) for i in range(6)), *(f"{i}-2" for i in range(6))]
    outputs = compute(tmp_path / "inputs", tmp_path / "outputs", answers(opened.model, tmp_path / "inputs"))
    monkeypatch.chdir(tmp_path)
    wanted = evaluate.evaluate_open(opened, folder)
    found = raw_outputs.score_raw_outputs(opened, outputs, folder)
    assert found.result == wanted.result and found.result["images"] == 12
    found.write(tmp_path / "report", build.build_dataset(opened.recipe, folder, "val"))
    assert json.loads((tmp_path / "report/metrics.json").read_text())["top1"] == found.result["top1"]
    assert (confusion(found) == confusion(wanted)).all()
    (outputs / "index.json").unlink()
    with pytest.raises(UsageError, match=r"two pictures would be called 0: \S+one/0\.x\.png and \S+two/0\.x\.png"):
        raw_outputs.score_raw_outputs(opened, outputs, folder)
    shutil.copy(folder / "val/one/0.x.png", folder / "val/one/new.png")
    shutil.copy(tmp_path / "inputs/index.json", outputs)
    with pytest.raises(DataError, match=r"index\.json: does not have \S+new\.png"):
        raw_outputs.score_raw_outputs(opened, outputs, folder)


def test_float16_is_told_by_size():
    """Of all maps that one detector may have no two have files of the same size, whichever float they are of."""
    for classes in (1, 10, 80):
        sizes = [
            width * 3 * (5 + classes) * (416 // stride) * (224 // stride) for stride in STRIDES for width in (2, 4)
        ]
        assert len(set(sizes)) == 6
