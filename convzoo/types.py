"""The nouns that every layer shares."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor


class Key(NamedTuple):
    """What a sampler yields: which sample, of which epoch, at which input size (None: as the recipe says)."""

    epoch: int
    index: int
    size_px: int | None = None


@dataclass
class Sample:
    """One picture on its way through the transforms.

    Attributes:
        image: [3, H, W] uint8 RGB.
        target: what the task learns; for classification the class index.
        index: position in the data set.
        path: where the picture came from, for messages and galleries.
        original_hw: height and width before any transform.
    """

    image: Tensor
    target: Any
    index: int
    path: str
    original_hw: tuple[int, int]


@dataclass(frozen=True)
class BadSample:
    """A picture that could not be read, on its way to whoever decides what that means."""

    index: int
    reason: str


@dataclass
class Batch:
    """A stack of samples.

    Attributes:
        images: [B, 3, H, W], uint8 RGB 0..255 from the loader, float32 once normalised.
        targets: for classification [B] int64.
        ids: [B] int64 positions in the data set.
        paths: B strings.
        original_hw: [B, 2] int64.
        valid: [B] bool, False for padding.
        bad: what could not be read and is therefore not in the batch.
    """

    images: Tensor
    targets: Any
    ids: Tensor
    paths: list[str]
    original_hw: Tensor
    valid: Tensor
    bad: list[BadSample] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def pin_memory(self) -> "Batch":
        """Move the pictures to page-locked memory, from where a GPU copies while it computes; the loader calls this."""
        self.images = self.images.pin_memory()
        return self


@dataclass(frozen=True)
class Prediction:
    """What the model says about one picture.

    Attributes:
        id: position in the data set.
        labels: [N] class indices, best first.
        scores: [N] in 0..1.
        boxes_xyxy: [N, 4] float pixels of the original picture, or None for classification.
    """

    id: int
    labels: np.ndarray
    scores: np.ndarray
    boxes_xyxy: np.ndarray | None = None


class Metric(Protocol):
    """Counts that add up exactly over batches and ranks."""

    def update(self, predictions: list[Prediction], batch: Batch) -> None: ...

    def merge(self, others: list["Metric"]) -> "Metric": ...

    def result(self) -> dict[str, Any]: ...

    def write(self, folder: Path, image_of: Callable[[int], Tensor]) -> None: ...


class Task(Protocol):
    """What is learned; knows nothing of devices, ranks, precision or files."""

    best_metric: str

    def collate(self, samples: list[Sample]) -> Batch: ...

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]: ...

    def postprocess(self, outputs: Any, batch: Batch) -> list[Prediction]: ...

    def new_metric(self) -> Metric: ...


class Runner(Protocol):
    """Anything that turns pictures into outputs: PyTorch here, an exported file elsewhere.

    Attributes:
        input: "float_nchw", normalised by the caller, or "uint8_nhwc", preprocessing inside.
        stage: "raw", "decoded" or "nms": how far the outputs are towards predictions.
    """

    name: str
    device: str
    input: str
    stage: str

    def __call__(self, images: np.ndarray | torch.Tensor) -> tuple[Any, ...]: ...
