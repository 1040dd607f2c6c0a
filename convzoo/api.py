"""The Python API: what the command line does, in three lines.

run = convzoo.train("tinydarknet-digits", out="runs/digits")
model = convzoo.load(run / "checkpoints/last.safetensors")
answers = list(model.predict("pictures/"))
"""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from convzoo import distributed
from convzoo.config import recipe as recipes
from convzoo.config import registry
from convzoo.config.recipe import Recipe
from convzoo.convert import sources
from convzoo.convert.convert import open_converted
from convzoo.convert.state_dict import ExpectedWeights, read_class_names, resolve_model_spec
from convzoo.deploy.exported import ExportedModel, open_any
from convzoo.errors import UsageError
from convzoo.inference import evaluate, torch_model
from convzoo.inference.answers import Answer, save_annotated
from convzoo.inference.loaded import LoadedModel
from convzoo.inference.predict import MIN_SCORE, predict
from convzoo.model_file import ModelInfo, tensors_sha256
from convzoo.plain import JsonObject, Keyword, Keywords
from convzoo.storage import local_path
from convzoo.training.loop import train as run_training
from convzoo.training.setup import RunOptions
from convzoo.types import Outputs, Runner

LARGEST_FIRST = ("imagenet", "coco", "cifar10")  # data sets in recipes' names


class Model:
    """A model file, read, verified and built, or an exported file.

    Attributes:
        class_names: in the order of the outputs.
        metrics: what was measured on these weights.
    """

    def __init__(self, opened: LoadedModel):
        self._opened = opened
        self.recipe: Recipe = opened.recipe
        self.class_names: list[str] = opened.class_names
        self.metrics: JsonObject = opened.info.metrics

    @property
    def network(self) -> nn.Module:
        """The module, in evaluation mode; it takes normalised float32 pictures [B, 3, H, W]. Raises UsageError."""
        if not isinstance(self._opened, torch_model.TorchModel):
            raise UsageError(f"{self._opened.path}: is exported and has no PyTorch network; call the model itself")
        return self._opened.model

    def predict(
        self,
        *sources: str | Path,
        save: str | Path | None = None,
        batch_size: int = 16,
        precision: str = "fp32",
        min_score: float | None = MIN_SCORE,
    ) -> Iterator[Answer]:
        """Yield an answer for each picture in files, folders and globs, and write annotated copies into `save`.

        Of a detector's boxes those with at least min_score; None for all.

        Raises:
            UsageError: a source that does not exist.
            DataError: a picture that cannot be read.
        """
        opened = self._opened
        answers = predict(
            opened.runner(precision),
            opened.task(),
            opened.pipeline(),
            self.class_names,
            sources,
            batch_size=batch_size,
            min_score=min_score,
        )
        return save_annotated(answers, Path(save)) if save else answers

    def __call__(self, images: torch.Tensor) -> Outputs:
        """Return the network's outputs for normalised float32 pictures [B, 3, H, W] on its device.

        A file that was exported with its preprocessing takes uint8 pictures; several outputs come as a tuple.

        Raises:
            UsageError, ConvzooError: pictures that an exported file does not take.
        """
        if isinstance(self._opened, torch_model.TorchModel):
            with torch.inference_mode():
                return self.network(images)
        outputs = self._runner(images)
        return outputs[0] if len(outputs) == 1 else outputs

    @functools.cached_property
    def _runner(self) -> Runner:
        return self._opened.runner()

    def evaluate(
        self, data: str | Path | None = None, *, overrides: Iterable[str] = (), **options: Keyword
    ) -> JsonObject:
        """Return top1 and top5, or AP and its like, images and images_expected on the validation images.

        Options as `evaluate_open`'s; overrides as the command line's.
        """
        opened = self._opened.changed(tuple(overrides)) if overrides else self._opened
        return evaluate.evaluate_open(opened, Path(data) if data else None, **options).result

    def export(self, format: str, out: str | Path | None = None, **options: Keyword) -> Path:
        """Write the model for another runtime, compare it there with PyTorch, return it; options: `ExportOptions`.

        Raises:
            UsageError: an option that does not fit, or a model that is not a file.
            ToleranceError: the written file does not do what the model does; it is not kept.
            MissingPackageError: the format's library is not installed.
        """
        from convzoo.deploy.export import ExportOptions, export

        if isinstance(self._opened, ExportedModel):
            raise UsageError(f"{self._opened.path}: is exported already; export the model file that it was made from")
        opened = self._opened
        if not isinstance(opened, torch_model.TorchModel) or not sources.is_own(opened.path):
            raise UsageError(f"{opened.path}: convert it to a model file first (convzoo convert)")
        return export(opened, ExportOptions(format, Path(out) if out else None, **options)).path


def load(
    name_or_path: str | Path,
    weights: str | Path | None = None,
    download: bool = False,
    *,
    pretrained: bool = True,
    num_classes: int | None = None,
    classes: str | Path | None = None,
    cfg: str | Path | None = None,
    resize: Literal["letterbox", "stretch"] | None = None,
    device: str = "auto",
) -> Model:
    """Open a model file, an exported file, weights of another program, or a network by its name with its weights.

    Args:
        name_or_path: a model file, an exported file, a foreign weight file, LIBRARY:NAME, or with `weights` a network.
        weights: what `name_or_path` may be; they must be of that network.
        download: let LIBRARY:NAME use the network.
        pretrained: False for a network by its name with initial weights, drawn by torch's generator, and the recipe
            that is shipped for it on the largest data set.
        num_classes: refuse weights of any other number; of an untrained network, how many it has.
        classes: a file of class names in output order, for foreign weights and untrained networks.
        cfg: the network of a Darknet weight file; resize: how its pictures get their size, None for as the files tell.
    Raises:
        UsageError: no such file or name, or LIBRARY:NAME without `download`.
        ConvzooError: an unreadable, damaged or mismatching file, or the network does not answer.
        MissingPackageError: the library is not installed.
    """
    target = distributed.resolve_device(device)
    names = Path(classes) if classes else None
    if not pretrained:
        if weights is not None:
            raise UsageError(f"{name_or_path}: pretrained=False has no weights, and {weights} are some")
        return Model(_untrained(str(name_or_path), num_classes, names, target))
    source, model_name = (name_or_path, None) if weights is None else (weights, str(name_or_path))
    if model_name is not None:
        registry.builder("model", model_name)
    elif str(source) in registry.names("model") and not Path(source).exists():
        raise UsageError(
            f"{source}: a network without weights; weights= takes a file or a name of `list --weights`, "
            "pretrained=False none"
        )
    expected = ExpectedWeights(model_name, num_classes, names, Path(cfg) if cfg else None, resize)
    if not sources.is_remote(source):
        source = local_path(source)
    else:
        return Model(open_converted(sources.open_source(source, expected, download), target))
    opened = open_any(source, target, expected=expected)
    expected.require(str(source), opened.recipe.model)
    return Model(opened)


def _untrained(
    name: str, num_classes: int | None, classes: Path | None, device: torch.device
) -> torch_model.TorchModel:
    """Build a network with initial weights. Raises UsageError for an unknown one, or class names that do not fit."""
    registry.builder("model", name)
    shipped = next((f"{name}-{data}" for data in LARGEST_FIRST if f"{name}-{data}" in recipes.shipped()), None)
    if shipped is None:
        raise UsageError(f"{name}: no recipe is shipped for it; train one of your own")
    recipe = recipes.load(shipped, [] if num_classes is None else [f"model.num_classes={num_classes}"])
    model = registry.bind("model", recipe.model, recipe.at("model"))()
    count = resolve_model_spec(recipe.model)["num_classes"]
    names = read_class_names(classes, count) if classes else [str(number) for number in range(count)]
    provenance = {"initial_weights": shipped, **({} if classes else {"class_names": "numbers"})}
    info = ModelInfo(recipe=recipe.plain(), class_names=names, provenance=provenance)
    model = model.eval().to(device, memory_format=torch.channels_last)
    return torch_model.TorchModel(model, recipe, info, Path(name), tensors_sha256(model.state_dict()))


def train(recipe: str | Path | Recipe, *overrides: str, **run_options: Keyword) -> Path:
    """Train as a recipe says and return the run's folder; run_options as `RunOptions`'s attributes.

    Raises:
        InterruptedRun, UsageError, DataError, ConvzooError: as the message says.
    """
    loaded = (
        recipes.with_overrides(recipe, overrides) if isinstance(recipe, Recipe) else recipes.load(recipe, overrides)
    )
    paths: Keywords = {
        key: Path(value) if key in ("data", "val_data", "out") and value is not None else value
        for key, value in run_options.items()
    }
    return run_training(loaded, RunOptions(**paths))
