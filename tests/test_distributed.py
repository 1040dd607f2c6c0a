"""Two ranks equal one at the same global batch, through the real torchrun."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from convzoo.model_file import load_model
from convzoo.training.checkpoints import load_state
from helpers import IN_FLOAT64, QUICK, STILL, difference, first_line, momenta, torchrun


def grain(folder):
    """Pictures of grain: on the digits' flat backgrounds maxima tie exactly."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6)):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    from convzoo import cli

    folder = tmp_path_factory.mktemp("ranks")
    data = ["data.name=image_folder", "model.num_classes=2", "--data", str(grain(folder / "grain"))]
    torch.set_default_dtype(torch.float64)
    try:
        assert cli.main(["train", "densenet100-digits", *STILL, *data, "--out", str(folder / "one")]) == 0
    finally:
        torch.set_default_dtype(torch.float32)
    done = torchrun("train", "densenet100-digits", *STILL, *data, "--out", folder / "two", program=IN_FLOAT64)
    assert done.returncode == 0, done.stderr
    assert "batch 16 = 2 ranks x 1 micro-batches x 8" in done.stderr
    return folder


def test_two_ranks_end_where_one_does(both):
    weights = [load_model(both / name / "checkpoints/last.safetensors")[0] for name in ("one", "two")]
    assert weights[0]["features.conv0.weight"].dtype == torch.float64
    assert difference(*weights) < 1e-12
    assert difference(momenta(both / "one"), momenta(both / "two")) < 1e-9


def test_two_ranks_log_and_measure_the_same(both):
    one, two = (
        [json.loads(line) for line in (both / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two) == 4 + 2
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["train_top1"] == pytest.approx(b["train_top1"])
        assert a.get("images") == b.get("images") in (None, 12)
        if "top1" in a:
            assert a["top1"] == pytest.approx(b["top1"], abs=1e-9)


def test_evaluation_on_two_ranks_is_the_same_number(both, run):
    last = both / "one/checkpoints/last.safetensors"
    done = torchrun("eval", last, "--data", both / "grain", "--json")
    assert done.returncode == 0, done.stderr
    two, one = (json.loads(out) for out in (done.stdout, run("eval", last, "--data", both / "grain", "--json")[1]))
    for measured in (two, one):
        assert measured.pop("images_per_s") * measured.pop("seconds") == pytest.approx(12, rel=0.1)
    assert two == one


def test_the_state_remembers_its_ranks(both):
    assert load_state(both / "two/checkpoints/last.state.pt")["world_size"] == 2


@pytest.mark.slow
def test_a_batch_that_the_ranks_do_not_divide_is_refused(tmp_path):
    done = torchrun("train", "tinydarknet-digits", "train.batch_size=33", "--out", tmp_path / "run")
    assert done.returncode == 1 and "does not divide by 2 ranks" in first_line(done.stderr)
    assert "exitcode  : 2 " in done.stderr and not (tmp_path / "run").exists()


def test_what_two_ranks_measure_is_what_the_saved_weights_give(tmp_path, run):
    """Each rank has running statistics of its own, and averages them: those that are saved are the ones evaluated."""
    argv = ["train", "tinydarknet-digits", *QUICK, "train.ema_decay=0.9", "--out", tmp_path / "run"]
    done = torchrun(*argv)
    assert done.returncode == 0, done.stderr
    assert run("eval", tmp_path / "run/checkpoints/last.safetensors", "--out", tmp_path / "eval")[0] == 0
    measured, again = (
        [json.loads(line)["score"] for line in (folder / "pictures.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "run/eval", tmp_path / "eval")
    )
    assert len(measured) == 360 and measured == pytest.approx(again, rel=1e-4)
