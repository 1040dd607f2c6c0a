"""Schedules against the reference programs' values; parameter groups, freezing, loss scale, moving average."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from convzoo.config import recipe as recipes
from convzoo.config.recipe import Optim, Schedule
from convzoo.errors import ConvzooError, UsageError
from convzoo.models.vgg import vgg16
from convzoo.training.optim import LossScale, WeightAverage, build_optimizer, build_schedule, freeze, scaled_lr
from helpers import QUICK, same, weights


def reference(name, lr, steps_per_epoch, epochs, **keys):
    return Schedule(name=name, **keys), lr, steps_per_epoch, epochs


# name in lr.npz -> (schedule, base rate, steps an epoch, epochs)
REFERENCE = {
    "yolo_exponential__lr0.001_ep220-250_spe5_warm0_max320_g0.1": reference(
        "multi_step", 0.001, 5, 320, milestones=[220, 250]
    ),
    "yolo_exponential__lr0.001_ep6-9_spe5_warm4_max12_g0.1": reference(
        "multi_step", 0.001, 5, 12, milestones=[6, 9], warmup_epochs=4
    ),
    "yolo_exponential_milestone_in_warmup__lr0.001_ep2-9_spe5_warm4_max12_g0.1": reference(
        "multi_step", 0.001, 5, 12, milestones=[2, 9], warmup_epochs=4
    ),
    "yolo_cosine__lr0.001_spe5_warm4_max320_T320": reference(
        "cosine_annealing", 0.001, 5, 320, T_max=320, per="epoch", warmup_epochs=4
    ),
    "vgg_step__init0.01_max0.1_spe5_warm5_max70": reference(
        "polynomial", 0.1, 5, 70, power=2, warmup_epochs=5, warmup_start_lr=0.01
    ),
    "vgg_exponential__lr0.01_ep30-60-90-120_spe5_warm5_max130_g0.1": reference(
        "multi_step", 0.01, 5, 130, milestones=[30, 60, 90, 120], warmup_epochs=5
    ),
    "vgg_cosine__lr0.04_spe5_warm0_max90_T90": reference("cosine_annealing", 0.04, 5, 90, T_max=90, per="epoch"),
    "densenet100_multistep__lr0.1_ep150-225-300_spe5_max300_warm0": reference(
        "multi_step", 0.1, 5, 300, milestones=[150, 225, 300]
    ),
    "densenet121_cosine__lr0.1_T120_spe5_max120_warm0": reference("cosine_annealing", 0.1, 5, 120, per="epoch"),
    "densenet121_cosine__lr0.1_T120_spe5_max120_warm3": reference(
        "cosine_annealing", 0.1, 5, 120, per="epoch", warmup_epochs=3
    ),
    "densenet_multistep__lr0.1_ep2-8_spe5_max12_warm3": reference(
        "multi_step", 0.1, 5, 12, milestones=[2, 8], warmup_epochs=3
    ),
    "tinydarknet_exponential__lr0.1_ep70-140-210-280_spe5_max500_g0.3": reference(
        "multi_step", 0.1, 5, 500, milestones=[70, 140, 210, 280], gamma=0.3
    ),
}


# MindSpore's own functions in our archive -> the same; its warm-up begins at 0, ours a step later.
MINDSPORE = {
    "piecewise_constant_lr": reference("multi_step", 0.1, 10, 6, milestones=[1, 3]),
    "cosine_decay_lr": reference("cosine_annealing", 0.1, 5, 12, per="epoch"),
    "cosine_decay_lr_to_minimum": reference("cosine_annealing", 0.1, 5, 12, per="epoch", eta_min=0.01),
    "polynomial_decay_lr": reference("polynomial", 0.1, 60, 1, power=2),
    "warmup_lr": reference("constant", 0.4, 10, 4, warmup_epochs=2),
}


@pytest.mark.parametrize("name", MINDSPORE)
def test_a_schedule_equals_mindspores(own_mindspore, name):
    schedule, lr, steps_per_epoch, epochs = MINDSPORE[name]
    expected = np.load(own_mindspore / "lr/lr.npz")[name][name == "warmup_lr" :]
    lr_at = build_schedule(schedule, lr, steps_per_epoch, epochs)
    assert [lr_at(step) for step in range(epochs * steps_per_epoch)] == pytest.approx(expected, abs=1e-6 * lr)


@pytest.mark.parametrize("name", REFERENCE)
def test_a_schedule_equals_the_reference_program(shared, name):
    schedule, lr, steps_per_epoch, epochs = REFERENCE[name]
    expected = np.load(shared / "fixtures/mindspore/lr/lr.npz")[name]
    lr_at = build_schedule(schedule, lr, steps_per_epoch, epochs)
    got = np.array([lr_at(step) for step in range(epochs * steps_per_epoch)])
    assert len(got) == len(expected)
    assert np.abs(got - expected).max() <= 1e-6 * lr


def test_every_reference_schedule_but_two_is_covered(shared):
    names = set(np.load(shared / "fixtures/mindspore/lr/lr.npz").files)
    left = names - set(REFERENCE)
    assert all("V2" in name or "sample" in name for name in left) and len(left) == 2


def test_schedules_at_their_ends():
    constant = build_schedule(Schedule(warmup_epochs=1), 0.4, 4, 3)
    assert [constant(step) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    cosine = build_schedule(Schedule(name="cosine_annealing", eta_min=0.01), 0.1, 10, 4)
    assert cosine(0) == pytest.approx(0.1) and cosine(20) == pytest.approx(0.055) and cosine(400) == pytest.approx(0.01)
    burn_in = build_schedule(Schedule(name="polynomial", power=4, warmup_epochs=0.1, warmup_power=4), 0.1, 10_000, 80)
    assert burn_in(499) == pytest.approx(0.1 / 16) and burn_in(400_500) == pytest.approx(
        0.1 * (1 - 399_500 / 799_000) ** 4
    )


def test_norms_and_biases_do_not_decay():
    optimizer = build_optimizer(
        vgg16(num_classes=10, batch_norm=True, head="small"), Optim(lr=0.1, weight_decay=0.5, nesterov=True)
    )
    decayed, free = optimizer.param_groups
    assert all(p.ndim > 1 for p in decayed["params"]) and decayed["weight_decay"] == 0.5
    assert all(p.ndim == 1 for p in free["params"]) and free["weight_decay"] == 0.0
    assert len(decayed["params"]) == 14 and len(free["params"]) == 13 * 3 + 1
    assert all(group["nesterov"] for group in optimizer.param_groups)


def test_freezing_by_pattern_keeps_batch_norm_still():
    model = vgg16(num_classes=10, batch_norm=True, head="small")
    frozen = freeze(model, ["features.*"])
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "classifier.1.weight",
        "classifier.1.bias",
    }
    assert sum(isinstance(module, nn.BatchNorm2d) for module in frozen) == 13
    with pytest.raises(UsageError, match="nothing is left"):
        freeze(model, ["*"])


def test_a_loss_scale_adapts_up_to_its_number_and_without_one_an_overflow_is_an_error():
    scale = LossScale("dynamic")
    assert not scale.accept(False, 0) and scale.value == 32768
    for step in range(2000):
        assert scale.accept(True, step)
    assert scale.value == 65536
    again = LossScale("dynamic")
    again.load_state_dict(scale.state_dict())
    assert (again.value, again.good_steps) == (65536, 2000)
    fixed = LossScale(1024.0)
    assert [fixed.accept(False, step) for step in range(10)] == [False] * 10 and fixed.value == 1
    with pytest.raises(ConvzooError, match="step 10: a gradient is not finite"):
        fixed.accept(False, 10)
    for step in range(12 * 2000):
        fixed.accept(True, step)
    assert fixed.value == 1024
    with pytest.raises(ConvzooError, match="step 7: a gradient is not finite"):
        LossScale(None).accept(False, 7)
    grad = nn.Parameter(torch.ones(3))
    grad.grad = torch.full((3,), 1024.0)
    LossScale(1024.0).unscale([grad])
    assert grad.grad.tolist() == [1, 1, 1]


def test_the_moving_average_by_hand():
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, 0.9)
    expected, value = 1.0, 1.0
    for step in range(30):
        with torch.no_grad():
            model.weight.add_(1)
        value += 1
        assert model.num_batches_tracked is not None
        model.num_batches_tracked += 1
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.average["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert average.average["num_batches_tracked"].item() == 30
    assert not math.isclose(expected, value)


@pytest.mark.parametrize(("batch", "lr"), [(256, 0.1), (32, 0.0125), (8192, 3.2)])
def test_a_rate_is_scaled_by_the_batch_only_where_a_recipe_names_its_own(batch, lr):
    assert scaled_lr(Optim(lr=0.1, lr_batch_size=256), batch) == pytest.approx(lr, rel=1e-12)
    assert scaled_lr(Optim(lr=0.1), batch) == 0.1


def test_a_scaled_rate_is_that_of_the_run_and_said(run, tmp_path):
    command = ["train", "tinydarknet-digits", *QUICK, "schedule.warmup_epochs=0", "train.batch_size=64"]
    assert run(*command, "optim.lr=0.01", "--out", tmp_path / "half")[0] == 0
    code, _, err = run(*command, "optim.lr=0.02", "optim.lr_batch_size=128", "--out", tmp_path / "scaled")
    assert code == 0 and "learning rate 0.01 = 0.02 x batch 64 / 128" in err
    assert same(weights(tmp_path / "scaled"), weights(tmp_path / "half"))
    assert "lr_batch_size: 128" in (tmp_path / "scaled/recipe.yaml").read_text()
    assert all(recipes.load(name).optim.lr_batch_size is None for name in recipes.shipped())
