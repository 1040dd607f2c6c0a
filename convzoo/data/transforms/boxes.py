"""Operations for detection: they move the true boxes with the pixels. Arguments as in `image`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from convzoo.boxes import Placement, letterbox_placement, letterbox_size
from convzoo.config.registry import register
from convzoo.data.transforms.pipeline import interpolated, moved
from convzoo.types import Boxes, Sample

TRIES = 10
MIN_SIDE_PX = 1.0
# What a detector's recipe may use: all else would move the pixels and leave the boxes, or hide where a picture lies.
IN_EVAL = ("letterbox", "resize")
IN_TRAIN = (*IN_EVAL, "random_place", "flip_lr", "hsv_distort", "color_jitter", "cutout")


@register("transform")
def letterbox(
    sample: Sample,
    rng: np.random.Generator,
    *,
    size_px: int | tuple[int, int] = 416,
    fill: int = 128,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    antialias: bool = True,
    align_corners: bool = False,
) -> Sample:
    """Scale a picture to just fit into the input, in the middle of grey, its aspect ratio kept, as Darknet does.

    Args:
        size_px: side of the input, or (height, width).
        fill: 0..255 around the picture.
        align_corners: sample as Darknet does, bilinear with the corner pixels' centres kept; antialias is then off.
    """
    image_hw, input_hw = _size(sample.image), _input_size(sample, size_px)
    size, placement = letterbox_size(image_hw, input_hw), letterbox_placement(image_hw, input_hw)
    if align_corners:
        scaled = torch.nn.functional.interpolate(sample.image[None].float(), size, mode="bilinear", align_corners=True)[
            0
        ]
        scaled = scaled.round_().byte()
    else:
        scaled = interpolated(sample.image, list(size), interpolation, antialias)
    return moved(sample, _pasted(scaled, input_hw, int(placement.offset_x), int(placement.offset_y), fill), placement)


@register("transform")
def random_place(
    sample: Sample,
    rng: np.random.Generator,
    another: Callable[[np.random.Generator], Sample],
    *,
    size_px: int | tuple[int, int] = 416,
    jitter: float = 0.3,
    scale: tuple[float, float] = (0.25, 2.0),
    mosaic_prob: float = 0.0,
    min_visible: float = 0.0,
    fill: int = 128,
) -> Sample:
    """Scale a picture at random and lay it at a random place of the input, cut where it does not fit.

    Darknet's augmentation for YOLO: width and height are first changed by factors in 1 - jitter .. 1 + jitter each.
    Up to ten tries until a box is left; then a letterbox. A box less than a pixel wide or high, or of which less than
    the share min_visible is left, goes. With mosaic_prob four pictures are laid so, and each gives one of four parts
    around a random point (Bochkovskiy et al. 2020, arXiv:2004.10934, section 3.3).
    """
    input_hw = _input_size(sample, size_px)

    def lay(picture: Sample, window: tuple[int, int, int, int]) -> Sample:
        return _laid(picture, input_hw, window, rng, jitter, scale, min_visible, fill)

    if mosaic_prob == 0 or rng.random() >= mosaic_prob:
        return lay(sample, (0, 0, input_hw[1], input_hw[0]))
    x, y = (int(side * rng.uniform(0.25, 0.75)) for side in reversed(input_hw))
    columns, rows = ((0, x), (x, input_hw[1])), ((0, y), (y, input_hw[0]))
    windows = [(left, top, right, bottom) for top, bottom in rows for left, right in columns]
    parts = [lay(sample if i == 0 else another(rng), window) for i, window in enumerate(windows)]
    image = parts[0].image.clone()
    for part, (left, top, right, bottom) in zip(parts[1:], windows[1:], strict=True):
        image[:, top:bottom, left:right] = part.image[:, top:bottom, left:right]
    return replace(parts[0], image=image, target=Boxes.joined([part.target for part in parts]))


def _laid(
    sample: Sample,
    input_hw: tuple[int, int],
    window: tuple[int, int, int, int],
    rng: np.random.Generator,
    jitter: float,
    scale: tuple[float, float],
    min_visible: float,
    fill: int,
) -> Sample:
    """Lay a picture at random over the input and keep the boxes that show in the window (left, top, right, bottom)."""
    image_hw = _size(sample.image)

    def visible(size: tuple[int, int], left: float, top: float) -> tuple[Placement, Boxes]:
        step = Placement(size[1] / image_hw[1], size[0] / image_hw[0], left, top)
        return step, _visible(moved(sample, sample.image, step).target, window, min_visible)

    for _ in range(TRIES):
        size, left, top = _draw(image_hw, input_hw, rng, jitter, scale)
        step, target = visible(size, left, top)
        if len(target) or not len(sample.target):
            break
    else:
        size, (_, _, left, top) = letterbox_size(image_hw, input_hw), letterbox_placement(image_hw, input_hw)
        step, target = visible(size, left, top)
    scaled = interpolated(sample.image, list(size), "bilinear", antialias=True)
    return replace(moved(sample, _pasted(scaled, input_hw, int(left), int(top), fill), step), target=target)


def _draw(
    image_hw: tuple[int, int],
    input_hw: tuple[int, int],
    rng: np.random.Generator,
    jitter: float,
    scale: tuple[float, float],
) -> tuple[tuple[int, int], int, int]:
    """Return the (height, width) of the scaled picture and the (left, top) where it goes, negative where it is cut."""
    stretch_y, stretch_x = rng.uniform(1 - jitter, 1 + jitter, size=2)
    aspect = image_hw[1] * stretch_x / (image_hw[0] * stretch_y)
    zoom = rng.uniform(*scale)
    if aspect < input_hw[1] / input_hw[0]:
        height = zoom * input_hw[0]
        width = height * aspect
    else:
        width = zoom * input_hw[1]
        height = width / aspect
    # A picture of extreme shape must not grow without bound along its long side: four inputs are enough to cut from.
    height, width = (max(1, min(round(side), 4 * limit)) for side, limit in zip((height, width), input_hw, strict=True))
    left, top = (round(float(rng.uniform(*sorted((0, room))))) for room in (input_hw[1] - width, input_hw[0] - height))
    return (height, width), left, top


def _visible(boxes: Boxes, window: tuple[int, int, int, int], min_visible: float) -> Boxes:
    """Cut boxes at the window and keep those of which enough is left."""
    low, high = np.array(window[:2] * 2, dtype=float), np.array(window[2:] * 2, dtype=float)
    cut = replace(boxes, xyxy=boxes.xyxy.clip(low, high))
    sides, before = cut.xyxy[:, 2:] - cut.xyxy[:, :2], boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]
    return cut.take((sides > MIN_SIDE_PX).all(1) & (sides.prod(1) >= min_visible * before.prod(1)))


def _pasted(image: Tensor, input_hw: tuple[int, int], left: int, top: int, fill: int) -> Tensor:
    """Lay [3, h, w] over a canvas [3, H, W] of one grey; what lies outside is cut."""
    canvas = image.new_full((image.shape[0], *input_hw), fill)
    height, width = _size(image)
    rows = slice(max(0, top), min(input_hw[0], top + height))
    columns = slice(max(0, left), min(input_hw[1], left + width))
    if rows.start < rows.stop and columns.start < columns.stop:
        canvas[:, rows, columns] = image[
            :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
    return canvas


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _input_size(sample: Sample, size_px: int | tuple[int, int]) -> tuple[int, int]:
    side = sample.size_px or size_px
    return (side, side) if isinstance(side, int) else side
