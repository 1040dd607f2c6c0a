"""Operations on uint8 pictures. Each is `name(sample, rng, *, keys)` marked `@register("transform")`.

What an operation draws comes from `rng`, a generator keyed by (seed, epoch, sample index) alone, so a picture is
augmented in the same way by any worker on any rank. One that mixes pictures takes a third argument, `another(rng)`,
which draws a second sample. Normalisation is not an operation: batches travel as uint8 and become float on the device
(`normalize`). Operations that move boxes with the pixels are in `boxes`.
"""

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from convzoo.boxes import stretch_placement
from convzoo.config.registry import register
from convzoo.data.transforms.pipeline import interpolated, moved
from convzoo.errors import UsageError
from convzoo.logs import log
from convzoo.types import Boxes, Sample


class Stretch:
    """Stretch pictures of another size to the one that a model was trained on, and say so once."""

    def __init__(self, size_hw: tuple[int, int]):
        self.size_hw, self.warned = size_hw, False

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample.image.shape[-2:]
        if (height, width) == self.size_hw:
            return sample
        worker = torch.utils.data.get_worker_info()
        if not self.warned and (worker is None or worker.id == 0):
            to = "x".join(map(str, self.size_hw))
            log.warning(f"{sample.path}: {height}x{width} pixels; such pictures are stretched to the model's {to}")
        self.warned = True
        image = interpolated(sample.image, list(self.size_hw), "bilinear", antialias=True)
        return moved(sample, image, stretch_placement((height, width), self.size_hw))


@register("transform")
def resize(
    sample: Sample,
    rng: np.random.Generator,
    *,
    size_px: int | tuple[int, int],
    mode: Literal["short_side", "stretch"] = "short_side",
    interpolation: Literal["bilinear", "bicubic", "by_scale"] = "bilinear",
    antialias: bool = True,
) -> Sample:
    """Resize the short side to size_px and keep the aspect ratio, or stretch to size_px, a side or (height, width).

    Boxes move along. Raises UsageError for a short side that is given as two.
    """
    side, (height, width) = sample.size_px or size_px, sample.image.shape[-2:]
    if mode == "stretch":
        size = (side, side) if isinstance(side, int) else side
    elif isinstance(side, int):
        size = int(side * height / min(height, width)), int(side * width / min(height, width))
    else:
        raise UsageError(f"resize: mode short_side takes one size_px, not {side[0]}x{side[1]}; stretch takes two")
    image = interpolated(sample.image, list(size), interpolation, antialias)
    return moved(sample, image, stretch_placement((height, width), size))


@register("transform")
def center_crop(sample: Sample, rng: np.random.Generator, *, size_px: int) -> Sample:
    """Cut size_px x size_px from the middle; a smaller picture is padded with black."""
    height, width = sample.image.shape[-2:]
    lacking_y, lacking_x = max(0, size_px - height), max(0, size_px - width)
    sides = [lacking_x // 2, (lacking_x + 1) // 2, lacking_y // 2, (lacking_y + 1) // 2]
    image = F.pad(sample.image, sides) if any(sides) else sample.image
    top, left = (round((side - size_px) / 2) for side in image.shape[-2:])
    return replace(sample, image=image[:, top : top + size_px, left : left + size_px])


@register("transform")
def random_resized_crop(
    sample: Sample,
    rng: np.random.Generator,
    *,
    size_px: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    antialias: bool = True,
) -> Sample:
    """Cut a part of random area (a share within scale) and aspect ratio, and stretch it to size_px x size_px.

    Ten tries, then the largest middle part within the ratio (Szegedy et al. 2014, arXiv:1409.4842, section 6).
    """
    height, width = sample.image.shape[-2:]
    top, left, crop_h, crop_w = _random_box(height, width, rng, scale, ratio)
    crop = sample.image[:, top : top + crop_h, left : left + crop_w]
    return replace(sample, image=interpolated(crop, [size_px, size_px], interpolation, antialias))


def _random_box(
    height: int, width: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    log_ratio = np.log(ratio)
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        crop_w, crop_h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_w <= width and 0 < crop_h <= height:
            return int(rng.integers(height - crop_h + 1)), int(rng.integers(width - crop_w + 1)), crop_h, crop_w
    crop_w, crop_h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return (height - crop_h) // 2, (width - crop_w) // 2, crop_h, crop_w


@register("transform")
def pad_crop(sample: Sample, rng: np.random.Generator, *, padding_px: int) -> Sample:
    """Pad with black on all sides and cut the original size at a random place."""
    picture = sample.image.numpy()  # whose slices cost a fifth of a tensor's
    down, right = (rng.integers(2 * padding_px + 1, size=2) - padding_px).tolist()
    cut = np.zeros(picture.shape, dtype=picture.dtype)
    (to_y, from_y), (to_x, from_x) = (_moved(*axis) for axis in zip(picture.shape[1:], (down, right), strict=True))
    cut[:, to_y, to_x] = picture[:, from_y, from_x]
    return replace(sample, image=torch.from_numpy(cut))


def _moved(side: int, by: int) -> tuple[slice, slice]:
    """Return where the part of a side that stays within it after moving back by so many pixels goes, and is now."""
    first = max(0, by)
    last = max(first, side + min(0, by))
    return slice(first - by, last - by), slice(first, last)


@register("transform")
def flip_lr(sample: Sample, rng: np.random.Generator, *, prob: float = 0.5) -> Sample:
    """Mirror left and right with a probability; boxes too. Not for evaluation: the placement does not tell."""
    if rng.random() >= prob:
        return sample
    target = sample.target
    if isinstance(target, Boxes):
        left, top, right, bottom = target.xyxy.T
        width = sample.image.shape[-1]
        target = replace(target, xyxy=np.stack([width - right, top, width - left, bottom], 1))
    return replace(sample, image=sample.image.flip(-1), target=target)


@register("transform")
def color_jitter(
    sample: Sample,
    rng: np.random.Generator,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> Sample:
    """Change brightness, contrast, saturation by max(0, 1 - x) .. 1 + x, hue by -hue .. hue turns, in random order."""
    from torchvision.transforms.v2 import functional as colour  # here: slow to import, and for training alone

    adjustments = [
        (colour.adjust_brightness, brightness),
        (colour.adjust_contrast, contrast),
        (colour.adjust_saturation, saturation),
    ]
    steps = [(adjust, rng.uniform(max(0.0, 1 - amount), 1 + amount)) for adjust, amount in adjustments if amount]
    if hue:
        steps.append((colour.adjust_hue, rng.uniform(-hue, hue)))
    image = sample.image
    for i in rng.permutation(len(steps)):
        adjust, amount = steps[i]
        image = adjust(image, amount)
    return replace(sample, image=image)


@register("transform")
def hsv_distort(
    sample: Sample, rng: np.random.Generator, *, hue: float = 0.1, saturation: float = 1.5, exposure: float = 1.5
) -> Sample:
    """Shift hue by -hue .. hue turns and scale saturation and value by 1 .. x or the inverse, as Darknet does."""
    from torchvision.transforms.v2 import functional as colour  # here: slow to import, and for training alone

    def factor(largest: float) -> float:
        scale = rng.uniform(1.0, largest)
        return scale if rng.random() < 0.5 else 1 / scale

    image = colour.adjust_hue(sample.image, rng.uniform(-hue, hue)) if hue else sample.image
    image = colour.adjust_saturation(image, factor(saturation))
    return replace(sample, image=colour.adjust_brightness(image, factor(exposure)))


@register("transform")
def rotate_scale_crop(
    sample: Sample,
    rng: np.random.Generator,
    *,
    size_px: int,
    short_side_px: tuple[int, int],
    degrees: float = 0.0,
    aspect: float = 1.0,
) -> Sample:
    """Scale the short side to a random length, rotate, stretch and cut size_px x size_px, in one bilinear sampling.

    The augmentation of Darknet's classifiers: angle within +-degrees, aspect ratio scaled by 1 .. aspect or the
    inverse, what lies outside the picture is black.
    """
    height, width = sample.image.shape[-2:]
    stretch = math.sqrt(rng.uniform(1.0, aspect))
    stretch = stretch if rng.random() < 0.5 else 1 / stretch
    zoom = rng.uniform(*short_side_px) / min(height, width)  # output pixels per picture pixel
    angle = math.radians(rng.uniform(-degrees, degrees))
    room_y, room_x = (max(0.0, side - size_px / zoom) / 2 for side in (height, width))
    centre_y, centre_x = height / 2 + rng.uniform(-room_y, room_y), width / 2 + rng.uniform(-room_x, room_x)
    # theta maps output coordinates in -1..1 to input coordinates in -1..1.
    half = size_px / 2 / zoom
    cos, sin = math.cos(angle) * half, math.sin(angle) * half
    rows = [
        [cos * stretch * 2 / width, -sin / stretch * 2 / width, centre_x * 2 / width - 1],
        [sin * stretch * 2 / height, cos / stretch * 2 / height, centre_y * 2 / height - 1],
    ]
    grid = F.affine_grid(torch.tensor([rows], dtype=torch.float32), [1, 3, size_px, size_px], align_corners=False)
    image = F.grid_sample(sample.image[None].float(), grid, mode="bilinear", align_corners=False)[0]
    return replace(sample, image=image.round_().clamp_(0, 255).byte())


@register("transform")
def cutout(
    sample: Sample, rng: np.random.Generator, *, size_px: int, fill: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> Sample:
    """Fill a square around a random point with a colour (0..1), cut at the borders (DeVries 2017, arXiv:1708.04552)."""
    height, width = sample.image.shape[-2:]
    top, left = int(rng.integers(height)) - size_px // 2, int(rng.integers(width)) - size_px // 2
    image = sample.image.clone(memory_format=torch.contiguous_format)
    colour = torch.tensor([round(value * 255) for value in fill], dtype=torch.uint8).view(3, 1, 1)
    image[:, max(0, top) : max(0, top + size_px), max(0, left) : max(0, left + size_px)] = colour
    return replace(sample, image=image)
