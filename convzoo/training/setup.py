"""The parts of a training run: built in the order in which they depend on each other, saved and restored whole."""

import dataclasses
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from convzoo import distributed
from convzoo.build import build_dataset, build_pipeline, build_task, cache_of, check_recipe, size_seen
from convzoo.config import registry
from convzoo.config.recipe import Recipe
from convzoo.data.kept import check_room, kept
from convzoo.data.loader import (
    OnBadSample,
    Transformed,
    build_loader,
    check_same_classes,
    checked,
    default_workers,
    label_map,
)
from convzoo.data.sampler import TrainBatches, batch_arithmetic, check_batch_size
from convzoo.errors import DataError, UsageError
from convzoo.inference.evaluate import eval_loader
from convzoo.logs import log
from convzoo.model_file import ModelInfo, StateDict, load_into
from convzoo.plain import JsonObject
from convzoo.storage import shown
from convzoo.training.continuation import list_sha256
from convzoo.training.optim import LossScale, WeightAverage, build_optimizer, build_schedule, freeze, scaled_lr
from convzoo.training.pretrained import load_pretrained
from convzoo.types import Batch, Dataset

EVAL_BATCH = 256  # of each rank


@dataclass(frozen=True)
class RunOptions:
    """What a run needs to know that does not change its numbers: the command line's half of a run.

    Attributes:
        val_data: where the validation data is looked for, None for `data`.
        weights: a model file, a foreign one or LIBRARY:NAME to start from; the SHA-256 goes into the recipe.
        workers: loader processes, None for what suits the machine.
        accumulate: micro-batches per global batch and rank.
        save_every_steps: besides the ends of epochs that the recipe's save_every_epochs says.
        log_every_steps: a line of the log every so many steps; None for one now and then where there is no terminal.
        cache: "memory" decodes every picture once and keeps it; None for what the recipe's data.cache says.
        log_to: trackers that get the run's rows while it goes, of `loggers.TRACKERS`.
        download: whether weights by LIBRARY:NAME may use the network.
        resume: there must be a run to continue; without it one is continued where there is one.
        fresh: a new run, in a folder that has none.
        command: what to write down as the command of this run.

    Raises:
        UsageError: a path that is not UTF-8: files of the run name it.
    """

    data: Path | None = None
    val_data: Path | None = None
    out: Path | None = None
    device: str = "auto"
    weights: str | Path | None = None
    workers: int | None = None
    cache: str | None = None
    accumulate: int = 1
    save_every_steps: int | None = None
    log_every_steps: int | None = None
    compile: bool = False
    profile: bool = False
    resume: bool = False
    fresh: bool = False
    download: bool = False
    on_bad_sample: OnBadSample = "error"
    log_to: tuple[str, ...] = ()
    command: str = "convzoo.train"

    def __post_init__(self) -> None:
        for option in ("data", "val_data", "out"):
            path = str(getattr(self, option) or "")
            if os.fsencode(path).decode(errors="replace") != path:
                raise UsageError(f"{path}: a run's files name this path, and it is not UTF-8", (option,))


@dataclass
class Progress:
    """Everything of a run but the weights that must survive an interruption."""

    step: int = 0
    closed_step: int = 0  # the last end of an epoch whose evaluation is done
    best: float | None = None
    sums: dict[str, float] = dataclasses.field(default_factory=dict)  # logged scalars of the current epoch
    images_left_out: int = 0
    updates_left_out: int = 0


class TrainState:
    """A run's data, task, network and optimiser."""

    def __init__(self, recipe: Recipe, options: RunOptions, device: torch.device):
        self.recipe, self.options, self.device = recipe, options, device
        self.progress = Progress()
        check_recipe(recipe)
        torch.manual_seed(recipe.seed)
        self._build_data()
        self._build_network()
        train = recipe.train
        self.steps_per_epoch = max(1, len(self.train_data) // train.batch_size)
        self.total_steps = train.epochs * self.steps_per_epoch
        self.effective_batch = min(train.batch_size, len(self.train_data))
        lr = scaled_lr(recipe.optim, self.effective_batch)
        self.lr_at = build_schedule(recipe.schedule, lr, self.steps_per_epoch, train.epochs)
        self.optimizer = build_optimizer(self.model, recipe.optim)
        self.loss_scale = LossScale(train.loss_scale)
        self.average = WeightAverage(self.model, train.ema_decay) if train.ema_decay is not None else None
        self.precision = train.precision
        if self.precision == "auto":
            self.precision = "bf16" if distributed.computes_bfloat16(device) else "fp32"

    def _build_data(self) -> None:
        recipe, options = self.recipe, self.options
        evaluates = recipe.train.eval_every_epochs > 0
        if options.val_data and not evaluates:
            raise UsageError(
                f"{options.val_data}: {recipe.at('train')('eval_every_epochs')} 0, nothing is evaluated", ("val_data",)
            )
        alone = options.val_data is not None or not evaluates
        train_set = build_dataset(recipe, options.data, "train", alone)
        val_set = build_dataset(recipe, options.val_data or options.data, "val") if evaluates else None
        if val_set is not None:
            check_same_classes(train_set.class_names, val_set.class_names)
        self.class_names: list[str] = train_set.class_names
        num_classes, expected = len(self.class_names), recipe.model.get("num_classes")
        if num_classes != expected:
            raise DataError(
                f"the data has {num_classes} classes, {recipe.at('model')('num_classes')} {expected}; "
                f"set model.num_classes={num_classes}"
            )
        shares = len(train_set), recipe.train.batch_size, options.accumulate, distributed.world_size()
        check_batch_size(*shares)
        self.arithmetic = batch_arithmetic(*shares)
        self.train_data = Transformed(train_set, build_pipeline(recipe, "train"))
        self.val_data = None
        if val_set is not None:
            source = str(options.val_data or options.data)
            mapping = label_map(val_set.class_names, self.class_names, source)
            self.val_data = Transformed(val_set, build_pipeline(recipe, "eval"), mapping)
        self.split_lists = _split_lists(train_set, val_set)
        self.cache = cache_of(recipe, options.cache)
        if self.cache == "memory":
            for what, data in self._splits():
                check_room(data.dataset, what)
        self.task = build_task(recipe, self.class_names)
        self.task.start_training(np.asarray(train_set.labels))
        counted = "images" if self.task.predicts == "classes" else "objects"
        per_class = torch.bincount(torch.as_tensor(train_set.labels), minlength=num_classes)
        self.data_account = {
            "root": shown(str(options.data)),
            **({"val_root": shown(options.val_data)} if options.val_data else {}),
            "packed_px": getattr(train_set, "packed_px", None),
            "train_images": len(train_set),
            "val_images": 0 if val_set is None else len(val_set),
            "class_names": self.class_names,
            f"train_{counted}_per_class": dict(zip(self.class_names, per_class.tolist(), strict=True)),
            "train_list_sha256": list_sha256(train_set),
            "val_list_sha256": None if val_set is None else list_sha256(val_set),
        }

    def _splits(self) -> Iterator[tuple[str, Transformed]]:
        yield "training", self.train_data
        if self.val_data is not None:
            yield "validation", self.val_data

    def keep_pictures(self) -> None:
        """Decode all pictures into memory where that was asked for; before the loader starts its workers."""
        if self.cache == "memory":
            for what, data in self._splits():
                data.dataset = kept(data.dataset, what)

    def _build_network(self) -> None:
        recipe, device = self.recipe, self.device
        model = registry.bind("model", recipe.model, recipe.at("model"))()
        if self.options.weights:
            load_pretrained(model, recipe, self.options.weights, self.class_names, self.options.download)
        if recipe.train.sync_batch_norm:
            if device.type == "cpu":
                raise UsageError("train.sync_batch_norm: works on accelerators only; set it to false")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.frozen_modules = freeze(model, recipe.train.freeze)
        self.model: nn.Module = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network: nn.Module = self.model
        if self.options.compile:
            self.network = torch.compile(self.model)  # type: ignore[assignment]
        if distributed.world_size() > 1:
            self.network = DistributedDataParallel(
                self.network,
                device_ids=None if device.type == "cpu" else [device.index],
                broadcast_buffers=False,  # rank 0's running statistics count; the others get them before an evaluation
                gradient_as_bucket_view=True,
            )

    def train_mode(self) -> None:
        self.model.train()
        for module in self.frozen_modules:
            module.eval()

    def batches(self) -> Iterator[Batch]:
        """Yield this rank's micro-batches from the current step to the last."""
        recipe, options = self.recipe, self.options
        steps = self.progress.step, self.total_steps
        shares = options.accumulate, distributed.rank(), distributed.world_size()
        sizes = recipe.transform.multi_scale_px, recipe.transform.multi_scale_every_steps
        places = getattr(self.train_data.dataset, "places", None)  # of shards, which may have an order of their own
        own = {"order": places.order} if places else {}
        keys = TrainBatches(len(self.train_data), recipe.train.batch_size, recipe.seed, *steps, *shares, *sizes, **own)
        workers = default_workers(self.device.type) if options.workers is None else options.workers
        if options.workers is None and self.cache == "memory" and (os.cpu_count() or 1) > 1:
            workers = max(1, workers)  # to crop and flip beside the computing costs a core little: nothing waits for it
        for batch in build_loader(self.train_data, self.task, keys, workers, pin_memory=self.device.type == "cuda"):
            yield checked(batch, options.on_bad_sample)

    @functools.cached_property
    def val_loader(self) -> DataLoader:
        """The validation batches, again at each evaluation and by the same processes."""
        assert self.val_data is not None
        batch_size = min(EVAL_BATCH * distributed.world_size(), self.recipe.train.batch_size)
        workers, device_type = self.options.workers, self.device.type
        return eval_loader(self.val_data, self.task, batch_size, workers, device_type, keep_workers=True)

    def weights_to_save(self) -> StateDict:
        """Return the weights that are evaluated and saved: the moving average where there is one."""
        return self.average.average if self.average else self.model.state_dict()

    def info(self, metrics: JsonObject, env: JsonObject) -> ModelInfo:
        provenance = {
            "trained_with": env,
            "command": self.options.command,
            "data": self.data_account["root"],
            "step": self.progress.step,
        }
        eval_pipeline = build_pipeline(self.recipe, "eval")
        seen = Transformed(self.train_data.dataset, eval_pipeline) if self.val_data is None else self.val_data
        input_hw = size_seen(seen)
        return ModelInfo(
            recipe=self.recipe.plain(),
            class_names=self.class_names,
            metrics=metrics,
            provenance=provenance,
            input_hw=input_hw,
        )

    def snapshot(self) -> JsonObject:
        return {
            "progress": dataclasses.asdict(self.progress),
            "optimizer": self.optimizer.state_dict(),
            "loss_scale": self.loss_scale.state_dict(),
            "weights": self.model.state_dict() if self.average else None,
            **self._shares(),
        }

    def _shares(self) -> JsonObject:
        """Return what does not belong to the recipe and yet moves the last bits."""
        return {
            "world_size": distributed.world_size(),
            "accumulate": self.options.accumulate,
            "precision": self.precision,
        }

    def restore(self, weights: StateDict, snapshot: JsonObject) -> None:
        load_into(self.model, snapshot["weights"] or weights, "the run's checkpoint")
        if self.average:
            self.average.average = {name: tensor.to(self.device) for name, tensor in weights.items()}
        self.optimizer.load_state_dict(snapshot["optimizer"])
        self.loss_scale.load_state_dict(snapshot["loss_scale"])
        self.progress = Progress(**snapshot["progress"])
        for name, now in self._shares().items():
            if snapshot.get(name, now) != now:
                log.warning(f"continued with {name} {now}, begun with {snapshot[name]}: not bit for bit the same run")


def _split_lists(train_set: Dataset, val_set: Dataset | None) -> dict[str, list[str]]:
    """Return the pictures of each split where nobody but we shared them out, nothing otherwise."""
    splits = {"train": train_set, "val": val_set}
    files = {name: getattr(dataset, "split_files", None) for name, dataset in splits.items()}
    return {name: paths for name, paths in files.items() if paths}
