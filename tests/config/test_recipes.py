"""Recipes: every shipped one is whole, and everything wrong in one is named with file, line and key."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from convzoo.build import check_recipe
from convzoo.config import recipe as recipes
from convzoo.config import registry
from convzoo.errors import UsageError
from convzoo.training.optim import build_schedule
from helpers import SMALL_CFG

GOOD = (recipes.SHIPPED / "tinydarknet-digits.yaml").read_text()


@pytest.mark.parametrize("name", recipes.shipped())
def test_a_shipped_recipe_is_whole(name):
    text = (recipes.SHIPPED / f"{name}.yaml").read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert any(line.startswith("# Run: ") and f"train {name}" in line for line in header)
    assert any("Cost: " in line for line in header)
    recipe = recipes.load(name)
    check_recipe(recipe)
    with torch.device("meta"):
        model = registry.bind("model", recipe.model, recipe.at("model"))()
    num_classes = recipe.model["num_classes"]
    outputs = num_classes if recipe.task == "classify" else 3 * (5 + num_classes)
    assert any(parameter.shape[0] == outputs for parameter in model.parameters())
    rates = [
        build_schedule(recipe.schedule, recipe.optim.lr, 10, recipe.train.epochs)(step)
        for step in range(10 * recipe.train.epochs)
    ]
    assert max(rates) == pytest.approx(recipe.optim.lr) and min(rates) >= 0


@pytest.mark.parametrize("name", recipes.shipped())
def test_a_recipe_survives_being_written_out(name, tmp_path):
    recipe = recipes.load(name)
    path = tmp_path / "again.yaml"
    path.write_text(recipe.to_yaml())
    assert recipes.load(path).plain() == recipe.plain()


def with_cfg(text: str) -> recipes.Recipe:
    plain = recipes.load("yolov3-tiny-digits").plain()
    return recipes.from_plain({**plain, "model": {"name": "darknet", "cfg": text, "num_classes": 2}}, "my")


def test_a_networks_description_is_written_as_it_is(tmp_path):
    """Line by line, below its key; what a literal cannot hold is quoted, Windows line ends among it."""
    lines = SMALL_CFG.splitlines()
    written = with_cfg(SMALL_CFG).to_yaml()
    assert "\n  cfg: |\n" + "".join(f"    {line}\n" if line else "\n" for line in lines) in written
    assert "cfg: |" not in with_cfg(SMALL_CFG.replace("\n", "\r\n")).to_yaml()


@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from(list("a #:|>-'\"%@\t\n\r\x07\x85\xa0\u2028\ufeffé网"))))
@example(SMALL_CFG.replace("\n", "\r\n"))
@example("  [net]\nwidth=32 \n\n")
@example("# r\x85\n[net]\n")
def test_any_description_is_read_back_byte_for_byte(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "again.yaml")
        path.write_text(with_cfg(text).to_yaml(), encoding="utf-8")
        assert recipes.load(path).model["cfg"] == text


def wrong(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        (wrong("nesterov: true", "nestrov: true"), 15, ["optim.nestrov", "did you mean 'nesterov'?"]),
        (wrong("lr: 0.1", "lr: 1e-4"), 15, ["optim.lr", "write 1.0e-4"]),
        (wrong("lr: 0.1", "lr: fast"), 15, ["optim.lr", '"fast"']),
        (wrong("lr: 0.1", "lr: -1.0"), 15, ["optim.lr", "greater than 0"]),
        (wrong("name: sgd", "name: adam"), 15, ["optim.name", "sgd"]),
        (wrong("seed: 0", "seed: yes"), 6, ["seed", "true"]),
        (wrong("seed: 0", "seed: 0\nseed: 1"), 7, ["seed", "duplicate key"]),
        (wrong("lr: 0.1,", "lr: 0.1, lr: 0.2,"), 15, ["optim.lr", "duplicate key"]),
        (wrong("epochs: 20", "epochs: 20.5"), 17, ["train.epochs", "20.5"]),
        (wrong("name: tinydarknet", "name: tinydarknte"), 13, ["model.name", "did you mean 'tinydarknet'?"]),
        (wrong("num_classes: 10", "num_clases: 10"), 13, ["model.num_clases", "did you mean 'num_classes'?"]),
        (wrong("num_classes: 10", "num_classes: ten"), 13, ["model.num_classes", '"ten"']),
        (wrong("padding_px: 1", "padding: 1"), 9, ["transform.train.0.pad_crop.padding", "did you mean 'padding_px'?"]),
        (
            wrong("[{pad_crop: {padding_px: 1}}", "[{padcrop: {padding_px: 1}}"),
            9,
            ["unknown transform 'padcrop'", "pad_crop"],
        ),
        (wrong("mode: stretch}}]\n  eval", "mode: squash}}]\n  eval"), 9, ["resize.mode", "'stretch'", "squash"]),
        (wrong("name: digits", "name: digit"), 7, ["data.name", "did you mean 'digits'?"]),
        (wrong("max_train_images: null", "max_train: 3"), 7, ["data.max_train", "max_train_images"]),
        (wrong("task: classify", "task: clasify"), 5, ["task", "classify"]),
        (wrong("task: classify", "tsk: classify"), 5, ["tsk", "did you mean 'task'?"]),
        (
            wrong("warmup_epochs: 2", "milestones: [3]"),
            16,
            ["schedule", "milestones has no meaning for cosine_annealing"],
        ),
        (wrong("warmup_epochs: 2", "warmup_epochs: .nan"), 16, ["schedule.warmup_epochs", "finite"]),
        (wrong("seed: 0", "seed: !!python/name:os.system"), 6, ["seed"]),
        (wrong("seed: 0", "seed: &a 0\nloss: *a"), None, ["alias"]),
        (wrong("seed: 0", "seed: 2026-01-01"), 6, ["seed", "timestamp"]),
        (wrong("seed: 0", "seed: ["), None, ["not YAML"]),
        (wrong("optim: {name", "optm: {name"), 15, ["optm", "did you mean 'optim'?"]),
        ("", 1, ["empty"]),
        ("- 1\n", 1, ["mapping"]),
    ],
)
def test_what_is_wrong_is_named_with_its_place(run, tmp_path, text, line, parts):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    code, out, err = run("train", path, "--out", tmp_path / "run")
    assert code == 2 and out == ""
    assert len(err.splitlines()) == 1
    assert f"{path}:{line}:" in err if line else f"{path}:" in err
    for expected in parts:
        assert expected in err
    assert not (tmp_path / "run").exists()


def test_a_missing_section_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join(line for line in GOOD.splitlines() if not line.startswith("optim")))
    with pytest.raises(UsageError, match="optim: required"):
        recipes.load(path)


def test_names_and_files_that_do_not_exist():
    with pytest.raises(UsageError, match="did you mean 'vgg16-cifar10'"):
        recipes.load("vgg16-cifar")
    with pytest.raises(UsageError, match="no such file"):
        recipes.load("mine/none.yaml")


def test_overrides_replace_keys_and_are_checked():
    recipe = recipes.load("tinydarknet-digits", ["optim.lr=0.05", "transform.train=[]", "data.max_train_images=7"])
    assert recipe.optim.lr == 0.05 and recipe.transform.train == [] and recipe.data["max_train_images"] == 7
    for override, message in [
        ("optim.lr=1e-4", "command line: optim.lr: .*write 1.0e-4"),
        ("lr=0.1", "did you mean 'optim.lr'"),
        ("optim.lr", "write section.key=value"),
        ("optim.lr.x=1", "has no keys of its own"),
        ("transform.train=[{flip_lr: {prob: 0.5}, cutout: {}}]", "one name"),
    ]:
        with pytest.raises(UsageError, match=message):
            recipes.load("tinydarknet-digits", [override])
