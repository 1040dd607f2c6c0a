"""Boxes as plain tensors: formats, overlaps, and where a picture lies in the network's input.

The format is in the name: xyxy (left, top, right, bottom), cxcywh (centre, width, height), ltwh (left, top, width,
height, as COCO's JSON has it). Coordinates are continuous and count from the outer corner of the first pixel, so a
picture of width W spans 0..W and a box's width is right - left. Every function takes [..., 4] of any float type, no
boxes included, and returns new tensors. A box that is empty or inverted has area 0 and overlap 0 with everything,
itself included. Sizes of pictures are (height, width).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Placement(NamedTuple):
    """Where a picture lies in the network's input: input x = scale_x * original x + offset_x, y alike, in pixels."""

    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float


UNMOVED = Placement(1, 1, 0, 0)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Convert corners to centre and size."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Convert centre and size to corners."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Return the areas [...] of boxes [..., 4]; 0 for an empty or inverted box."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)


def pairwise_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Return the intersection over union [..., N, M], 0..1, of N boxes [..., N, 4] with M boxes [..., M, 4]."""
    ax1, ay1, ax2, ay2 = boxes_xyxy.unsqueeze(-2).unbind(-1)  # each [..., N, 1]
    bx1, by1, bx2, by2 = others_xyxy.unsqueeze(-3).unbind(-1)  # each [..., 1, M]
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp_(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp_(min=0)
    intersection = width * height
    union = box_area(boxes_xyxy).unsqueeze(-1) + box_area(others_xyxy).unsqueeze(-2) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def centred_iou(sizes_wh: Tensor, anchors_wh: Tensor) -> Tensor:
    """Return the IoU [M, A] of M sizes [M, 2] with A anchors [A, 2] on one centre; both (width, height) in one unit.

    The measure by which Redmon and Farhadi 2018 (arXiv:1804.02767, section 2.1) find the prior of a box.
    """
    sizes_M2, anchors_A2 = sizes_wh.clamp(min=0), anchors_wh.clamp(min=0)
    smaller = torch.minimum(sizes_M2[:, None], anchors_A2[None])
    intersection = smaller[..., 0] * smaller[..., 1]
    union = sizes_M2.prod(-1)[:, None] + anchors_A2.prod(-1)[None] - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def clip_boxes(boxes_xyxy: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Move corners outside a picture of (height, width) pixels to its border; a box wholly outside becomes empty."""
    height, width = image_size
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], -1)


def letterbox_size(image_size: tuple[int, int], input_size: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width), at least 1, of a picture scaled to just fit into the input, its aspect ratio kept.

    The shorter side is rounded down to whole pixels, as Darknet does.
    Raises:
        ValueError: a side is not positive.
    """
    (height, width), (input_height, input_width) = image_size, input_size
    _check_sizes(image_size, input_size)
    if input_width * height <= input_height * width:
        return max(1, height * input_width // width), input_width
    return input_height, max(1, width * input_height // height)


def letterbox_placement(image_size: tuple[int, int], input_size: tuple[int, int]) -> Placement:
    """Return where a letterboxed picture lies: `letterbox_size` in the middle, offsets rounded down to whole pixels.

    Raises:
        ValueError: a side is not positive.
    """
    height, width = letterbox_size(image_size, input_size)
    top, left = (input_size[0] - height) // 2, (input_size[1] - width) // 2
    return Placement(width / image_size[1], height / image_size[0], left, top)


def stretch_placement(image_size: tuple[int, int], input_size: tuple[int, int]) -> Placement:
    """Return where a picture lies that is stretched over the whole input, each side by its own factor.

    Raises:
        ValueError: a side is not positive.
    """
    _check_sizes(image_size, input_size)
    return Placement(input_size[1] / image_size[1], input_size[0] / image_size[0], 0, 0)


def _check_sizes(image_size: tuple[int, int], input_size: tuple[int, int]) -> None:
    if min(*image_size, *input_size) <= 0:
        raise ValueError(f"sizes must be positive (height, width), not {tuple(image_size)} and {tuple(input_size)}")


def to_input(boxes_xyxy: Tensor, placement: Tensor | Sequence[float]) -> Tensor:
    """Move boxes [..., N, 4] from original to input pixels, by one placement or one [..., 4] for each N boxes."""
    scale, offset = _scale_and_offset(boxes_xyxy, placement)
    return boxes_xyxy * scale + offset


def to_original(boxes_xyxy: Tensor, placement: Tensor | Sequence[float]) -> Tensor:
    """Move boxes [..., N, 4] from input to original pixels, the inverse of `to_input`; nothing is clipped."""
    scale, offset = _scale_and_offset(boxes_xyxy, placement)
    return (boxes_xyxy - offset) / scale


def _scale_and_offset(boxes_xyxy: Tensor, placement: Tensor | Sequence[float]) -> tuple[Tensor, Tensor]:
    values = torch.as_tensor(placement, dtype=boxes_xyxy.dtype, device=boxes_xyxy.device).unsqueeze(-2)  # [..., 1, 4]
    scale, offset = values[..., :2], values[..., 2:]
    return torch.cat([scale, scale], -1), torch.cat([offset, offset], -1)
