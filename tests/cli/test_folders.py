"""A folder of model files: a row each whatever program they are of, and one that fails stops none of the others."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from convzoo import cli
from convzoo.config import registry
from convzoo.convert import darknet, mindspore
from convzoo.model_file import load_model
from helpers import one_line

TINY = {"name": "tinydarknet", "num_classes": 1000}
ZOO_TINY = {**TINY, **mindspore.ZOO["tinydarknet"]}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Four pictures of two of ImageNet's classes."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for wnid in ("n03218198", "n02119789"):
        (folder / "val" / wnid).mkdir(parents=True)
        for number in range(2):
            picture = rng.integers(0, 256, (250, 300, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / "val" / wnid / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Tiny-DarkNet of Darknet and of the MindSpore zoo, as their programs write it, and files that are no weights."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    (folder / "darknet.weights").write_bytes(darknet.write(registry.bind("model", TINY)().state_dict(), TINY))
    (folder / "zoo.ckpt").write_bytes(mindspore.write(registry.bind("model", ZOO_TINY)().state_dict(), ZOO_TINY))
    (folder / "notes.txt").write_text("not a model")
    (folder / "training.state.pt").write_text("not a model either")
    return folder


@pytest.fixture(scope="module")
def mixed(weights, tmp_path_factory):
    """The same, with the first converted and exported beside them."""
    folder = tmp_path_factory.mktemp("mixed") / "models"
    shutil.copytree(weights, folder)
    ours = folder / "ours.safetensors"
    assert cli.main(["convert", str(folder / "darknet.weights"), "--out", str(ours)]) == 0
    assert cli.main(["export", str(ours), "--format", "onnx", "--size", "224,224"]) == 0
    assert cli.main(["export", str(ours), "--format", "openvino", "--size", "224,224"]) == 0
    return folder


def rows(run, folder, *options) -> tuple[int, dict[str, dict], str]:
    code, out, err = run("eval", folder, *options, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    return code, {row["model"].rpartition("/")[2]: row for row in found}, err


@pytest.mark.parametrize("name", ["darknet.weights", "zoo.ckpt"])
def test_weights_of_another_program_are_evaluated_and_used_as_they_are(run, weights, tree, name):
    code, found, _ = rows(run, weights / name, "--data", tree)
    assert code == 0 and found[name]["images"] == 4
    code, out, _ = run("predict", weights / name, tree / "val", "--json")
    assert code == 0 and len(out.splitlines()) == 4


def test_a_folder_gives_a_row_for_each_file_of_any_program(run, mixed, tree, tmp_path):
    code, found, _ = rows(run, mixed, "--data", tree, "--out", tmp_path / "out")
    files = ["darknet.weights", "ours.onnx", "ours.safetensors", "ours.xml", "zoo.ckpt"]
    assert code == 0 and list(found) == files and all(row["images"] == 4 for row in found.values())
    # darknet.weights is what the three of ours were made from
    assert len({(row["top1"], row["top5"]) for name, row in found.items() if name != "zoo.ckpt"}) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files  # two stems are the same


def test_a_file_that_does_not_open_is_named_and_the_others_are_evaluated(run, weights, tree, tmp_path):
    folder = tmp_path / "models"
    shutil.copytree(weights, folder)
    (folder / "broken.ckpt").write_bytes((folder / "zoo.ckpt").read_bytes()[:-7])
    code, found, err = rows(run, folder, "--data", tree)
    assert code == 1 and list(found) == ["darknet.weights", "zoo.ckpt"]
    assert "1 of 3 files failed: broken.ckpt" in one_line(err)
    assert any(line.startswith("failed: ") and "broken.ckpt" in line for line in err.splitlines())


def test_a_run_still_gives_its_checkpoints_alone(run, digits_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(digits_run, folder)
    (folder / "stray.weights").write_text("no weights")
    (folder / "checkpoints/stray.safetensors").write_bytes((folder / "checkpoints/last.safetensors").read_bytes())
    code, found, _ = rows(run, folder)
    assert code == 0 and len(found) == 4
    assert all(name.startswith(("step-", "stray")) for name in found)


def test_converting_a_folder_converts_what_is_foreign_in_it(run, mixed, tmp_path):
    out = tmp_path / "converted"
    code, text, _ = run("convert", mixed, "--out", out)
    assert code == 0 and len(text.splitlines()) == 2
    assert text.splitlines()[0] == f"{mixed / 'darknet.weights'}  ->  {out / 'darknet.safetensors'}"
    assert sorted(path.name for path in out.iterdir()) == ["darknet.safetensors", "zoo.safetensors"]
    assert load_model(out / "zoo.safetensors")[1].recipe["model"]["leaky_slope"] == 0.2
    code, text, _ = run("convert", out, "--to", "mindspore", "--out", tmp_path / "back", "--json")
    assert code == 1 and json.loads(text)["source"] == "zoo.safetensors"  # Darknet's is not a network of the zoo
    assert (tmp_path / "back/zoo.ckpt").read_bytes() == (mixed / "zoo.ckpt").read_bytes()


def test_converting_a_folder_goes_on_after_a_failure_and_overwrites_no_source(run, weights, tmp_path):
    folder = tmp_path / "models"
    shutil.copytree(weights, folder)
    (folder / "broken.weights").write_bytes(b"<html>")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, text, err = run("convert", folder, "--out", folder)
    assert code == 1 and len(text.splitlines()) == 2 and "1 of 3 files failed: broken.weights" in one_line(err)
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    added = sorted({path.name for path in folder.iterdir()} - set(before))
    assert added == ["darknet.weights.safetensors", "zoo.ckpt.safetensors"]


def test_a_folder_needs_a_folder(run, weights, tmp_path):
    (tmp_path / "file").write_text("")
    for out, message in ((tmp_path / "file", "a file"), (tmp_path / "no/such", "no such folder")):
        code, text, err = run("convert", weights, "--out", out)
        assert code == 2 and text == "" and message in one_line(err)
