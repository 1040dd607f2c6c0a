"""The nouns that every layer shares."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from convzoo.boxes import UNMOVED, Placement
from convzoo.plain import JsonObject, Keywords

Target = Any  # Any: the class index or Boxes, by what the task learns; who takes samples of both kinds looks which
Targets = Any  # Any: [B] int64 classes or BoxTargets; the task that stacked them takes them
Outputs = Any  # Any: a network's tensor or tensors; the task of the same recipe knows which
Output = Any  # Any: PyTorch's tensor or another runtime's array; both have shape and slices


class Key(NamedTuple):
    """What a sampler yields: which sample, of which epoch, at which input size (None: as the recipe says)."""

    epoch: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.index, which nobody asks a key for
    size_px: int | None = None


@dataclass(frozen=True)
class Boxes:
    """The true boxes of one picture.

    Attributes:
        xyxy: [N, 4] float64 in pixels of the picture; they may reach outside, and may be empty.
        labels: [N] int64 class indices.
        crowd: [N] bool, regions of many objects: not trained on, and detections there count neither for nor against.
        areas: [N] float64 original pixels by which COCO calls an object small or large: of its outline, else its box.
    """

    xyxy: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: np.ndarray) -> "Boxes":
        """Return the boxes that a mask [N] or indices choose."""
        return Boxes(self.xyxy[chosen], self.labels[chosen], self.crowd[chosen], self.areas[chosen])

    @staticmethod
    def joined(parts: Sequence["Boxes"]) -> "Boxes":
        """Return the boxes of all parts, one part after the other."""
        return Boxes(*(np.concatenate([getattr(part, name) for part in parts]) for name in Boxes.__dataclass_fields__))


@dataclass
class Sample:
    """One picture on its way through the transforms.

    Attributes:
        image: [3, H, W] uint8 RGB.
        target: what the task learns: the class index, or Boxes in pixels of `image`.
        index: position in the data set.
        path: where the picture came from, for messages and galleries.
        original_hw: height and width before any transform.
        truth: the target before any transform.
        placement: where the original picture lies in `image`.
        size_px: the side that this batch's pictures should get, None for what each operation says.
    """

    image: Tensor
    target: Target
    index: int
    path: str
    original_hw: tuple[int, int]
    truth: Target = None
    placement: Placement = UNMOVED
    size_px: int | None = None


@dataclass(frozen=True)
class BadSample:
    """A picture that could not be read, on its way to whoever decides what that means."""

    index: int
    reason: str


class Head(NamedTuple):
    """One map of a detector that has anchors, and what its numbers mean. A network has them as its `heads`.

    Attributes:
        stride: input pixels per cell.
        anchors_px: (width, height) in input pixels, one for each group of 5 + K channels.
        scale_x_y: what a centre within its cell is stretched by, about the cell's middle.
        kind: "yolo": logits (YOLOv3, YOLOv4); "new_coords": what a sigmoid gave, sizes by squares (Scaled-YOLOv4);
            "region": as "yolo", but classes by softmax (YOLOv2).
    """

    stride: int
    anchors_px: tuple[tuple[float, float], ...]
    scale_x_y: float = 1.0
    kind: Literal["yolo", "new_coords", "region"] = "yolo"


class BoxTargets(NamedTuple):
    """The learned boxes of a batch: boxes_xyxy [M, 4] in input pixels, labels [M], image_index [M] in 0..B-1."""

    boxes_xyxy: Tensor
    labels: Tensor
    image_index: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "BoxTargets":
        return BoxTargets(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))


@dataclass
class Batch:
    """A stack of samples.

    Attributes:
        images: [B, 3, H, W], uint8 RGB 0..255 from the loader, float32 once normalised.
        targets: what the loss takes: [B] int64 classes, BoxTargets, or another NamedTuple of tensors.
        ids: [B] int64 positions in the data set.
        paths: B strings.
        original_hw: [B, 2] int64.
        placement: [B, 4] float32 scale_x, scale_y, offset_x, offset_y: where each original picture lies in the input.
        valid: [B] bool, False for padding.
        truths: B targets before any transform.
        bad: what could not be read and is therefore not in the batch.
    """

    images: Tensor
    targets: Targets
    ids: Tensor
    paths: list[str]
    original_hw: Tensor
    placement: Tensor
    valid: Tensor
    truths: list[Target]
    bad: list[BadSample] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def share_memory(self) -> "Batch":
        """Move the pictures to where another process takes them without a copy. Raises RuntimeError: no room."""
        self.images.share_memory_()
        return self

    def __getstate__(self) -> Keywords:
        """Only the pictures travel between processes as shared memory: each tensor there costs a connection."""
        return {name: value if name == "images" else _as_arrays(value) for name, value in vars(self).items()}

    def __setstate__(self, state: Keywords) -> None:
        vars(self).update({name: _as_tensors(value) for name, value in state.items()})

    def pin_memory(self) -> "Batch":
        """Move the pictures to page-locked memory, from where a GPU copies while it computes; the loader calls this."""
        self.images = self.images.pin_memory()
        return self


def _as_arrays(value: Any) -> Any:  # Any: what a batch has, its tensors as arrays
    if isinstance(value, Tensor):
        return value.numpy()
    return type(value)(*map(_as_arrays, value)) if isinstance(value, tuple) else value


def _as_tensors(value: Any) -> Any:  # Any: the same the other way
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return type(value)(*map(_as_tensors, value)) if isinstance(value, tuple) else value


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


class Confusion(NamedTuple):
    """Counts [R, C] of true classes, a row each, by predicted class; row_names and column_names for a drawing of it.

    A detector has one more of each than `names` of classes, for what is on nothing and what is missed.
    """

    counts: np.ndarray
    names: list[str]
    row_names: list[str] | None = None
    column_names: list[str] | None = None


@dataclass(frozen=True)
class ComparedBoxes:
    """Where the true boxes of a picture and its detections differ, all in pixels of the picture.

    Attributes:
        truth_xyxy: [M, 4]; truth_names: of their classes; truth_found: which were detected as what they are.
        boxes_xyxy: [N, 4] best first; names: of their classes; scores: in 0..1; is_right: which are on such a box.
    """

    truth_xyxy: np.ndarray
    truth_names: list[str]
    truth_found: list[bool]
    boxes_xyxy: np.ndarray
    names: list[str]
    scores: list[float]
    is_right: list[bool]


class WorstPicture(NamedTuple):
    """A picture to show.

    Attributes:
        id: its position in the data set. caption: one line and a smaller second one.
        boxes: of a detector. classes: names of the answer and the truth, of a classifier.
    """

    id: int
    caption: tuple[str, str]
    boxes: ComparedBoxes | None = None
    classes: tuple[str, str] | None = None


class ExplainedPicture(NamedTuple):
    """A picture [H, W, 3] uint8 under what speaks for a class in it, and whether it truly shows that class."""

    picture: WorstPicture
    pixels: np.ndarray
    class_name: str
    is_true: bool


@dataclass(frozen=True)
class MetricReport:
    """What a metric has to show besides its result, as plain values: `report.evaluation` draws and writes it.

    Attributes:
        tables: rows by the table's name; one without rows is not shown.
        worst: the pictures with the worst mistakes, worst first.
        curves: recall and precision, [N] in 0..1 each, by class; None where there is no such thing.
        documents: JSON values by name; texts: lines by name; records: JSON values by name, one a line each.
    """

    tables: dict[str, list[JsonObject]]
    confusion: Confusion
    worst: list[WorstPicture]
    curves: dict[str, tuple[np.ndarray, np.ndarray]] | None = None
    documents: JsonObject = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    records: dict[str, list[JsonObject]] = field(default_factory=dict)


class Pictures(Protocol):
    """Pictures with their targets, by position."""

    class_names: list[str]

    def __len__(self) -> int: ...

    def load(self, index: int) -> Sample:
        """Return a picture as it is stored. Raises DataError where it cannot be read."""
        ...

    def path(self, index: int) -> str: ...


class Dataset(Pictures, Protocol):
    """Pictures of which the labels [N] int64 are known at once: one each, or those of all objects in all of them."""

    labels: np.ndarray


class BoxedDataset(Dataset, Protocol):
    """A data set for detection: boxes and sizes are known without decoding a picture."""

    category_ids: list[int]

    def boxes(self, index: int) -> Boxes: ...

    def size_hw(self, index: int) -> tuple[int, int]: ...

    def image_id(self, index: int) -> int: ...


class Metric(Protocol):
    """Counts that add up exactly over batches and ranks. `report` takes the data set for its own ids.

    `weighted` returns some of the result, by name [R], with each of N pictures, in the order of their ids, as often as
    weights [R, N] say; NaN where nothing is measured.
    """

    def update(self, predictions: list[Prediction], batch: Batch) -> None: ...

    def merge(self, others: list["Metric"]) -> "Metric": ...

    def result(self) -> JsonObject: ...

    def weighted(self, weights: np.ndarray) -> dict[str, np.ndarray]: ...

    def text(self) -> str: ...

    def report(self, dataset: Any) -> MetricReport: ...  # Any: of a detector a BoxedDataset, else any Pictures


class Task(Protocol):
    """What is learned, and what outputs mean; knows nothing of devices, ranks, precision or files.

    Attributes:
        best_metric: the key of a metric's result by which weights are chosen; larger is better.
        predicts: "classes", one logit each, or "boxes", of which there are three stages (see `Runner`).
        size_step: what height and width of the network's input must be multiples of.
        options: of the post-processing; those of boxes are `postprocess.postprocess`'s keywords.
    """

    @property
    def best_metric(self) -> str: ...

    @property
    def predicts(self) -> Literal["classes", "boxes"]: ...

    @property
    def size_step(self) -> int: ...

    @property
    def options(self) -> JsonObject: ...

    def collate(self, samples: list[Sample]) -> Batch: ...

    def start_training(self, labels: np.ndarray) -> None:
        """Take the classes of all training pictures or objects. Raises UsageError where no loss is for the outputs."""
        ...

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return scalars: "loss" is minimised, the others are logged."""
        ...

    def decode(self, outputs: Outputs) -> Outputs:
        """Return raw outputs as those of stage "decoded", in operations that a graph can have."""
        ...

    def output_shapes(self, size_hw: tuple[int, int], stage: str) -> dict[str, tuple[int, ...]]:
        """Return name and shape of each output of one picture of (height, width), without the batch's dimension."""
        ...

    def postprocess(self, outputs: Sequence[Tensor], batch: Batch) -> list[Prediction]:
        """Return what a runner's outputs of any stage say of each picture."""
        ...

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

    def __call__(self, images: np.ndarray | torch.Tensor) -> tuple[Output, ...]: ...
