"""The Python API: what the command line does, in three lines.

run = convzoo.train("tinydarknet-digits", out="runs/digits")
model = convzoo.load(run / "checkpoints/last.safetensors")
answers = list(model.predict("pictures/"))
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from convzoo import dist, evaluate
from convzoo import recipe as recipes
from convzoo.predict import Answer, predict, save_annotated
from convzoo.recipe import Recipe
from convzoo.train import train as run_training
from convzoo.train_setup import Machine


class Model:
    """A model file, read, verified and built.

    Attributes:
        network: the module, in evaluation mode; it takes normalised float32 pictures [B, 3, H, W].
        class_names: in the order of the outputs.
        metrics: what was measured on these weights.
    """

    def __init__(self, opened: evaluate.OpenModel, device: str):
        self._opened = opened
        self._device = device
        self.network: nn.Module = opened.model
        self.recipe: Recipe = opened.recipe
        self.class_names: list[str] = opened.class_names
        self.metrics: dict[str, Any] = opened.info.metrics

    def predict(
        self, *sources: str | Path, save: str | Path | None = None, batch_size: int = 16, precision: str = "fp32"
    ) -> Iterator[Answer]:
        """Yield an answer for each picture in files, folders and globs, and write annotated copies into `save`.

        Raises:
            UsageError: a source that does not exist.
            DataError: a picture that cannot be read.
        """
        runner = evaluate.TorchRunner(self.network, self.recipe, dist.resolve_device(self._device), precision)
        answers = predict(
            runner, self._opened.task(), self._opened.pipeline(), self.class_names, sources, batch_size=batch_size
        )
        return save_annotated(answers, Path(save)) if save else answers

    def evaluate(self, data: str | Path | None = None, **options: Any) -> dict[str, Any]:
        """Return top1, top5, images and images_expected on the validation images; options as `evaluate_file`'s."""
        return evaluate.evaluate_file(self._opened.path, Path(data) if data else None, device=self._device, **options)[
            1
        ].result


def load(path: str | Path, device: str = "auto") -> Model:
    """Open a model file.

    Raises:
        UsageError: no such file.
        ConvzooError: an unreadable, damaged or mismatching file.
    """
    return Model(evaluate.open_model(path, dist.resolve_device(device)), device)


def train(recipe: str | Path | Recipe, *overrides: str, **machine: Any) -> Path:
    """Train as a recipe says and return the run's folder; machine options as `Machine`'s attributes.

    Raises:
        InterruptedRun, UsageError, DataError, ConvzooError: as the message says.
    """
    loaded = (
        recipes.with_overrides(recipe, overrides) if isinstance(recipe, Recipe) else recipes.load(recipe, overrides)
    )
    paths = {
        key: Path(value) if key in ("data", "out", "weights") and value is not None else value
        for key, value in machine.items()
    }
    return run_training(loaded, Machine(**paths))
