"""`data recipe`: what is chosen for the data, the machine and the time, and that it trains as it is."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from convzoo.config import recipe as recipes
from convzoo.errors import DataError, UsageError
from convzoo.training.own_recipe import OwnRecipe, _batched, _sized
from helpers import one_line, rows


def save_classes(root, counts, side=40):
    """Write pictures whose class is their brightness."""
    for number, (kind, count) in enumerate(counts.items()):
        for i in range(count):
            rng = np.random.RandomState(100 * number + i)
            cells = (80 * number + rng.randint(0, 80, (5, 5, 3))).astype(np.uint8)
            path = root / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(cells).resize((side, side)).save(path)


def save_boxes(root, count=12):
    """Write pictures with one bright box each, as YOLO text without a split."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    (root / "classes.txt").write_text("box\n")
    for i in range(count):
        rng = np.random.RandomState(i)
        pixels = rng.randint(0, 60, (64, 64, 3)).astype(np.uint8)
        x, y, w, h = (int(value) for value in (*rng.randint(2, 30, 2), *rng.randint(8, 30, 2)))
        pixels[y : y + h, x : x + w] = 220
        Image.fromarray(pixels).save(root / f"images/{i}.png")
        (root / f"labels/{i}.txt").write_text(f"0 {(x + w / 2) / 64} {(y + h / 2) / 64} {w / 64} {h / 64}\n")


def test_a_classifiers_recipe_has_its_reasons_and_trains(run, tmp_path):
    save_classes(tmp_path / "data", {"dark": 40, "bright": 10})
    path = tmp_path / "mine.yaml"
    command = ["data", "recipe", tmp_path / "data", "--minutes", "0.5", "--out", path, "--workers", "0"]
    code, out, err = run(*command)
    assert code == 0 and f"convzoo train {path} --data {tmp_path}/data" in out, err
    recipe, text = recipes.load(path), path.read_text()
    assert recipe.data == {"name": "own", "layout": "class_folders"} and recipe.model["num_classes"] == 2
    assert recipe.loss == {"class_weights": "balanced"} and "32 pictures of dark, 8 of bright" in text
    assert recipe.train.batch_size == 4 and "8 steps or more" in text  # 40 pictures
    assert recipe.optim.lr == pytest.approx(4 * 0.05 / 32, rel=1e-2) and 1 <= recipe.train.epochs <= 300
    assert "size_px: up to 32, for half of the pictures' shorter sides are at most 40" in text
    sections = [line.partition(":")[0] for line in text.splitlines() if line[0] not in "# "]
    for section in ("task", "data", "transform", "model", "loss", "optim", "train"):
        assert text.splitlines()[text.splitlines().index(next(iter_lines(text, section))) - 1].startswith("# "), section
    assert sections[0] == "task"
    argv = ["train", path, "train.epochs=2", "--data", tmp_path / "data", "--out", tmp_path / "run", "--workers", "0"]
    assert run(*argv)[0] == 0 and len(rows(tmp_path / "run", "epoch")) == 2
    code, _, err = run(*command)
    assert code == 2 and "there already" in one_line(err)


def iter_lines(text, section):
    return (line for line in text.splitlines() if line.startswith(f"{section}:"))


def test_a_detectors_recipe_has_the_anchors_of_its_boxes(run, tmp_path):
    save_boxes(tmp_path / "data")
    path = tmp_path / "mine.yaml"
    code, _, err = run("data", "recipe", tmp_path / "data", "--minutes", "0.5", "--out", path, "--workers", "0")
    assert code == 0, err
    recipe = recipes.load(path)
    anchors = np.array(recipe.model["anchors_px"])
    assert recipe.task == "detect" and anchors.shape == (2, 3, 2) and anchors.min() >= 8 and anchors.max() <= 30
    assert "anchors_px: " in path.read_text() and recipe.transform.eval == [{"letterbox": {"size_px": 64}}]
    argv = ["train", path, "train.epochs=1", "--data", tmp_path / "data", "--out", tmp_path / "run", "--workers", "0"]
    assert run(*argv)[0] == 0


def test_no_time_for_an_epoch_is_one_line(run, tmp_path):
    save_classes(tmp_path / "data", {"dark": 6, "bright": 6})
    for minutes, words in (("0.00001", "no epoch fits into the time: one takes"), ("-1", "more than 0")):
        argv = ["data", "recipe", tmp_path / "data", "--minutes", minutes, "--out", tmp_path / "x.yaml"]
        code, out, err = run(*argv, "--workers", "0")
        assert (code, out) == (2, "") and words in one_line(err)
    assert not (tmp_path / "x.yaml").exists()


def test_no_gpu_is_one_line(run, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    save_classes(tmp_path / "data", {"dark": 6, "bright": 6})
    argv = ["data", "recipe", tmp_path / "data", "--device", "cuda", "--out", tmp_path / "x.yaml"]
    code, out, err = run(*argv)
    assert (code, out) == (2, "") and "only cpu" in one_line(err)
    assert "the time is that of this machine's processor" in run(*argv[:3], "--out", tmp_path / "y.yaml", "--json")[2]


def test_the_batch_is_doubled_until_it_does_not_fit():
    tried = []

    def seconds(recipe):
        tried.append(recipe.train.batch_size)
        return None if recipe.train.batch_size > 16 else 0.01

    made = OwnRecipe("classify", {"name": "own"}, ["a", "b"], 32)
    chosen, _ = _batched(made, 10_000, seconds)
    assert tried == [1, 4, 8, 16, 32] and chosen.batch_size == 16
    assert chosen.reasons["train"] == ["batch_size: 32 do not fit into the memory"]
    assert _batched(made, 70, seconds)[0].batch_size == 8
    with pytest.raises(DataError, match="not one picture fits"):
        _batched(made, 70, lambda recipe: None)


def test_the_size_shrinks_until_enough_epochs_fit():
    """The time is just that of 40 epochs of 1000 pictures at 96 px and half the width."""

    def seconds(recipe):
        (operation,) = recipe.transform.eval
        return recipe.model.get("width", 1) * operation["letterbox"]["size_px"] ** 2 / 20_000

    made = OwnRecipe("detect", {"name": "own"}, ["a"], 160)
    chosen = _sized(made, 1000, seconds, 40 * 1000 * 96**2 / 40_000)
    assert (chosen.size_px, chosen.width) == (96, 0.5) and "first size at which 40" in chosen.reasons["transform"][0]
    assert _sized(made, 1000, seconds, 1e9).size_px == 160
    with pytest.raises(UsageError, match="no epoch fits"):
        _sized(made, 1000, seconds, 1)


def test_a_recipe_in_the_making_is_one(tmp_path):
    made = OwnRecipe("detect", {"name": "own"}, ["a"], 96, width=0.5).because("model", "width: 0.5")
    assert yaml.safe_load(made.text()) == {
        **yaml.safe_load(made.text()),
        "model": {"name": "yolov3_tiny", "num_classes": 1, "width": 0.5},
    }
    assert json.dumps(made.recipe().plain())


def test_inspect_prints_the_commands_of_a_recipe(run, tmp_path):
    save_boxes(tmp_path / "mine")
    found = json.loads(run("data", "inspect", tmp_path / "mine", "--minutes", "7", "--json")[1])
    data = tmp_path / "mine"
    assert found["commands"] == [
        f"convzoo data recipe {data} --minutes 7 --out mine.yaml",
        f"convzoo train mine.yaml --data {data} --out runs/mine",
        f"convzoo eval runs/mine/checkpoints/last.safetensors --data {data}",
    ]
