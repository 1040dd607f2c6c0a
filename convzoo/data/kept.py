"""Pictures decoded once and kept in memory, which the loader's workers share: for data sets of small pictures."""

import os
from typing import Any, TypeVar, cast

import numpy as np
import torch

from convzoo.data.datasets.in_memory import ArrayImages
from convzoo.data.packed import PackedImages
from convzoo.environment import free_bytes
from convzoo.errors import DataError, UsageError
from convzoo.logs import log, progress
from convzoo.types import Pictures, Sample

CHUNK_BYTES = 64 << 20
SAMPLED = 64  # pictures by which the whole is judged before anything is decoded
SPARE = 0.8  # of the memory that is free: the step that follows needs some too
MIB = 1 << 20
DECODED = (ArrayImages, PackedImages)  # in memory, or in a file that the system keeps there
Kind = TypeVar("Kind", bound=Pictures)


class KeptImages:
    """A data set whose pictures lie in memory as uint8; for everything else it is the data set that it was made from.

    They are decoded by this process before the loader forks its workers, which then read the same pages: nothing
    writes to them. A picture that cannot be read stays what it is, an error of its own when it is asked for.
    """

    def __init__(self, dataset: Pictures, what: str):
        """Decode every picture once.

        Args:
            what: to call the pictures in messages, "training" or "validation".
        Raises:
            UsageError: there is no room for them; `check_room` would have said so from a few, unless these were small.
        """
        self.dataset: Any = dataset  # Any: whose labels or boxes are asked for by name
        self._chunks = [np.empty(0, dtype=np.uint8)]
        self._places = np.zeros((len(dataset), 4), dtype=np.int64)  # chunk, first byte, height, width
        self._errors: dict[int, DataError] = {}
        room, used, end = _room_bytes(), 0, 0
        for index in progress(range(len(dataset)), len(dataset), "decode"):
            try:
                rows = dataset.load(index).image.permute(1, 2, 0).numpy()
            except DataError as error:
                self._errors[index] = error
                continue
            used += rows.size
            if used > room:
                raise _no_room(what, len(dataset), used * len(dataset) / (index + 1), room)
            if end + rows.size > len(self._chunks[-1]):
                self._chunks.append(np.empty(max(rows.size, min(CHUNK_BYTES, rows.size * len(dataset))), np.uint8))
                end = 0
            self._chunks[-1][end : end + rows.size] = rows.reshape(-1)
            self._places[index] = len(self._chunks) - 1, end, *rows.shape[:2]
            end += rows.size
        log.info(f"{len(dataset):,} {what} pictures are kept in memory: {used / MIB:,.0f} MiB")

    def __len__(self) -> int:
        return len(self._places)

    def __getattr__(self, name: str) -> Any:  # Any: whatever the data set has
        if name == "dataset":  # being unpickled, where workers are not forked
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def load(self, index: int) -> Sample:
        """Return the sample as the data set does. Raises DataError."""
        if index in self._errors:
            error = self._errors[index]
            raise type(error)(str(error), error.options)
        chunk, start, height, width = self._places[index].tolist()
        rows = self._chunks[chunk][start : start + height * width * 3].reshape(height, width, 3)
        target = self.dataset.boxes(index) if hasattr(self.dataset, "boxes") else int(self.dataset.labels[index])
        image = torch.from_numpy(rows).permute(2, 0, 1)
        return Sample(image, target, index, self.dataset.path(index), (height, width))


def kept(dataset: Kind, what: str) -> Kind:
    """Return the data set with its pictures in memory, where they may be already. Raises UsageError."""
    return dataset if isinstance(dataset, DECODED) else cast(Kind, KeptImages(dataset, what))


def check_room(dataset: Pictures, what: str) -> None:
    """Judge by a few pictures whether all of them fit into the memory that is free here. Raises UsageError."""
    if isinstance(dataset, DECODED):
        return
    sizes = []
    for index in np.linspace(0, len(dataset) - 1, min(SAMPLED, len(dataset))).astype(int).tolist():
        try:
            sizes.append(dataset.load(index).image.numel())
        except DataError:  # said when its turn comes
            continue
    needed, room = float(np.mean(sizes or [0])) * len(dataset), _room_bytes()
    if needed > room:
        raise _no_room(what, len(dataset), needed, room)


def _room_bytes() -> float:
    """Return what this rank may take: its share of what is free on its machine."""
    return SPARE * free_bytes() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _no_room(what: str, count: int, needed: float, room: float) -> UsageError:
    return UsageError(
        f"{count:,} {what} pictures take about {needed / MIB:,.0f} MiB decoded, and {room / MIB:,.0f} MiB of memory "
        "are free here for them; read them from their files",
        ("cache",),
    )
