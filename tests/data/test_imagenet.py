"""ImageNet's classes: Darknet's order comes with the weights, ids stay the names, titles are for people."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

import convzoo
from convzoo.config import registry
from convzoo.convert import darknet
from convzoo.data.imagenet import darknet_wnids, titles, wnids
from convzoo.model_file import load_model
from convzoo.report.draw import classified


def test_the_ids_are_a_thousand_and_their_titles_are_right(shared):
    table = [line.split("\t") for line in (shared / "data/imagenet-sample/synsets.tsv").read_text().splitlines()]
    assert wnids() == [wnid for _, wnid, _ in table] and len(set(wnids())) == 1000
    assert list(darknet_wnids()) == (shared / "data/imagenet-sample/darknet_wnids.txt").read_text().split()
    for (_, wnid, name), title in zip(table, titles(wnids()) or [], strict=True):
        assert title.lower().startswith(name.replace("_", " ").lower()), wnid  # torchvision's two cranes say which
    assert titles(["n03218198", "n02119789"]) == ["dogsled", "kit fox"]
    assert titles(["n03218198", "cat"]) is None and titles(["0", "1"]) is None and titles([]) is None


def test_timm_lists_the_same_ids():
    timm_data = pytest.importorskip("timm.data")
    assert timm_data.ImageNetInfo("imagenet-1k").label_names() == wnids()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Darknet's Tiny-DarkNet with its 1000 outputs, of random weights, converted without --classes."""
    from convzoo import cli

    folder = tmp_path_factory.mktemp("tiny")
    model = {"name": "tinydarknet", "num_classes": 1000}
    torch.manual_seed(0)
    network = registry.bind("model", model)()
    (folder / "tiny.weights").write_bytes(darknet.write(network.state_dict(), model))
    assert cli.main(["convert", str(folder / "tiny.weights"), "--out", str(folder / "tiny.safetensors")]) == 0
    return folder / "tiny.safetensors"


@pytest.fixture
def tree(tmp_path):
    """Four pictures of two of ImageNet's classes."""
    rng = np.random.default_rng(0)
    for wnid in ("n03218198", "n02119789"):
        (tmp_path / "tree/val" / wnid).mkdir(parents=True)
        for number in range(2):
            picture = rng.integers(0, 256, (250, 300, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "tree/val" / wnid / f"{wnid}-{number}.png")
    return tmp_path / "tree"


def test_darknets_outputs_have_names_without_a_file_of_them(tiny):
    _, info, _ = load_model(tiny)
    assert info.class_names == list(darknet_wnids()) and "class_names" not in info.provenance
    assert darknet.read(tiny.with_name("tiny.weights")).notes[0].startswith("class names: ImageNet's WordNet ids")


def test_predictions_have_titles_beside_their_ids(run, tiny, tree, tmp_path):
    code, table, _ = run("predict", tiny, tree)
    row = json.loads(run("predict", tiny, tree, "--json")[1].splitlines()[0])
    assert code == 0 and len(row["classes"]) == 5 and row["title"] == row["classes"][0]["title"]
    assert [one["title"] for one in row["classes"]] == titles([one["class"] for one in row["classes"]])
    assert f"{row['title']} ({row['class']})" in table.splitlines()[0]
    assert run("predict", tiny, tree, "--save", tmp_path / "drawn")[0] == 0
    (answer,) = convzoo.load(tiny, device="cpu").predict(tree / "val/n02119789/n02119789-0.png")
    without = dataclasses.replace(answer, titles=None).drawn()
    with Image.open(tmp_path / "drawn/n02119789-0.png") as drawn:
        assert drawn.size == without.size and drawn.tobytes() == answer.drawn().tobytes() != without.tobytes()


def test_a_title_too_long_for_a_picture_loses_its_id():
    image, long = np.zeros((250, 300, 3), np.uint8), "American Staffordshire terrier"
    drawn = classified(image, [f"{long} (n02093428)", "tench (n01440764)"], [0.9, 0.1], [long, "tench"])
    assert drawn.tobytes() == classified(image, [long, "tench (n01440764)"], [0.9, 0.1]).tobytes()


def test_tables_of_an_evaluation_have_titles_beside_the_ids(run, tiny, tree, tmp_path):
    assert run("eval", tiny, "--data", tree, "--out", tmp_path / "out")[0] == 0
    rows = {row["class"]: row for row in csv.DictReader((tmp_path / "out/per_class.csv").open())}
    assert len(rows) == 1000 and rows["n03218198"]["title"] == "dogsled" and rows["n03218198"]["images"] == "2"
    taken_for = rows["n03218198"]
    assert [taken_for["most_taken_for_title"]] == titles([taken_for["most_taken_for"]])
    worst = list(csv.DictReader((tmp_path / "out/worst.csv").open()))
    assert worst and {row["truth_title"] for row in worst} <= {"dogsled", "kit fox"}
    assert [row["predicted_title"] for row in worst] == titles([row["predicted"] for row in worst])


def test_other_classes_have_no_titles(run, digits_run, tmp_path):
    last = digits_run / "checkpoints/last.safetensors"
    assert run("data", "save", "digits", "--out", tmp_path / "pictures", "--count", 1)[0] == 0
    assert "title" not in run("predict", last, tmp_path / "pictures", "--json")[1]
    assert run("eval", last, "--out", tmp_path / "out")[0] == 0
    assert "title" not in (tmp_path / "out/per_class.csv").read_text()
