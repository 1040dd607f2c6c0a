"""A model file opened in PyTorch, and the runner of its network."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from convzoo.build import build_task, eval_pipeline
from convzoo.config import recipe as recipes
from convzoo.config import registry
from convzoo.config.recipe import Recipe
from convzoo.data.transforms.pipeline import Pipeline, to_input
from convzoo.errors import UsageError
from convzoo.model_file import ModelInfo, StateDict, load_into, load_model
from convzoo.storage import local_path
from convzoo.types import Task

CPU = torch.device("cpu")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchRunner:
    """Run a network in PyTorch: uint8 or normalised float pictures [B, 3, H, W] to a tuple of outputs."""

    name = "pytorch"
    input = "float_nchw"
    stage = "raw"

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device, precision: str = "fp32"):
        if precision not in PRECISIONS:
            raise UsageError(f"precision {precision}: one of {', '.join(PRECISIONS)}", ("precision",))
        self.model = model
        self.device = str(device)
        self.precision = PRECISIONS[precision]
        self.mean, self.std = recipe.transform.mean, recipe.transform.std

    @torch.inference_mode()
    def __call__(self, images: np.ndarray | Tensor) -> tuple[Tensor, ...]:
        x = torch.as_tensor(images).to(self.device, non_blocking=True)
        as_is = x.dtype != torch.uint8
        x = x.contiguous(memory_format=torch.channels_last) if as_is else to_input(x, self.mean, self.std)
        was_training = self.model.training
        self.model.eval()
        device_type = torch.device(self.device).type
        with torch.autocast(device_type, dtype=self.precision or torch.bfloat16, enabled=self.precision is not None):
            outputs = self.model(x)
        self.model.train(was_training)
        return outputs if isinstance(outputs, tuple) else (outputs,)


@dataclass
class TorchModel:
    """A model file, read, verified and built: the `LoadedModel` that has a PyTorch network."""

    model: nn.Module
    recipe: Recipe
    info: ModelInfo
    path: Path
    sha256: str

    @property
    def class_names(self) -> list[str]:
        return self.info.class_names

    def task(self) -> Task:
        return build_task(self.recipe, self.class_names)

    def pipeline(self) -> Pipeline:
        return eval_pipeline(self.recipe, self.info, self.info.input_hw)

    def runner(self, precision: str = "fp32") -> TorchRunner:
        return TorchRunner(self.model, self.recipe, next(self.model.parameters()).device, precision)

    def changed(self, overrides: tuple[str, ...]) -> "TorchModel":
        """Return these weights under a recipe with overrides `section.key=value`. Raises UsageError, ConvzooError."""
        recipe = recipes.with_overrides(self.recipe, overrides)
        if recipe.model == self.recipe.model:
            return dataclasses.replace(self, recipe=recipe)
        device = next(self.model.parameters()).device
        model = _build(recipe, self.model.state_dict(), str(self.path), device)
        return dataclasses.replace(self, recipe=recipe, model=model)


def open_model(path: str | Path, device: torch.device = CPU, overrides: tuple[str, ...] = ()) -> TorchModel:
    """Open a model file and build its network on the device, in evaluation mode.

    Raises:
        UsageError: no such file, or an override that does not fit.
        ConvzooError: an unreadable, damaged or mismatching file.
    """
    state_dict, info, digest = load_model(path := local_path(path))
    recipe = recipes.with_overrides(recipes.from_plain(info.recipe, path.name), overrides)
    return TorchModel(_build(recipe, state_dict, str(path), device), recipe, info, path, digest)


def _build(recipe: Recipe, state_dict: StateDict, source: str, device: torch.device) -> nn.Module:
    with torch.device("meta"):
        model = registry.bind("model", recipe.model, recipe.at("model"))()
    model = model.to_empty(device="cpu")
    load_into(model, state_dict, source)
    return model.eval().to(device, memory_format=torch.channels_last)
