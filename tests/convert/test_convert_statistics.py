"""`convert --check --data`: a network's batch norms must get on real pictures what they got in training."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from convzoo.convert.convert import open_converted
from convzoo.convert.sources import open_source
from convzoo.convert.statistics import MEDIAN_LIMIT, Statistics, StatisticsError, batch_norm_statistics, pictures_of
from convzoo.inference.torch_model import TorchModel, open_model
from helpers import one_line

CPU = torch.device("cpu")
WRONG = {
    "0..255": ({"std": [1 / 255] * 3}, {}),
    "ImageNet's normalisation": ({"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, {}),
    "slope": ({}, {"leaky_slope": 0.01}),
}


@pytest.fixture(scope="module")
def tiny(shared):
    return open_source(shared / "data/weights/tiny.weights")


def measured(model: TorchModel, folder: Path, count: int = 16) -> Statistics:
    statistics = batch_norm_statistics(model, list(pictures_of(model, folder, count)))
    assert statistics
    return statistics


def statistics_of(source, folder, transform, model):
    converted = source.converted
    changed = {"transform": {**converted.transform, **transform}, "model": {**converted.model, **model}}
    opened = open_converted(replace(source, converted=replace(converted, **changed)), CPU)
    return measured(opened, folder)


def test_the_original_tiny_darknet_gets_what_it_got_in_training(shared, tiny):
    for folder in ("imagenet-sample/val", "coco-mini/val2017"):
        statistics = statistics_of(tiny, shared / "data" / folder, {}, {})
        statistics.require("tiny")
        assert len(statistics.layers) == 15 and statistics.num_pictures == 16
        assert statistics.median < 0.3 and statistics.worst.log2_variance < 0.8
        assert all(layer.mean_shift < 0.2 for layer in statistics.layers)


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_network_or_preprocessing_fails(shared, tiny, case):
    statistics = statistics_of(tiny, shared / "data/imagenet-sample/val", *WRONG[case])
    where = "not in the first layer" if case == "slope" else "already in the first layer"
    with pytest.raises(StatisticsError, match=where) as raised:
        statistics.require("tiny")
    assert raised.value.exit_code == 4 and "\n" not in str(raised.value)


def test_the_command_prints_a_row_a_layer_and_keeps_the_proof(run, shared, tmp_path):
    weights, out = shared / "data/weights/tiny.weights", tmp_path / "tiny.safetensors"
    check = ["--check", "--data", shared / "data/imagenet-sample"]
    code, text, _ = run("convert", weights, *check, "--out", out)
    assert code == 0 and "features.18.norm" in text and "not seen by this: swapped colours" in text
    assert "batch norms on 16 pictures" in " ".join(open_model(out, CPU).info.provenance["checked"])
    plain = json.loads(run("convert", weights, *check, "--json", "--out", out)[1])["batch_norms"]
    assert plain["pictures"] == 16 and len(plain["layers"]) == 15 and plain["median"] < MEDIAN_LIMIT


@pytest.fixture(scope="module")
def digits(digits_run, tmp_path_factory):
    """Twenty-four handwritten digits as a folder of pictures, and the network that learned such."""
    from convzoo import cli

    folder = tmp_path_factory.mktemp("digits") / "pictures"
    assert cli.main(["data", "save", "digits", "--split", "val", "--count", "24", "--out", str(folder)]) == 0
    return folder, digits_run / "checkpoints/last.safetensors"


def test_a_network_of_our_own_training_passes_and_fails_under_another_normalisation(digits):
    folder, path = digits
    model = open_model(path, CPU)
    statistics = measured(model, folder)
    statistics.require(path.name)
    assert statistics.num_pictures == 16 and not model.model.training
    assert not any(module._forward_pre_hooks for module in model.model.modules())
    other = open_model(path, CPU, ("transform.mean=[0.0, 0.0, 0.0]", "transform.std=[1.0, 1.0, 1.0]"))
    with pytest.raises(StatisticsError, match="already in the first layer"):
        measured(other, folder).require(path.name)


def test_pictures_of_a_data_set_that_is_no_folder_of_them(digits, tmp_path):
    """A zip of class folders is read as the data set of the recipe; the pictures are spread over it."""
    folder, path = digits
    for number, picture in enumerate(sorted(folder.rglob("*.png"))):
        target = tmp_path / "tree/val" / "ab"[number % 2] / picture.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, target)
    archive = Path(shutil.make_archive(str(tmp_path / "tree"), "zip", tmp_path / "tree"))
    model = open_model(path, CPU, ("data={name: image_folder}",))
    pictures = list(pictures_of(model, archive, 9))
    assert len(pictures) == 9 and {Path(picture.path).parent.name for picture in pictures} == {"a", "b"}
    assert measured(model, archive, 9).num_pictures == 9


def test_what_fails_prints_its_table_and_writes_nothing(run, digits, tmp_path):
    """Darknet's file does not hold the normalisation, so that conversion attaches another one."""
    folder, path = digits
    foreign, out = tmp_path / "digits.weights", tmp_path / "again.safetensors"
    assert run("convert", path, "--to", "darknet", "--out", foreign)[0] == 0
    code, text, err = run("convert", foreign, "--num-classes", 10, "--check", "--data", folder, "--out", out)
    assert code == 4 and "digits.weights: batch norms on 16 pictures" in one_line(err)
    assert "features.0.norm" in text and not out.exists()
    code, text, _ = run("convert", foreign, "--num-classes", 10, "--check", "--data", folder, "--json", "--out", out)
    assert code == 4 and json.loads(text)["batch_norms"]["median"] > MEDIAN_LIMIT


def test_channels_that_hardly_vary_do_not_decide(digits):
    folder, path = digits
    model = open_model(path, CPU)
    before = measured(model, folder)
    norm = next(module for module in model.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert norm.running_var is not None
    norm.running_var[::2] = norm.eps / 1000
    after = measured(model, folder)
    assert after.layers[0].num_judged == before.layers[0].num_judged - 8
    assert after.layers[0].log2_variance < 1
    norm.running_var[:] = norm.eps / 1000
    after = measured(model, folder)
    assert after.layers[0].num_judged == 0 and after.layers[0] not in after.judged


def test_a_network_without_batch_norm_has_nothing_to_compare(digits):
    model = replace(open_model(digits[1], CPU), model=torch.nn.Conv2d(3, 10, 1))
    assert batch_norm_statistics(model, pictures_of(model, digits[0])) is None


def test_pictures_that_are_none_or_too_few(run, tiny_weights, digits, tmp_path):
    out = tmp_path / "x.safetensors"
    (tmp_path / "few").mkdir()
    shutil.copy(next(digits[0].rglob("*.png")), tmp_path / "few")
    for options, code, message in (
        (["--check", "--data", tmp_path / "few"], 3, "1 pictures; fewer than 8 tell too little"),
        (["--data", tmp_path], 2, "--data has no meaning without --check"),
        (["--check", "--data", tmp_path / "none"], 2, "none"),
        (["--to", "darknet", "--data", tmp_path, "--check"], 2, "--check has no meaning with --to"),
    ):
        got, _, err = run("convert", tiny_weights, *options, "--out", out)
        assert got == code and message in one_line(err) and not out.exists()
