"""Which samples each rank sees at each step: pure functions of seed, epoch and step.

A global batch is the same set of samples for any number of ranks and workers; rank r takes every world_size-th of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from convzoo.data.transforms.pipeline import ORDER, SIZE, keyed_rng
from convzoo.errors import DataError, UsageError
from convzoo.types import Key


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the permutation of an epoch."""
    return keyed_rng(seed, ORDER, epoch, 0).permutation(num_samples)


def window_order(shard_of: np.ndarray, starts: np.ndarray, window: int, seed: int, epoch: int) -> np.ndarray:
    """Return an epoch's order [N] that reads shards one after the other.

    The shards come in a random order, each picture of theirs where it lies, moved by fewer than `window` places: of
    two pictures the first comes first where they lie that far apart.

    Args:
        shard_of, starts: [N], of each sample the number of its shard and its place in it.
    """
    rng = keyed_rng(seed, ORDER, epoch, 0)
    turn = rng.permutation(int(shard_of.max(initial=0)) + 1)
    stream = np.lexsort((starts, turn[shard_of]))
    return stream[np.argsort(np.arange(len(stream)) + window * rng.random(len(stream)), kind="stable")]


@dataclass(frozen=True)
class TrainBatches:
    """Yield this rank's keys of one micro-batch after the other, from start_step to end_step.

    The last partial batch of an epoch is dropped; a data set smaller than one batch is one batch. With sizes_px the
    batches take sizes by turns at random. `order` of (seed, epoch) is the data set's own order, None for any.
    """

    num_samples: int
    batch_size: int
    seed: int
    start_step: int
    end_step: int
    accumulate: int = 1
    rank: int = 0
    world_size: int = 1
    sizes_px: Sequence[int] = ()
    size_every_steps: int = 1
    order: Callable[[int, int], np.ndarray | None] = lambda seed, epoch: None

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.num_samples // self.batch_size)

    def __len__(self) -> int:
        return (self.end_step - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        epoch_of_order, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start_step, self.end_step):
            epoch, number = divmod(step, self.steps_per_epoch)
            if epoch != epoch_of_order:
                own = self.order(self.seed, epoch)
                epoch_of_order, order = epoch, epoch_order(self.num_samples, self.seed, epoch) if own is None else own
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            size_px = self.size_at(step)
            for micro in np.array_split(batch[self.rank :: self.world_size], self.accumulate):
                yield [Key(epoch, int(index), size_px) for index in micro]

    def size_at(self, step: int) -> int | None:
        """Return the input size of a step, the same on all ranks: drawn anew every size_every_steps."""
        if not self.sizes_px:
            return None
        drawn = keyed_rng(self.seed, SIZE, 0, step // self.size_every_steps).integers(len(self.sizes_px))
        return self.sizes_px[int(drawn)]


@dataclass(frozen=True)
class EvalBatches:
    """Yield every sample exactly once over all ranks, in batches; ranks may differ by one sample."""

    num_samples: int
    device_batch_size: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return -(-len(range(self.rank, self.num_samples, self.world_size)) // self.device_batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        mine = range(self.rank, self.num_samples, self.world_size)
        for start in range(0, len(mine), self.device_batch_size):
            yield [Key(0, index) for index in mine[start : start + self.device_batch_size]]


def check_batch_size(num_samples: int, batch_size: int, accumulate: int, world_size: int) -> None:
    """Check that a global batch can be shared out.

    Raises:
        UsageError: the global batch does not divide by ranks times micro-batches.
        DataError: no sample, or fewer than there are ranks times micro-batches.
    """
    parts = world_size * accumulate
    if batch_size % parts:
        raise UsageError(
            f"train.batch_size {batch_size} does not divide by {world_size} ranks x {accumulate} micro-batches"
        )
    if num_samples < parts:
        raise DataError(f"{num_samples} training images are fewer than {world_size} ranks x {accumulate} micro-batches")


def batch_arithmetic(num_samples: int, batch_size: int, accumulate: int, world_size: int) -> str:
    """Return how a global batch is shared out, and how many make an epoch, as a line for the log."""
    parts = world_size * accumulate
    effective = min(batch_size, num_samples)
    steps = max(1, num_samples // batch_size)
    dropped = num_samples - steps * effective
    return (
        f"batch {effective} = {world_size} ranks x {accumulate} micro-batches x {effective // parts}; "
        f"{steps} steps an epoch over {num_samples:,} images ({dropped} left out by turns)"
    )
