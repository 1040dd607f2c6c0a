"""Numbers that every machine gives, and the loop beside a plain one of the same steps.

A golden value is one step in float64: loss and gradient norm of weights drawn by NumPy on a stored batch. Nothing of
it goes through torch's initialisers or `resize`, which differ with the CPU's instructions.
"""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convzoo import build
from convzoo.config import recipe as recipes
from convzoo.config import registry
from convzoo.data.checks.splits import is_boxed
from convzoo.data.sampler import epoch_order
from convzoo.models.yolov3 import heads
from convzoo.tasks.yolo import assign_targets, ignore_masks, yolo_loss
from convzoo.types import Batch, BoxTargets, Dataset
from helpers import QUICK, rows, weights

GOLDEN = Path(__file__).parent / "golden"
CASES = {
    "tinydarknet": {},
    "tinydarknet, the zoo's": {"leaky_slope": 0.2, "norm_eps": 1e-3, "last": "norm_leaky"},
    "vgg16": {"batch_norm": True, "head": "small", "dropout": 0.0},
    "densenet100": {},
    "densenet121": {},
    "darknet53": {},
    "yolov3": {"width": 0.125},
}

SMALL_DETECTOR = ["model.width=0.03125", "data.max_train_images=32", "train.batch_size=8", "train.epochs=2"]


def stored_batch(task: str) -> Batch:
    """Return four noisy pictures of 64x64 with their labels or boxes, from tests/golden/batch.npz."""
    with np.load(GOLDEN / "batch.npz") as stored:
        images, labels, boxes, index = (
            torch.from_numpy(stored[name]) for name in ("images", "labels", "boxes", "index")
        )
    targets = labels if task == "classify" else BoxTargets(boxes, torch.arange(len(boxes)) % 10, index)
    count = len(images)
    return Batch(
        (images.double() / 255 - 0.5) / 0.25,
        targets,
        torch.arange(count),
        [""] * count,
        torch.full((count, 2), 64),
        torch.zeros(count, 4),
        torch.ones(count, dtype=torch.bool),
        [],
    )


def draw_weights(model: nn.Module) -> None:
    """Fill a network from NumPy's RandomState, whose streams are frozen: He's rule, norms near one, small biases."""
    rng = np.random.RandomState(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)))
            if parameter.ndim > 1:
                parameter.copy_(drawn * math.sqrt(2 / parameter[0].numel()))
            else:
                parameter.copy_(0.1 * drawn + float(name.endswith("weight")))


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_the_golden_ones(case):
    name = case.partition(",")[0]
    task_name = "detect" if name == "yolov3" else "classify"
    model = registry.bind("model", {"name": name, "num_classes": 10, **CASES[case]})().double().train()
    draw_weights(model)
    recipe = recipes.load("yolov3-digits" if name == "yolov3" else "tinydarknet-digits", ["loss.label_smoothing=0.1"])
    task, batch = build.build_task(recipe, list("0123456789")), stored_batch(task_name)
    loss = task.loss(model(batch.images), batch)["loss"]
    loss.backward()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    got = {"loss": loss.item(), "grad_norm": norm.item()}
    path = GOLDEN / "steps.json"
    if os.environ.get("CONVZOO_WRITE_GOLDEN"):
        path.write_text(json.dumps({**json.loads(path.read_text()), case: got}, indent=2) + "\n")
    assert loss.dtype == torch.float64
    assert got == pytest.approx(json.loads(path.read_text())[case], rel=1e-9)


def plain_batches(recipe: recipes.Recipe, data: Dataset, steps: int):
    """Yield the normalised pictures and the indices of each batch, in the documented order."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (recipe.transform.mean, recipe.transform.std))
    size, per_epoch = recipe.train.batch_size, len(data) // recipe.train.batch_size
    for step in range(steps):
        order = epoch_order(len(data), recipe.seed, step // per_epoch)
        indices = order[step % per_epoch * size :][:size].tolist()
        images = torch.stack([data.load(i).image for i in indices])
        yield (images.float() - mean) / std, indices


def plain_run(recipe: recipes.Recipe, steps: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train as the recipe says with nothing but PyTorch's own parts.

    Return the weights, averaged where the recipe says so, in float64, and the losses.
    """
    data = build.build_dataset(recipe, None, "train")
    torch.manual_seed(recipe.seed)
    model = registry.bind("model", recipe.model)().to(memory_format=torch.channels_last).train()
    averaged = {name: tensor.double() for name, tensor in model.state_dict().items()}
    decays = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim <= 1]
    optim = recipe.optim
    optimizer = torch.optim.SGD(
        [{"params": decays[0], "weight_decay": optim.weight_decay}, {"params": decays[1]}],
        lr=optim.lr,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
    )
    per_epoch, losses = len(data) // recipe.train.batch_size, []
    for step, (images, indices) in enumerate(plain_batches(recipe, data, steps)):
        warm = int(recipe.schedule.warmup_epochs * per_epoch)
        cosine = (1 + math.cos(math.pi * step / per_epoch / recipe.train.epochs)) / 2
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * ((step + 1) / warm if step < warm else cosine)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.train.precision == "bf16"):
            outputs = model(images.contiguous(memory_format=torch.channels_last))
        loss = plain_loss(recipe, data, outputs, indices, images.shape[-1])
        loss.backward()
        if recipe.train.clip_grad_norm:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.train.clip_grad_norm)
        optimizer.step()
        keep = min(recipe.train.ema_decay or 0.0, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            share = 1 - keep if tensor.is_floating_point() else 1.0
            averaged[name] = averaged[name] + share * (tensor.double() - averaged[name])
        losses.append(loss.item())
    return averaged, losses


def plain_loss(recipe: recipes.Recipe, data: Dataset, outputs, indices: list[int], size_px: int) -> torch.Tensor:
    if recipe.task == "classify":
        return F.cross_entropy(outputs.float(), torch.from_numpy(data.labels[indices]))
    assert is_boxed(data)
    truth = [data.boxes(i) for i in indices]
    xyxy = torch.from_numpy(np.concatenate([boxes.xyxy for boxes in truth])).float()
    labels = torch.from_numpy(np.concatenate([boxes.labels for boxes in truth]))
    index = torch.cat([torch.full((len(boxes),), i) for i, boxes in enumerate(truth)])
    meant, threshold = heads(recipe.model["anchors_px"]), recipe.loss.get("ignore_threshold", 0.7)
    targets = assign_targets(xyxy, labels, index, image_size=(size_px, size_px), num_classes=10, heads=meant)
    masks = ignore_masks(outputs, xyxy, index, iou_threshold=threshold, heads=meant)
    return yolo_loss(outputs, targets, masks)["loss"]


@pytest.mark.parametrize(
    ("recipe", "extra"),
    [
        ("tinydarknet-digits", QUICK),
        ("tinydarknet-digits", [*QUICK, "train.precision=bf16"]),
        ("tinydarknet-digits", [*QUICK, "train.ema_decay=0.9", "train.clip_grad_norm=0.5"]),
        ("densenet100-digits", [*QUICK, "data.max_train_images=64", "train.batch_size=16"]),
        ("yolov3-digits", [*SMALL_DETECTOR, "schedule={name: cosine_annealing, warmup_epochs: 0.5}"]),
    ],
)
def test_the_loop_is_the_plain_loop(run, tmp_path, recipe, extra):
    assert run("train", recipe, *extra, "--out", tmp_path)[0] == 0
    steps = rows(tmp_path, "step")
    expected, losses = plain_run(recipes.load(recipe, extra), len(steps))
    assert [row["loss"] for row in steps] == losses
    trained = weights(tmp_path)
    assert trained.keys() == expected.keys()
    for name, tensor in trained.items():
        # Without an average it is the same operations in the same order; theirs adds up in float32, this in float64.
        is_average = tensor.is_floating_point() and "train.ema_decay=0.9" in extra
        rtol, atol = (1e-5, 1e-6) if is_average else (0, 0)
        torch.testing.assert_close(tensor.double(), expected[name], rtol=rtol, atol=atol)
