"""Load, transform and stack samples in worker processes; what cannot be read arrives as a message, not as a crash."""

import multiprocessing
import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from convzoo.data.datasets.image_folder import FolderImages
from convzoo.data.datasets.shards import ShardBoxes, ShardImages
from convzoo.data.transforms.pipeline import Pipeline, stack_images
from convzoo.errors import ConvzooError, DataError, UsageError, shared_memory
from convzoo.logs import log
from convzoo.types import BadSample, Batch, Boxes, Dataset, Key, Pictures, Sample, Targets, Task

OnBadSample = Literal["error", "skip"]
SEMAPHORES = 6  # of a loader, and of each of its processes


class Transformed(torch.utils.data.Dataset):
    """A data set seen through a pipeline; targets are renumbered to the model's classes where those differ."""

    def __init__(self, dataset: Pictures, pipeline: Pipeline, label_of: Sequence[int] | None = None):
        self.dataset = dataset
        self.pipeline = pipeline
        self.label_of = label_of

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Sample | BadSample | ConvzooError:
        """Return the sample, what is wrong with it, or why none can be read: a store that does not answer."""
        try:
            return self.pipeline(self._load(key.index), key, lambda rng: self._load(int(rng.integers(len(self)))))
        except DataError as error:
            return BadSample(key.index, str(error))
        except ConvzooError as error:
            return error

    def _load(self, index: int) -> Sample:
        sample = self.dataset.load(index)
        if self.label_of is None:
            return sample
        target = sample.target
        if isinstance(target, Boxes):
            renumbered = replace(target, labels=np.asarray(self.label_of)[target.labels])
        else:
            renumbered = self.label_of[target]
        return replace(sample, target=renumbered)


class Collate:
    """Stack the readable samples through the task and carry the unreadable ones along."""

    def __init__(self, task: Task):
        self.task = task

    def __call__(self, samples: list[Sample | BadSample | ConvzooError]) -> Batch | ConvzooError:
        for sample in samples:
            if isinstance(sample, ConvzooError):
                return sample
        good = [sample for sample in samples if isinstance(sample, Sample)]
        bad = [sample for sample in samples if isinstance(sample, BadSample)]
        if not good:
            return DataError(f"no picture of a whole batch can be read: {bad[0].reason}")
        try:
            batch = self.task.collate(good)
        except DataError as error:  # travels back as a value: an exception would arrive wrapped in a worker's traceback
            return error
        batch.bad = bad
        if get_worker_info() is None:
            return batch
        try:
            # The worker's queue would do it in a thread, which drops a batch without room: its reader waits for ever.
            return batch.share_memory()
        except RuntimeError:
            size = f"{batch.images.nbytes / 2**20:,.1f} MiB"
            return ConvzooError(f"no room for a loader process's batch of {size}; {shared_memory()}", ("workers",))


def default_workers(device_type: str) -> int:
    """Return how many loader processes suit this machine; on a CPU the training itself needs the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores) if device_type != "cpu" else min(8, cores // 4)


def build_loader(
    dataset: Transformed,
    task: Task,
    batches: Iterable[list[Key]],
    workers: int,
    pin_memory: bool = False,
    keep_workers: bool = False,
) -> DataLoader:
    """Return a loader over given batches of keys; `keep_workers` for one that is gone through again and again.

    Raises:
        ConvzooError: /dev/shm has no room for its processes.
    """
    if workers < 0:
        raise UsageError(f"{workers} workers: 0 or more", ("workers",))
    try:  # as many as the loader will need; without room it ends untidily
        _ = [multiprocessing.Semaphore() for _ in range(SEMAPHORES * (1 + workers) if workers else 0)]
    except OSError as error:
        why = f"{error.strerror}; {shared_memory()}"
        raise ConvzooError(f"no loader processes can be started: {why}", ("workers",)) from None
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=Collate(task),
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=keep_workers and workers > 0,
        worker_init_fn=_quiet_worker,
        prefetch_factor=4 if workers else None,
        # Its own: the global one belongs to dropout, and must not depend on when a loader starts.
        generator=torch.Generator(),
    )


def _quiet_worker(worker_id: int) -> None:
    # A signal to the process group must stop the main process only: it saves, then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def checked(batch: Batch | ConvzooError, on_bad_sample: OnBadSample) -> Batch:
    """Return the batch, after applying the policy for unreadable samples.

    Raises:
        DataError: a sample cannot be read.
        ConvzooError: a loader process had no room for the batch, or a store does not answer.
    """
    if isinstance(batch, ConvzooError):
        raise batch
    if batch.bad and on_bad_sample == "error":
        raise DataError(batch.bad[0].reason, ("on_bad_sample",))
    for bad in batch.bad:
        log.warning(f"skipped {bad.reason}")
    return batch


def base_batch(samples: list[Sample], targets: Targets) -> Batch:
    """Stack what is common to all tasks."""
    return Batch(
        images=stack_images(samples),
        targets=targets,
        ids=torch.tensor([sample.index for sample in samples]),
        paths=[sample.path for sample in samples],
        original_hw=torch.tensor([sample.original_hw for sample in samples]),
        placement=torch.tensor([sample.placement for sample in samples], dtype=torch.float32),
        truths=[sample.truth for sample in samples],
        valid=torch.ones(len(samples), dtype=torch.bool),
    )


def label_map(names: list[str], model_names: list[str], source: str) -> list[int] | None:
    """Return for each class of a data set its number in the model, matched by name; None where they are the same.

    Raises:
        DataError: a class of the data set that the model does not know.
    """
    if names == model_names:
        return None
    number = {name: i for i, name in enumerate(model_names)}
    unknown = [name for name in names if name not in number]
    if unknown:
        raise DataError(
            f"{source} has {len(unknown)} of {len(names)} classes that the model does not know: {_some(unknown)}; "
            f"the model has {_some(model_names)}"
        )
    return [number[name] for name in names]


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def check_own_split(dataset: Dataset, split: str) -> None:
    """Raise DataError where class folders that may be either split, or both, would be trained on."""
    if split == "train" and isinstance(dataset, FolderImages | ShardImages | ShardBoxes) and dataset.is_whole_root:
        raise DataError(
            f"{dataset.root}: no folder train or ilsvrc in it, nor shards with such names; "
            "what is of no split is trained on with validation pictures elsewhere, or train.eval_every_epochs=0",
            ("val_data",),
        )


def check_same_classes(train_names: list[str], val_names: list[str]) -> None:
    """Raise DataError where the training and the validation data do not have the same classes."""
    missing = [name for name in train_names if name not in set(val_names)]
    extra = [name for name in val_names if name not in set(train_names)]
    if missing or extra:
        parts = [f"missing in val: {_some(missing)}"] * bool(missing) + [f"only in val: {_some(extra)}"] * bool(extra)
        raise DataError(f"train and val have different classes; {'; '.join(parts)}")
