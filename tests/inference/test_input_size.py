"""A model knows the size of its training pictures, and others are stretched to it where its recipe keeps sizes."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import convzoo
from convzoo import build
from convzoo.convert import mindspore
from convzoo.convert.state_dict import meta_network
from convzoo.deploy import export
from convzoo.deploy.exported import open_any
from convzoo.inference import torch_model
from convzoo.model_file import ModelInfo, load_model, save_model
from helpers import one_line

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two of different sizes, and the first as a stretch makes it 8x8."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for name, size in (("a", (60, 90)), ("b", (75, 50))):
        small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder


def answers(run, model, *sources) -> tuple[list[dict], str]:
    code, out, err = run("predict", model, *sources, "--json")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()], err


def test_training_writes_the_size_that_it_saw(digits_run):
    _, info, _ = load_model(digits_run / "checkpoints/last.safetensors")
    assert info.recipe["transform"]["eval"] == [] and info.input_hw == (8, 8)


def test_photographs_are_stretched_to_it_and_that_is_said_once(run, digits_run, photographs):
    last = digits_run / "checkpoints/last.safetensors"
    both, err = answers(run, last, photographs)
    assert [row["path"].rpartition("/")[2] for row in both] == ["a.png", "b.png"]
    assert err.count("stretched to the model's 8x8") == 1 and "a.png: 60x90 pixels" in err
    alone = answers(run, last, photographs / "a.png")[0][0]  # the same picture, added up in another order
    assert alone["class"] == both[0]["class"] and alone["score"] == pytest.approx(both[0]["score"], rel=1e-4)
    opened = torch_model.open_model(last, CPU)
    image = torch.from_numpy(np.asarray(Image.open(photographs / "a.png")).copy()).permute(2, 0, 1)
    stretched = torch.nn.functional.interpolate(image[None].float(), (8, 8), mode="bilinear", antialias=True)
    wanted = opened.runner()(stretched.round().byte())[0].softmax(1).max().item()
    assert abs(both[0]["score"] - wanted) < 1e-2


def test_digits_of_the_right_size_are_left_alone(run, digits_run, tmp_path):
    assert run("data", "save", "digits", "--out", tmp_path, "--count", 3)[0] == 0
    assert "stretched" not in answers(run, digits_run / "checkpoints/last.safetensors", tmp_path)[1]


def test_evaluation_stretches_too_unless_told_otherwise(run, digits_run, photographs, tmp_path):
    last = digits_run / "checkpoints/last.safetensors"
    for name in "01":
        (tmp_path / "val" / name).mkdir(parents=True)
    shutil.copy(photographs / "a.png", tmp_path / "val/0/a.png")
    shutil.copy(photographs / "b.png", tmp_path / "val/1/b.png")
    data = ["data={name: image_folder}", "--data", tmp_path]
    code, out, err = run("eval", last, *data, "--json")
    assert code == 0 and json.loads(out)["images"] == 2 and err.count("stretched") == 1
    code, _, err = run("eval", last, *data, "transform.eval=[{center_crop: {size_px: 48}}]")
    assert code == 0 and "stretched" not in err


def test_files_written_before_still_open_and_keep_sizes(run, digits_run, photographs, tmp_path):
    state_dict, info, _ = load_model(digits_run / "checkpoints/last.safetensors")
    document = json.loads(info.to_json())
    del document["input_hw"]

    class Before(ModelInfo):
        def to_json(self) -> str:
            return json.dumps(document, sort_keys=True)

    save_model(tmp_path / "old.safetensors", state_dict, Before(recipe=info.recipe, class_names=info.class_names))
    assert load_model(tmp_path / "old.safetensors")[1] == info.model_copy(update={"input_hw": None})
    assert len(answers(run, tmp_path / "old.safetensors", photographs / "a.png")[0]) == 1
    code, _, err = run("predict", tmp_path / "old.safetensors", photographs)
    assert code == 3 and one_line(err)


def test_an_export_without_size_has_it_and_stretches_too(run, digits_run, photographs, tmp_path):
    last, file = digits_run / "checkpoints/last.safetensors", tmp_path / "last.onnx"
    code, out, err = run("export", last, "--format", "onnx", "--out", file, "--json")
    assert code == 0 and json.loads(out)["size"] == [8, 8] and "stretched" not in err
    ours, theirs = answers(run, last, photographs)[0], answers(run, file, photographs)
    assert theirs[1].count("stretched to the model's 8x8") == 1
    assert [row["class"] for row in theirs[0]] == [row["class"] for row in ours]
    assert all(abs(a["score"] - b["score"]) < 1e-4 for a, b in zip(theirs[0], ours, strict=True))


def test_an_export_of_another_size_stretches_to_that(digits_run):
    opened = torch_model.open_model(digits_run / "checkpoints/last.safetensors", CPU)
    assert export.input_size(opened, None) == (8, 8) and export.resized(opened, (8, 8)) is opened
    larger = export.resized(opened, (64, 64))
    assert export.input_size(larger, None) == (64, 64) and larger.info.metrics == {}


def test_a_recipe_that_resizes_is_left_to_do_so(digits_run):
    opened = open_any(digits_run / "checkpoints/last.safetensors", CPU)
    resizing = opened.changed(("transform.eval=[{resize: {size_px: 40, mode: stretch}}]",))
    assert len(opened.pipeline().operations) == len(resizing.pipeline().operations) == 1
    assert build.given_size(resizing.pipeline()) == (40, 40)


def test_the_zoos_densenet100_takes_cifars_size(tmp_path, photographs):
    model = {"name": "densenet100", "num_classes": 10, **mindspore.ZOO["densenet100"]}
    state_dict = {name: torch.rand(t.shape) if t.dim() else t for name, t in meta_network(model).state_dict().items()}
    (tmp_path / "zoo.ckpt").write_bytes(mindspore.write(state_dict, model))
    model = convzoo.load(tmp_path / "zoo.ckpt", device="cpu")
    assert len(list(model.predict(photographs))) == 2
