"""What a training step of a recipe costs on this machine: real steps on the real data, and whether they fit."""

import resource
import statistics
import time

import torch

from convzoo import distributed
from convzoo.config.recipe import Recipe
from convzoo.environment import free_bytes
from convzoo.training.loop import AUTOCAST, forward_backward
from convzoo.training.setup import RunOptions, TrainState

TIMED = {"cpu": 2}  # steps after one to warm up; others: TIMED_ELSEWHERE
TIMED_ELSEWHERE = 8
SPARE = 0.8  # of the memory that is free


def seconds_per_picture(recipe: Recipe, options: RunOptions) -> float | None:
    """Return the time that a picture takes in training, loading and augmentation included; None where none fits.

    Raises:
        UsageError, DataError: as a training run.
    """
    device = distributed.resolve_device(options.device)
    free, before = free_bytes(), _peak_bytes()
    try:
        state = TrainState(recipe, options, device)
        times = _timed_steps(state, 1 + TIMED.get(device.type, TIMED_ELSEWHERE))
    except (torch.OutOfMemoryError, MemoryError):
        return None
    except RuntimeError as error:  # what backends without a class of their own say
        if "memory" not in str(error).lower():
            raise
        return None
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if device.type == "cpu" and _peak_bytes() - before > SPARE * free:
        return None  # the system would have begun to swap
    return statistics.median(times[1:]) / state.effective_batch


def _timed_steps(state: TrainState, count: int) -> list[float]:
    """Return the seconds of so many training steps, of which the first pays for everything that happens once."""
    assert state.precision in AUTOCAST
    batches = state.batches()
    times = []
    for _ in range(min(count, state.total_steps)):
        start = time.perf_counter()
        state.train_mode()
        state.optimizer.zero_grad()
        scalars, *_ = forward_backward(state, batches)
        state.optimizer.step()
        float(scalars["loss"])  # waits for an accelerator
        times.append(time.perf_counter() - start)
    return times if len(times) > 1 else times * 2


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
