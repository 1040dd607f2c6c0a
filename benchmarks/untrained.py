"""A recipe's network with random weights, for benchmarks of speed alone."""

from pathlib import Path

import torch

from convzoo.config import recipe as recipes
from convzoo.config import registry
from convzoo.inference.torch_model import TorchModel, open_model
from convzoo.model_file import ModelInfo, save_model

# Random weights without the statistics that fit them: rounding errors grow beyond what trained networks have.
TOLERANCE = 1.0


def open_untrained(recipe_name: str, folder: Path) -> TorchModel:
    """Write a recipe's network as a model file into a folder, always with the same weights, and open it."""
    torch.manual_seed(0)
    recipe = recipes.load(recipe_name)
    model = registry.bind("model", recipe.model)()
    path = folder / f"{recipe_name}.safetensors"
    names = [str(i) for i in range(recipe.model["num_classes"])]
    save_model(path, model.state_dict(), ModelInfo(recipe=recipe.plain(), class_names=names))
    return open_model(path)
