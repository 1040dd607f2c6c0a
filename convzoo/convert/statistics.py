"""Proof without the original program: on real pictures each batch norm gets what it got in training.

A batch norm stores the mean and variance of its input over the training set. Where the network, its weights and its
preprocessing are what they were, real pictures give the same again; where a scale, a normalisation or an activation
differs, they do not. Measured on the original yolov3-tiny and 16 pictures, |log2| of the variance's ratio in
the median and the worst layer: right 0.29 and 0.41, a slope of 0.01 for 0.1 0.84 and 4.2, ImageNet's normalisation 2.5
and 4.6, values 0..255 for 0..1 12.7 and 16.3.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convzoo.build import build_dataset
from convzoo.data.decode import decode_rgb
from convzoo.errors import DataError, ToleranceError, UsageError
from convzoo.inference.predict import find_pictures
from convzoo.inference.torch_model import TorchModel
from convzoo.plain import JsonObject
from convzoo.types import Key, Sample

NUM_PICTURES = 16
MIN_PICTURES = 8  # the right tiny.weights is off by 0.21 on 8 at most, 0.7 on 2, 1.1 on one, as they happen to be
MEDIAN_LIMIT, WORST_LIMIT = 0.6, 2.0  # |log2| of the variance's ratio
UNSEEN = (
    "not seen by this: swapped colours, letterbox or stretch, one-sided padding, small epsilons, anchors, "
    "the order of the classes"
)


class Layer(NamedTuple):
    """One batch norm's input compared with what training stored.

    Attributes:
        num_judged: channels whose stored variance is above the layer's epsilon. Of the others the variance is next to
            nothing beside the epsilon that is added to it, so it could be off a hundredfold and nobody would see it.
        log2_variance: |log2(measured variance / stored variance)|, the median over those channels; nan without any.
        mean_shift: |measured mean - stored mean| in stored standard deviations, the median likewise.
    """

    name: str
    num_channels: int
    num_judged: int
    log2_variance: float
    mean_shift: float


@dataclass
class Statistics:
    """All batch norms of a network, in the order of its modules, and how many pictures they saw."""

    layers: list[Layer]
    num_pictures: int

    @property
    def judged(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.num_judged]

    @property
    def median(self) -> float:
        return float(np.median([layer.log2_variance for layer in self.judged]))

    @property
    def worst(self) -> Layer:
        return max(self.judged, key=lambda layer: layer.log2_variance)

    def summary(self) -> str:
        worst = self.worst
        layers = f"median layer {self.median:.2f}, worst {worst.log2_variance:.2f} ({worst.name})"
        return f"batch norms on {self.num_pictures} pictures: variances off by |log2| {layers}"

    def text(self) -> str:
        """Return a line for each layer, and what this does not see."""
        width = max(len(layer.name) for layer in self.layers)
        lines = [f"{'batch norm':{width}}  channels  judged  |log2 variance|  mean shift in std"]
        for name, channels, judged, variance, shift in self.layers:
            lines.append(f"{name:{width}}  {channels:8}  {judged:6}  {variance:15.2f}  {shift:17.2f}")
        return "\n".join([*lines, UNSEEN])

    def plain(self) -> JsonObject:
        layers = [layer._asdict() | {"log2_variance": _plain(layer.log2_variance)} for layer in self.layers]
        layers = [layer | {"mean_shift": _plain(layer["mean_shift"])} for layer in layers]
        return {
            "pictures": self.num_pictures,
            "median": self.median,
            "worst": self.worst.log2_variance,
            "layers": layers,
        }

    def require(self, source: str) -> None:
        """Raise StatisticsError where the network did not see in training what it sees now."""
        if self.median <= MEDIAN_LIMIT and self.worst.log2_variance <= WORST_LIMIT:
            return
        where = (
            "already in the first layer: its preprocessing is another than in training"
            if self.judged[0].log2_variance > MEDIAN_LIMIT
            else "not in the first layer: an activation or weights behind it differ"
        )
        limits = f"more than {MEDIAN_LIMIT:g} or {WORST_LIMIT:g}"
        raise StatisticsError(f"{source}: {self.summary()}, {limits}, {where}", self)


class StatisticsError(ToleranceError):
    """A network computes something else than in training; `statistics` says where."""

    def __init__(self, message: str, statistics: Statistics):
        super().__init__(message)
        self.statistics = statistics


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None


def batch_norm_statistics(model: TorchModel, pictures: Iterable[Sample]) -> Statistics | None:
    """Run pictures through a model's own preprocessing and network, and compare what its batch norms get.

    Returns:
        None where there is nothing to compare: no batch norm with stored statistics above its epsilon.
    """
    pipeline, runner, count = model.pipeline(), model.runner(), 0
    with _observed(model.model) as inputs:
        for picture in pictures:
            runner(pipeline(picture, Key(0, picture.index)).image[None])
            count += 1
    layers = [_layer(name, norm, inputs[name]) for name, norm in _norms(model.model).items() if inputs[name].count]
    statistics = Statistics(layers, count)
    return statistics if statistics.judged else None


def pictures_of(model: TorchModel, data: Path, count: int = NUM_PICTURES) -> Iterator[Sample]:
    """Yield pictures spread evenly over a folder of them, or over the validation split of the recipe's data set.

    Raises:
        UsageError: no such folder, no pictures in it and no such data set either.
        DataError: a picture that cannot be read, or a damaged data set, or too few.
    """
    try:
        paths = list(find_pictures([data])) if data.is_dir() else []
    except UsageError:
        paths = []  # a data set of files that are none, such as CIFAR-10's
    dataset = None if paths else build_dataset(model.recipe, data, "val", alone=True)
    total = len(paths) if dataset is None else len(dataset)
    if total < MIN_PICTURES:
        raise DataError(f"{data}: {total} pictures; fewer than {MIN_PICTURES} tell too little: give more")
    for index in np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist():
        yield _picture(paths[index], index) if dataset is None else dataset.load(index)


def _picture(path: str, index: int) -> Sample:
    image = decode_rgb(Path(path).read_bytes(), path)
    return Sample(image, 0, index, path, (image.shape[1], image.shape[2]))


@dataclass
class Moments:
    """Mean and variance [C] of what came by, per channel; float64, added up by Chan's formula."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, x: Tensor) -> None:
        """Add activations [B, C, ...]."""
        count = x.numel() // x.shape[1]
        variance, mean = torch.var_mean(x.double(), [0, *range(2, x.dim())], correction=0)
        step, total = mean - self.mean, self.count + count
        self.squares = self.squares + variance * count + step**2 * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        return self.squares / max(1, self.count)


def _norms(network: nn.Module) -> dict[str, _BatchNorm]:
    modules = network.named_modules()
    return {name: m for name, m in modules if isinstance(m, _BatchNorm) and m.running_var is not None}


@contextmanager
def _observed(network: nn.Module) -> Iterator[dict[str, Moments]]:
    """Collect what the batch norms get while this is open."""
    moments = {name: Moments() for name in _norms(network)}

    def observer(name: str):
        return lambda module, inputs: moments[name].add(inputs[0])

    handles = [norm.register_forward_pre_hook(observer(name)) for name, norm in _norms(network).items()]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


def _layer(name: str, norm: _BatchNorm, moments: Moments) -> Layer:
    assert norm.running_mean is not None and norm.running_var is not None
    stored, stored_mean = norm.running_var.double(), norm.running_mean.double()
    judged = stored > norm.eps
    if not judged.any():
        return Layer(name, len(stored), 0, float("nan"), float("nan"))
    # What lies below the epsilon is as good as the epsilon, for a dead channel too.
    ratio = (moments.variance.clamp(min=norm.eps) / stored).log2().abs()[judged]
    shift = ((moments.mean - stored_mean).abs() / stored.sqrt())[judged]
    return Layer(name, len(stored), int(judged.sum()), float(ratio.median()), float(shift.median()))
