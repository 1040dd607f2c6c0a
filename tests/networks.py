"""Networks of random weights as model files, noise for pictures, and how far two outputs are apart."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from convzoo.config import recipe as recipes
from convzoo.config import registry
from convzoo.model_file import ModelInfo, save_model

CPU = torch.device("cpu")
SMALL_YOLO = ["model.width=0.125", "transform.eval=[{letterbox: {size_px: 64}}]", "postprocess={}"]


def write_model(folder: Path, recipe_name: str, overrides: list[str] | None = None) -> Path:
    """Write a model file of random weights, with batch norm statistics that fit them.

    As in trained networks what a residual unit adds is small and logits are moderate: else rounding errors only grow.
    """
    torch.manual_seed(0)
    recipe = recipes.load(recipe_name, overrides or [])
    side_px = 96 if recipe.task == "detect" else 64
    model = registry.bind("model", recipe.model)()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            module.momentum = None
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(("conv2.norm", "head.out")):
                module.weight *= 0.3
        model.train()(torch.randn(8, 3, side_px, side_px))
    path = folder / f"{recipe_name}.safetensors"
    names = [str(i) for i in range(recipe.model["num_classes"])]
    save_model(path, model.state_dict(), ModelInfo(recipe=recipe.plain(), class_names=names))
    return path


def noise(count: int, height: int, width: int, seed: int = 1) -> torch.Tensor:
    """Return pictures [B, 3, H, W] uint8 that no camera took."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8))


def off(outputs: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative difference max|a-b| / max|b|."""
    return float((outputs - expected).abs().max() / expected.abs().max())
