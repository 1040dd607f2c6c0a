"""The pipeline of a recipe's operations, its random numbers, and what operations are made of."""

import functools
import inspect
import platform
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from convzoo.boxes import Placement
from convzoo.errors import DataError
from convzoo.types import Boxes, Key, Sample

# The streams of random numbers that a seed gives, kept apart.
ORDER, AUGMENT, SIZE = 0, 1, 2
CACHED = 1 << 18  # values that a core's cache holds while they are worked on


def keyed_rng(seed: int, stream: int, epoch: int, index: int) -> np.random.Generator:
    """Return a generator that is a function of its arguments alone."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, index, epoch]))


class _Stream(threading.local):
    """The generator that a thread sets anew for each picture; making one takes longer than cropping the picture."""

    def __init__(self) -> None:
        self.bits = np.random.Philox(key=[0, 0])
        self.state = self.bits.state
        self.generator = np.random.Generator(self.bits)


_stream = _Stream()


def reused_rng(seed: int, stream: int, epoch: int, index: int) -> np.random.Generator:
    """Return what `keyed_rng` does, in the one generator that this thread has: it is valid until the next call."""
    state = _stream.state
    state["state"]["key"][:] = seed, stream
    state["state"]["counter"][:] = 0, 0, index, epoch
    _stream.bits.state = state
    return _stream.generator


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn [B, 3, H, W] uint8 into float32, torch's default type, (value / 255 - mean) / std."""
    mean_255 = torch.tensor(mean, device=images.device).view(1, 3, 1, 1) * 255
    std_255 = torch.tensor(std, device=images.device).view(1, 3, 1, 1) * 255
    return (images.to(torch.get_default_dtype()) - mean_255) / std_255


def to_input(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return [B, 3, H, W] uint8 pictures as `normalize` does, in channels_last memory, where networks run quickest.

    On a CPU the bytes become floats at the place that they end up in, and are scaled there, a few pictures at a time
    that the cache holds: the pictures go through memory once.
    """
    if images.device.type != "cpu":
        return normalize(images, mean, std).contiguous(memory_format=torch.channels_last)
    count, channels, height, width = images.shape
    out = torch.empty_like(images, dtype=torch.get_default_dtype(), memory_format=torch.channels_last)
    # A row of pixels at a time: three channels alone would be too short for vector instructions.
    mean_255, std_255 = ((torch.tensor(values) * 255).repeat(width) for values in (mean, std))
    some = max(1, CACHED // max(1, channels * height * width))
    for first in range(0, count, some):
        part = out[first : first + some].copy_(images[first : first + some])
        part.permute(0, 2, 3, 1).view(-1, height, width * channels).sub_(mean_255).div_(std_255)
    return out


class Pipeline:
    """The operations of a recipe's `transform.train` or `transform.eval`, in order."""

    def __init__(self, operations: Sequence[Callable[..., Sample]], seed: int):
        self.operations = [
            (operation, "another" in inspect.signature(operation).parameters) for operation in operations
        ]
        self.seed = seed

    def __call__(
        self, sample: Sample, key: Key, another: Callable[[np.random.Generator], Sample] | None = None
    ) -> Sample:
        """Return the sample as the network gets it; `another` draws a second one for the operations that mix."""
        rng = reused_rng(self.seed, AUGMENT, key.epoch, key.index)
        truth = sample.target if sample.truth is None else sample.truth  # known where a picture was scaled before
        sample = replace(sample, truth=truth, size_px=key.size_px)
        for operation, mixes in self.operations:
            sample = operation(sample, rng, another) if mixes else operation(sample, rng)
        return sample


def moved(sample: Sample, image: Tensor, step: Placement) -> Sample:
    """Return the sample with a new image, in which the old one lies as `step` says; boxes move along, none is cut."""
    before, target = sample.placement, sample.target
    placement = Placement(
        before.scale_x * step.scale_x,
        before.scale_y * step.scale_y,
        before.offset_x * step.scale_x + step.offset_x,
        before.offset_y * step.scale_y + step.offset_y,
    )
    if isinstance(target, Boxes):
        scale, offset = np.tile(step[:2], 2), np.tile(step[2:], 2)
        target = replace(target, xyxy=target.xyxy * scale + offset)
    return replace(sample, image=image, target=target, placement=placement)


def interpolated(image: Tensor, size_hw: list[int], interpolation: str, antialias: bool) -> Tensor:
    """Resize [3, H, W] to the same pixels as torchvision does.

    "by_scale" is the MindSpore zoo's rule: bicubic to enlarge, nearest to shrink, else bilinear.
    """
    if interpolation == "by_scale":
        larger = [new > old for new, old in zip(size_hw, image.shape[-2:], strict=True)]
        smaller = [new < old for new, old in zip(size_hw, image.shape[-2:], strict=True)]
        interpolation = "bicubic" if all(larger) else "nearest-exact" if all(smaller) else "bilinear"
    if list(image.shape[-2:]) == list(size_hw):
        return image
    rows_first = image.permute(1, 2, 0)
    # A decoded picture lies in memory pixel by pixel; said plainly, it is resized so, without a copy.
    x = rows_first[None].permute(0, 3, 1, 2) if rows_first.is_contiguous() else image[None]
    smooth = {"align_corners": False, "antialias": antialias} if interpolation in ("bilinear", "bicubic") else {}
    if interpolation != "bilinear" or image.dtype != torch.uint8 or _resizes_bytes():
        return F.interpolate(x, size_hw, mode=interpolation, **smooth)[0]
    return F.interpolate(x.float(), size_hw, mode=interpolation, **smooth).round_().to(torch.uint8)[0]


@functools.cache
def _resizes_bytes() -> bool:
    """Tell whether this processor resizes uint8 bilinearly quicker than float32, by torchvision's own rule."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in ("aarch64", "arm64")


def stack_images(samples: Sequence[Sample]) -> Tensor:
    """Stack pictures of one size to [B, 3, H, W]. Raises DataError where sizes differ."""
    first = samples[0].image.shape
    for sample in samples:
        if sample.image.shape != first:
            shapes = f"{first[1]}x{first[2]} and {sample.image.shape[1]}x{sample.image.shape[2]}"
            raise DataError(
                f"{sample.path}: pictures of one batch differ in size ({shapes}); "
                "end the transform with resize or center_crop"
            )
    return torch.stack([sample.image for sample in samples])
