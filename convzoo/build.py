"""From a recipe to its data set, its operations and its task; every key is checked before anything is built."""

import functools
from pathlib import Path

import numpy as np
import torch

from convzoo.config import registry
from convzoo.config.recipe import Recipe
from convzoo.data.loader import Transformed, check_own_split
from convzoo.data.packed import is_packed, open_packed
from convzoo.data.transforms.boxes import IN_EVAL, IN_TRAIN
from convzoo.data.transforms.image import Stretch
from convzoo.data.transforms.pipeline import Pipeline
from convzoo.errors import ConvzooError, UsageError
from convzoo.model_file import FileInfo
from convzoo.storage import local_path
from convzoo.storage.shards import find_shards
from convzoo.types import BadSample, Dataset, Key, Sample, Task


def check_recipe(recipe: Recipe) -> None:
    """Check every key that belongs to a builder, before anything is built. Raises UsageError."""
    bind_dataset(recipe)
    cache_of(recipe)
    build_pipeline(recipe, "train")
    build_pipeline(recipe, "eval")
    registry.bind("model", recipe.model, recipe.at("model"))
    task = build_task(recipe, [])
    if task.predicts == "boxes":
        _check_operations(recipe, task.size_step)
    _check_sides(recipe.at("transform")("multi_scale_px"), recipe.transform.multi_scale_px, task.size_step)


def _check_operations(recipe: Recipe, size_step: int) -> None:
    """Refuse operations that would leave the boxes behind, and sizes that the strides do not divide."""
    for which, allowed in (("train", IN_TRAIN), ("eval", IN_EVAL)):
        for i, operation in enumerate(getattr(recipe.transform, which)):
            ((name, keys),) = operation.items()
            place = recipe.at("transform", which, i)(name)
            if name not in allowed:
                raise UsageError(
                    f"{place} does not move boxes with the pixels here; a detector takes {', '.join(allowed)}"
                )
            _check_sides(f"{place} size_px", np.ravel(keys.get("size_px", size_step)).tolist(), size_step)


def _check_sides(place: str, sides_px: list[int], size_step: int) -> None:
    broken = [side for side in sides_px if side % size_step]
    if broken:
        raise UsageError(f"{place} {broken[0]}: this detector's input must be a multiple of {size_step} pixels")


def build_task(recipe: Recipe, class_names: list[str]) -> Task:
    """Build the recipe's task. Raises UsageError for an unknown one, or a key that is not its own."""
    if recipe.task not in registry.names("task"):
        near = registry.nearest(recipe.task, registry.names("task"))
        raise UsageError(f"{recipe.at()('task')} unknown task '{recipe.task}'{near}")
    loss = registry.bind("loss", {"name": recipe.task, **recipe.loss}, recipe.at("loss"))()
    task = registry.bind("task", {"name": recipe.task, **recipe.postprocess}, recipe.at("postprocess"))
    return task(class_names, recipe, loss)


def build_pipeline(recipe: Recipe, which: str) -> Pipeline:
    """Check and bind the operations of `transform.train` or `transform.eval`."""
    operations = []
    for i, operation in enumerate(getattr(recipe.transform, which)):
        ((name, options),) = operation.items()
        here = (which, i) if not options else (which, i, name)
        operations.append(registry.bind("transform", {"name": name, **options}, recipe.at("transform", *here)))
    return Pipeline(operations, recipe.seed)


def eval_pipeline(recipe: Recipe, info: FileInfo, trained_hw: tuple[int, int] | None) -> Pipeline:
    """Return `transform.eval`; where it keeps the size of pictures, it stretches them to what the model was trained on.

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
    sizes = set()
    for hw in ((300, 400), (401, 301)):
        image = pipeline(Sample(torch.zeros(3, *hw, dtype=torch.uint8), 0, 0, "", hw), Key(0, 0)).image
        sizes.add((image.shape[1], image.shape[2]))
    return sizes.pop() if len(sizes) == 1 else None


def size_seen(data: Transformed) -> tuple[int, int] | None:
    """Return the (height, width) of the first readable picture as the network gets it, or None of none.

    Raises:
        ConvzooError: the store of the pictures does not answer.
    """
    samples = (data[Key(0, index)] for index in range(len(data)))
    first = next((sample for sample in samples if not isinstance(sample, BadSample)), None)
    if isinstance(first, ConvzooError):
        raise first
    return None if first is None else (first.image.shape[1], first.image.shape[2])


def bind_dataset(recipe: Recipe) -> functools.partial:
    """Return the data set's builder with the recipe's keys. Raises UsageError."""
    keys = {key: value for key, value in recipe.data.items() if key != "cache"}  # a training run's, not the data's
    return registry.bind("dataset", keys, recipe.at("data"))


def cache_of(recipe: Recipe, asked: str | None = None) -> str | None:
    """Return how a training run keeps decoded pictures: as asked, or as the recipe's `data.cache` says.

    Raises:
        UsageError: neither "memory" nor nothing.
    """
    cache = asked or recipe.data.get("cache")
    if cache not in (None, "memory"):
        place = recipe.at("data")("cache") if cache == recipe.data.get("cache") else "cache"
        raise UsageError(f"{place} {cache!r}: memory, or nothing", ("cache",))
    return cache


def _largest_px(recipe: Recipe) -> int:
    """Return the largest side that an operation gives pictures, 0 where all keep their sizes."""
    operations = [*recipe.transform.train, *recipe.transform.eval]
    sides = [np.max(keys.get("size_px", 0)) for operation in operations for keys in operation.values()]
    return int(max([0, *sides, *recipe.transform.multi_scale_px]))


def build_dataset(recipe: Recipe, root: Path | None, split: str, alone: bool = False) -> Dataset:
    """Build a split of the recipe's data set; `alone` where no other split is taken from the same root.

    Raises:
        UsageError, DataError: as the data set's builder says, or class folders that may be either split; a packed file
            that is damaged, older than its source, or not what the recipe asks for.
    """
    build = bind_dataset(recipe)
    path = None if root is None or find_shards(root) else local_path(root, ("data",))  # shards are not fetched whole
    if path and is_packed(path):
        return open_packed(path, split, recipe.data, _largest_px(recipe))
    dataset = build(root, split)
    if not alone:
        check_own_split(dataset, split)
    return dataset
