"""Open model files and evaluate them: every image exactly once, in float32 unless asked otherwise, n of N stated."""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convzoo import dist, registry
from convzoo import recipe as recipes
from convzoo.checkpoint import ModelInfo, StateDict, load_into, load_model
from convzoo.data.box_transforms import IN_EVAL, IN_TRAIN
from convzoo.data.loader import (
    OnBadSample,
    Transformed,
    build_loader,
    check_own_split,
    checked,
    default_workers,
    label_map,
)
from convzoo.data.sampler import EvalBatches
from convzoo.data.transforms import Pipeline, Stretch, normalize
from convzoo.errors import DataError, UsageError
from convzoo.logs import progress
from convzoo.recipe import Recipe
from convzoo.types import Key, Metric, Sample, Task

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchRunner:
    """Run a network in PyTorch: uint8 or normalised float pictures [B, 3, H, W] to a tuple of outputs."""

    name = "pytorch"
    input = "float_nchw"
    stage = "raw"

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device, precision: str = "fp32"):
        if precision not in PRECISIONS:
            raise UsageError(f"--precision {precision}: one of {', '.join(PRECISIONS)}")
        self.model = model
        self.device = str(device)
        self.precision = PRECISIONS[precision]
        self.mean, self.std = recipe.transform.mean, recipe.transform.std

    @torch.inference_mode()
    def __call__(self, images: np.ndarray | Tensor) -> tuple[Tensor, ...]:
        x = torch.as_tensor(images).to(self.device, non_blocking=True)
        if x.dtype == torch.uint8:
            x = normalize(x, self.mean, self.std)
        x = x.contiguous(memory_format=torch.channels_last)
        was_training = self.model.training
        self.model.eval()
        device_type = torch.device(self.device).type
        with torch.autocast(device_type, dtype=self.precision or torch.bfloat16, enabled=self.precision is not None):
            outputs = self.model(x)
        self.model.train(was_training)
        return outputs if isinstance(outputs, tuple) else (outputs,)


@dataclass
class OpenModel:
    """A model file, read, verified and built."""

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

    def changed(self, overrides: tuple[str, ...]) -> "OpenModel":
        """Return the same weights under a recipe with overrides `section.key=value`. Raises UsageError, ConvzooError."""
        recipe = recipes.with_overrides(self.recipe, overrides)
        if recipe.model == self.recipe.model:
            return dataclasses.replace(self, recipe=recipe)
        device = next(self.model.parameters()).device
        model = _build(recipe, self.model.state_dict(), str(self.path), device)
        return dataclasses.replace(self, recipe=recipe, model=model)


@dataclass
class Evaluation:
    """What was measured: `result` holds fractions, `images` counted and `images_expected`; seconds with the loading."""

    metric: Metric
    result: dict[str, Any]
    unreadable: list[str]
    seconds: float

    @property
    def images_per_s(self) -> float:
        """Images counted over all ranks in a second."""
        return self.result["images"] / max(1e-9, self.seconds)

    def write(self, folder: Path, dataset: Any) -> None:
        """Write metrics.json and what the task has to show: tables, plots, the worst images."""
        folder.mkdir(parents=True, exist_ok=True)
        report = {**self.result, "unreadable": self.unreadable, "seconds": round(self.seconds, 2)}
        (folder / "metrics.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        self.metric.write(folder, dataset)


def open_model(path: str | Path, device: torch.device, overrides: tuple[str, ...] = ()) -> OpenModel:
    """Open a model file and build its network on the device, in evaluation mode.

    Raises:
        UsageError: no such file, or an override that does not fit.
        ConvzooError: an unreadable, damaged or mismatching file.
    """
    path = Path(path)
    state_dict, info, digest = load_model(path)
    recipe = recipes.with_overrides(recipes.from_plain(info.recipe, path.name), overrides)
    return OpenModel(_build(recipe, state_dict, str(path), device), recipe, info, path, digest)


def _build(recipe: Recipe, state_dict: StateDict, source: str, device: torch.device) -> nn.Module:
    with torch.device("meta"):
        model = registry.bind("model", recipe.model, recipe.at("model"))()
    model = model.to_empty(device="cpu")
    load_into(model, state_dict, source)
    return model.eval().to(device, memory_format=torch.channels_last)


def check_recipe(recipe: Recipe) -> None:
    """Check every key that belongs to a builder, before anything is built. Raises UsageError."""
    registry.bind("dataset", recipe.data, recipe.at("data"))
    build_pipeline(recipe, "train")
    build_pipeline(recipe, "eval")
    registry.bind("model", recipe.model, recipe.at("model"))
    registry.bind("task", {"name": recipe.task, **recipe.postprocess}, recipe.at("postprocess"))
    if recipe.task == "detect":
        _check_detector(recipe)


def _check_detector(recipe: Recipe) -> None:
    """Refuse operations that would leave the boxes behind, and sizes that the strides do not divide."""
    for which, allowed in (("train", IN_TRAIN), ("eval", IN_EVAL)):
        for i, operation in enumerate(getattr(recipe.transform, which)):
            ((name, keys),) = operation.items()
            place = recipe.at("transform", which, i)(name)
            if name not in allowed:
                raise UsageError(
                    f"{place} does not move boxes with the pixels here; a detector takes {', '.join(allowed)}"
                )
            _check_sides(f"{place} size_px", np.ravel(keys.get("size_px", 32)).tolist())
    _check_sides(recipe.at("transform")("multi_scale_px"), recipe.transform.multi_scale_px)


def _check_sides(place: str, sides_px: list[int]) -> None:
    broken = [side for side in sides_px if side % 32]
    if broken:
        raise UsageError(f"{place} {broken[0]}: a detector's input must be a multiple of 32 pixels")


def build_task(recipe: Recipe, class_names: list[str]) -> Task:
    return registry.bind("task", {"name": recipe.task, **recipe.postprocess}, recipe.at("postprocess"))(
        class_names, recipe
    )


def build_pipeline(recipe: Recipe, which: str) -> Pipeline:
    """Check and bind the operations of `transform.train` or `transform.eval`."""
    operations = []
    for i, operation in enumerate(getattr(recipe.transform, which)):
        ((name, options),) = operation.items()
        here = (which, i) if not options else (which, i, name)
        operations.append(registry.bind("transform", {"name": name, **options}, recipe.at("transform", *here)))
    return Pipeline(operations, recipe.seed)


def eval_pipeline(recipe: Recipe, info: Any, trained_hw: tuple[int, int] | None) -> Pipeline:
    """Return `transform.eval`; where it keeps the size of pictures, they are stretched to what the model was trained on.

    Args:
        info: what the file says of itself; an evaluation transform that was overridden is taken as it is.
        trained_hw: (height, width), None where it is not known.
    """
    pipeline = build_pipeline(recipe, "eval")
    if trained_hw is None or given_size(pipeline) or recipe.plain()["transform"]["eval"] != info.preprocessing["eval"]:
        return pipeline
    return Pipeline([*(operation for operation, _ in pipeline.operations), Stretch(trained_hw)], recipe.seed)


def given_size(pipeline: Pipeline) -> tuple[int, int] | None:
    """Return the (height, width) that a pipeline gives pictures of any size, or None where it depends on theirs."""
    found = set()
    for hw in ((300, 400), (401, 301)):
        image = pipeline(Sample(torch.zeros(3, *hw, dtype=torch.uint8), 0, 0, "", hw), Key(0, 0)).image
        found.add((image.shape[1], image.shape[2]))
    return found.pop() if len(found) == 1 else None


def size_seen(data: Transformed) -> tuple[int, int] | None:
    """Return the (height, width) of the first readable picture as the network gets it, or None of none."""
    samples = (data[Key(0, index)] for index in range(len(data)))
    first = next((sample for sample in samples if isinstance(sample, Sample)), None)
    return None if first is None else (first.image.shape[1], first.image.shape[2])


def build_dataset(recipe: Recipe, root: Path | None, split: str, alone: bool = False) -> Any:
    """Build a split of the recipe's data set; `alone` where no other split is taken from the same root.

    Raises:
        UsageError, DataError: as the data set's builder says, or class folders that may be either split.
    """
    dataset = registry.bind("dataset", recipe.data, recipe.at("data"))(root, split)
    if not alone:
        check_own_split(dataset, split)
    return dataset


def evaluate(
    runner: Any,
    task: Task,
    dataset: Transformed,
    *,
    batch_size: int,
    workers: int | None = None,
    on_bad_sample: OnBadSample = "error",
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Run over this rank's share of a data set and add up over the ranks.

    Args:
        batch_size: over all ranks.
        stop: asked after each batch; a true answer ends the loop early, and the counts say so.
    Raises:
        DataError: an unreadable picture, unless on_bad_sample is "skip", which counts them.
    """
    started = time.perf_counter()
    batches = EvalBatches(len(dataset), max(1, batch_size // dist.world_size()), dist.rank(), dist.world_size())
    workers = default_workers(torch.device(runner.device).type) if workers is None else workers
    loader = build_loader(dataset, task, batches, min(workers, len(batches)))
    metric, unreadable = task.new_metric(), []
    for batch in progress(loader, len(batches), "evaluate"):
        batch = checked(batch, on_bad_sample)
        unreadable += [bad.reason for bad in batch.bad]
        outputs = runner(batch.images)
        metric.update(task.postprocess(outputs[0] if len(outputs) == 1 else outputs, batch), batch)
        if stop():
            break
    shares = dist.gather_objects((metric, unreadable))
    metric = shares[0][0].merge([share[0] for share in shares])
    result = {**metric.result(), "images_expected": len(dataset)}
    return Evaluation(
        metric, result, [reason for share in shares for reason in share[1]], time.perf_counter() - started
    )


def evaluate_open(
    opened: Any, data: Path | None, *, batch_size: int | None = None, workers: int | None = None,
    precision: str = "fp32", on_bad_sample: OnBadSample = "error",
) -> Evaluation:  # fmt: skip
    """Evaluate an open model, or an exported file that was opened, on the validation split of its recipe's data set.

    Classes are matched by name: a data set may have fewer than the model, never others.

    Raises:
        DataError: no images, an unreadable one, or classes that the model does not know.
    """
    dataset = build_dataset(opened.recipe, data, "val")
    if len(dataset) == 0:
        raise DataError(f"{data}: no images to evaluate")
    try:
        mapping = label_map(dataset.class_names, opened.class_names, str(data or opened.recipe.data["name"]))
    except DataError as error:
        if opened.info.provenance.get("class_names") != "numbers":
            raise
        raise DataError(f"{error}; its weights came without names: convert them again with --classes FILE") from None
    runner = opened.runner(precision)
    seen = Transformed(dataset, opened.pipeline(), mapping)
    batch_size = batch_size or min(256, opened.recipe.train.batch_size)
    return evaluate(runner, opened.task(), seen, batch_size=batch_size, workers=workers, on_bad_sample=on_bad_sample)


def summary(result: dict[str, Any]) -> str:
    """Return a result as one line in percent: `top-1 93.12 %  top-5 99.80 %  10000 of 10000 images`."""
    names = {"top1": "top-1", "top5": "top-5", "AP": "AP", "AP50": "AP50", "AP75": "AP75"}
    parts = [f"{names[key]} {100 * result[key]:.2f} %" for key in names if result.get(key) is not None]
    return "  ".join([*parts, f"{result['images']} of {result['images_expected']} images"])
