"""The fast CIFAR-10 recipes: the same networks as the long ones, one cycle, and they train."""

import itertools
import math

import numpy as np
import pytest
from PIL import Image

from convzoo.config import recipe as recipes
from convzoo.data.datasets.cifar10 import CLASS_NAMES
from convzoo.training.optim import build_schedule
from helpers import rows, weights

FAST = {"vgg16-cifar10-fast": "vgg16-cifar10", "densenet100-cifar10-fast": "densenet100-cifar10"}


@pytest.fixture(scope="module")
def cifar_tree(tmp_path_factory):
    """A picture a class and split, of the size and the classes of CIFAR-10."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("cifar")
    for split in ("train", "test"):
        for number, name in enumerate(CLASS_NAMES):
            (root / split / name).mkdir(parents=True)
            picture = rng.integers(0, 30, (32, 32, 3)) + 20 * number
            Image.fromarray(picture.astype(np.uint8)).save(root / split / name / "0.png")
    return root


@pytest.mark.parametrize("name", FAST)
def test_the_network_is_the_same_and_the_rate_makes_one_cycle(name):
    fast, long = recipes.load(name), recipes.load(FAST[name])
    assert fast.model == long.model and fast.train.epochs < long.train.epochs
    steps = 50_000 // fast.train.batch_size
    lr_at = build_schedule(fast.schedule, fast.optim.lr, steps, fast.train.epochs)
    rates = [lr_at(step) for step in range(steps * fast.train.epochs)]
    peak = rates.index(max(rates))
    assert max(rates) == fast.optim.lr and rates[0] < 0.002 * fast.optim.lr and rates[-1] < 0.001 * fast.optim.lr
    assert all(a < b for a, b in itertools.pairwise(rates[: peak + 1]))
    assert all(a >= b for a, b in itertools.pairwise(rates[peak:]))


@pytest.mark.parametrize("name", FAST)
def test_it_trains(run, cifar_tree, tmp_path, name):
    few = ["train.epochs=2", "train.batch_size=5", "train.eval_every_epochs=2", "train.precision=fp32"]
    code, _, err = run("train", name, *few, "--data", cifar_tree, "--out", tmp_path / "run", "--cache", "memory")
    assert code == 0, err
    losses = [row["loss"] for row in rows(tmp_path / "run", "step")]
    assert len(losses) == 4 and all(map(math.isfinite, losses))
    assert rows(tmp_path / "run", "epoch")[-1]["images"] == 10 and weights(tmp_path / "run")
