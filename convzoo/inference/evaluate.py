"""Evaluate models: every image exactly once, in float32 unless asked otherwise, n of N stated."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from convzoo import distributed
from convzoo.build import build_dataset
from convzoo.data.loader import OnBadSample, Transformed, build_loader, checked, default_workers, label_map
from convzoo.data.sampler import EvalBatches
from convzoo.errors import DataError, UsageError
from convzoo.inference.bootstrap import intervals
from convzoo.inference.explain import explain_worst
from convzoo.inference.loaded import LoadedModel
from convzoo.logs import progress
from convzoo.plain import JsonObject
from convzoo.report.evaluation import save_explained_worst, write_report
from convzoo.tasks.detect_metric import DetectMetric
from convzoo.types import Metric, Pictures, Runner, Task

# Without a size asked for. On a CPU a larger batch is no faster: its outputs leave the caches, and the kernel has to
# find memory for them. Results do not depend on it.
BATCH_CPU, BATCH_DEVICE = 32, 256


@dataclass
class Evaluation:
    """What was measured: `result` holds fractions, `images` counted and `images_expected`; seconds with the loading."""

    metric: Metric
    result: JsonObject
    unreadable: list[str]
    seconds: float

    @property
    def images_per_s(self) -> float:
        """Images counted over all ranks in a second."""
        return self.result["images"] / max(1e-9, self.seconds)

    def write(self, folder: Path, dataset: Pictures, explained: LoadedModel | None = None) -> None:
        """Write metrics.json and what the metric has to show: tables, plots, the worst images.

        Args:
            explained: the model, to show as explained.png what speaks for its worst mistakes.
        Raises:
            UsageError: a model that cannot be explained.
        """
        folder.mkdir(parents=True, exist_ok=True)
        measured = {**self.result, "intervals": intervals(self.metric)}
        measured |= {"unreadable": self.unreadable, "seconds": round(self.seconds, 2)}
        (folder / "metrics.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
        report = self.metric.report(dataset)
        write_report(folder, report, dataset)
        if explained is not None and report.worst:
            save_explained_worst(folder / "explained.png", explain_worst(explained, report.worst, dataset))


def eval_loader(
    dataset: Transformed,
    task: Task,
    batch_size: int,
    workers: int | None,
    device_type: str,
    keep_workers: bool = False,
) -> DataLoader:
    """Return a loader over this rank's share; with keep_workers its processes stay from one evaluation to the next."""
    world_size = distributed.world_size()
    batches = EvalBatches(len(dataset), max(1, batch_size // world_size), distributed.rank(), world_size)
    workers = default_workers(device_type) if workers is None else workers
    return build_loader(dataset, task, batches, min(workers, len(batches)), keep_workers=keep_workers)


def evaluate(
    runner: Runner,
    task: Task,
    dataset: Transformed,
    *,
    batch_size: int = BATCH_CPU,
    workers: int | None = None,
    loader: DataLoader | None = None,
    on_bad_sample: OnBadSample = "error",
    metric: Metric | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Run over this rank's share of a data set and add up over the ranks.

    Args:
        batch_size: over all ranks.
        loader: one of `eval_loader` instead of a new one; batch_size and workers are its own.
        metric: an empty one; the task's by default.
        stop: asked after each batch; a true answer ends the loop early, and the counts say so.
    Raises:
        DataError: an unreadable picture, unless on_bad_sample is "skip", which counts them.
    """
    started = time.perf_counter()
    loader = loader or eval_loader(dataset, task, batch_size, workers, torch.device(runner.device).type)
    own, unreadable = metric or task.new_metric(), []
    for batch in progress(loader, len(loader), "evaluate"):
        batch = checked(batch, on_bad_sample)
        unreadable += [bad.reason for bad in batch.bad]
        outputs = runner(batch.images)
        own.update(task.postprocess(outputs, batch), batch)
        if stop():
            break
    shares = distributed.gather_objects((own, unreadable))
    total = shares[0][0].merge([share[0] for share in shares])
    result = {**total.result(), "images_expected": len(dataset)}
    return Evaluation(total, result, [reason for share in shares for reason in share[1]], time.perf_counter() - started)


def evaluate_open(
    opened: LoadedModel,
    data: Path | None,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    precision: str = "fp32",
    on_bad_sample: OnBadSample = "error",
    coco_evaluator: str | None = None,
) -> Evaluation:
    """Evaluate an open model, or an exported file that was opened, on the validation split of its recipe's data set.

    Classes are matched by name: a data set may have fewer than the model, never others.

    Args:
        coco_evaluator: for a detector, one of coco_eval.EVALUATORS.
    Raises:
        UsageError: an evaluator for a model that is no detector.
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
        raise DataError(f"{error}; its weights came without names: convert them again", ("classes",)) from None
    task, runner = opened.task(), opened.runner(precision)
    metric = task.new_metric()
    if coco_evaluator:
        if not isinstance(metric, DetectMetric):
            raise UsageError(f"{opened.path}: a classifier has no COCO numbers", ("coco_eval",))
        metric.evaluator = coco_evaluator
    seen = Transformed(dataset, opened.pipeline(), mapping)
    if batch_size is None:
        batch_size = min(BATCH_CPU if str(runner.device) == "cpu" else BATCH_DEVICE, opened.recipe.train.batch_size)
    return evaluate(
        runner, task, seen, batch_size=batch_size, workers=workers, on_bad_sample=on_bad_sample, metric=metric
    )
