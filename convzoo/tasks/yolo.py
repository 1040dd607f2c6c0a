"""YOLOv3's loss: from true boxes to what raw head maps should say, and how far they are from it.

Redmon and Farhadi 2018, "YOLOv3: An Incremental Improvement", arXiv:1804.02767, section 2, and, where the paper is
silent, Darknet's yolo_layer. Pure functions: a step is

    targets = assign_targets(boxes_xyxy, labels, image_index, heads=heads, ...)
    ignored = ignore_masks(maps, boxes_xyxy, image_index, heads=heads, ...)
    terms = yolo_loss(maps, targets, ignored)

Boxes, sizes and anchors are in pixels of the network's input, which need not be square. Heads may come in any order,
with any number of anchors, and may share some; they are of kind "yolo".
"""

# B images, L heads, A anchors of a head, O of all, H W cells, K classes, C = 5 + K channels, N predictions, M true
# boxes, P predictions that answer for a box.

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from convzoo.boxes import centred_iou, cxcywh_to_xyxy, pairwise_iou, xyxy_to_cxcywh
from convzoo.tasks.heads import CLASSES, OBJECTNESS, boxes_cxcywh, split_maps
from convzoo.types import Head

T_XY, T_WH = slice(0, 2), slice(2, 4)


class LevelTargets(NamedTuple):
    """What one head map should say, at the P predictions of it that answer for a box, one box each.

    Attributes:
        image, anchor, row, column: [P] int64 each, where they are.
        offsets_xy: [P, 2] in 0..1, what sigmoid(t_xy) should be: without scale_x_y the box's centre within the cell.
        log_wh: [P, 2] log(box size / anchor size): what t_wh should be.
        weights: [P] of the four coordinates' terms, 2 - the box's share of the input's area: small boxes count more.
        class_probs: [P, K] in 0..1.
    """

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    offsets_xy: Tensor
    log_wh: Tensor
    weights: Tensor
    class_probs: Tensor


def assign_targets(
    boxes_xyxy: Tensor,
    labels: Tensor,
    image_index: Tensor,
    *,
    image_size: tuple[int, int],
    heads: Sequence[Head],
    num_classes: int,
    label_smoothing: float = 0.0,
) -> list[LevelTargets]:
    """Find for each true box the predictions that answer for it (section 2.1), and what those should say.

    A box goes to the anchor, of all heads, that it overlaps most when both lie on one centre, there to the cell that
    holds its centre; where several heads hold that anchor, each of them learns it. A prediction answers for one box:
    where several want the same, the one that the anchor fits best keeps it (of equals the first), the others take
    their next best. So no box is lost, whatever the order, unless more share a cell than there are anchors. (Darknet
    and the MindSpore zoo let the last overwrite the others.) Centres are not rounded; one on or beyond an edge belongs
    to the last cell. A box without area is left out.

    Args:
        boxes_xyxy: [M, 4] of all images of the batch, in input pixels.
        labels: [M] int64 in 0..K-1.
        image_index: [M] int64 in 0..B-1, the image of each box.
        image_size: (height, width) of the input in pixels, multiples of every stride.
        label_smoothing: e in 0..1: the true class should be 1 - e, each other one e / (K - 1).
    Returns:
        One LevelTargets a head, in their order.
    Raises:
        ValueError: boxes that are not finite, labels outside 0..K-1, or a size that a stride does not divide.
    """
    _check_truth(boxes_xyxy, labels, image_size, [head.stride for head in heads], num_classes)
    boxes_M4 = xyxy_to_cxcywh(boxes_xyxy)
    filled = (boxes_M4[:, 2:] > 0).all(1)
    boxes_M4, labels, image_index = boxes_M4[filled], labels[filled], image_index[filled]
    anchors_O2 = boxes_M4.new_tensor([anchor for head in heads for anchor in head.anchors_px])
    cells = [_cells(boxes_M4, head.stride, image_size) for head in heads]
    fits_MO = centred_iou(boxes_M4[:, 2:], anchors_O2)
    box, option = _shared(fits_MO, _prediction_ids(image_index, cells, image_size, heads), anchors_O2)
    class_probs = _smoothed(F.one_hot(labels, num_classes).to(boxes_M4), label_smoothing)
    weights = 2 - (boxes_M4[:, 2] / image_size[1]) * (boxes_M4[:, 3] / image_size[0])
    targets, first = [], 0
    for head, cells_M2 in zip(heads, cells, strict=True):
        here = (option >= first) & (option < first + len(head.anchors_px))
        mine, anchor, cell = box[here], option[here] - first, cells_M2[box[here]]
        log_wh = (boxes_M4[mine, 2:] / anchors_O2[option[here]]).log()
        where = (image_index[mine], anchor, cell[:, 1], cell[:, 0])
        offsets = _offsets(boxes_M4[mine, :2], cell, head)
        targets.append(LevelTargets(*where, offsets, log_wh, weights[mine], class_probs[mine]))
        first += len(head.anchors_px)
    return targets


@torch.no_grad()
def ignore_masks(
    maps: Sequence[Tensor],
    boxes_xyxy: Tensor,
    image_index: Tensor,
    *,
    heads: Sequence[Head],
    iou_threshold: float = 0.7,
) -> list[Tensor]:
    """Mark the predictions that overlap any true box of their image too well to be called background.

    Args:
        maps: one a head, each [B, A*(5+K), H/s, W/s], raw.
        boxes_xyxy: [M, 4] of all images of the batch, in input pixels.
        image_index: [M] int64 in 0..B-1.
        iou_threshold: a prediction is marked where its best IoU is above it; Darknet has 0.7, the paper 0.5.
    Returns:
        One bool mask [B, A, H, W] a head, True where the objectness is not penalised.
    Raises:
        ValueError: as `heads.decode_heads`.
    """
    decoded = [boxes_cxcywh(map_, head) for map_, head in zip(split_maps(maps, heads), heads, strict=True)]
    shapes = [boxes.shape[1:4] for boxes in decoded]
    boxes_BN4 = cxcywh_to_xyxy(torch.cat([boxes.flatten(1, 3) for boxes in decoded], 1))
    ignored = boxes_BN4.new_zeros(boxes_BN4.shape[:2], dtype=torch.bool)
    truth = boxes_xyxy.to(boxes_BN4)
    for image in image_index.unique().tolist():
        ious_NM = pairwise_iou(boxes_BN4[image], truth[image_index == image])
        ignored[image] = (ious_NM > iou_threshold).any(1)
    parts = ignored.split([a * h * w for a, h, w in shapes], 1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]


def yolo_loss(maps: Sequence[Tensor], targets: Sequence[LevelTargets], ignored: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the loss of raw head maps and its four terms, summed over predictions and divided by the images.

    Cross-entropy on the logits for the centre, the objectness of every prediction that is not ignored, and each class
    on its own (section 2.2); half the squared error for t_wh. Their gradients are those of Darknet's yolo_layer.
    A prediction that answers for a box is never ignored; one that does not learns nothing but its objectness.

    Args:
        maps: one a head, each [B, A*(5+K), H, W], raw logits; half precision is computed in float32.
        targets: one a head, of `assign_targets` or another rule.
        ignored: one bool [B, A, H, W] a head, of `ignore_masks` or another rule.
    Returns:
        "loss", the sum of "loss_xy", "loss_wh", "loss_objectness" and "loss_class"; scalars.
    Raises:
        ValueError: a map's channels are not A*(5+K) for the targets' K.
    """
    terms = torch.stack([_level_terms(*level) for level in zip(maps, targets, ignored, strict=True)]).sum(0)
    xy, wh, objectness, class_ = terms / len(maps[0])
    return {
        "loss": xy + wh + objectness + class_,
        "loss_xy": xy,
        "loss_wh": wh,
        "loss_objectness": objectness,
        "loss_class": class_,
    }


def _level_terms(map_: Tensor, target: LevelTargets, ignored_BAHW: Tensor) -> Tensor:
    """Return one head's sums [4] over all images: xy, wh, objectness, class."""
    num_anchors, num_classes = ignored_BAHW.shape[1], target.class_probs.shape[1]
    if map_.shape[1] != num_anchors * (5 + num_classes):
        raise ValueError(f"a map has {map_.shape[1]} channels, not {num_anchors}*(5+K), K = {num_classes}")
    map_BACHW = map_.to(torch.promote_types(map_.dtype, torch.float32)).unflatten(1, (num_anchors, -1))
    bce = F.binary_cross_entropy_with_logits
    where = (target.image, target.anchor, target.row, target.column)
    logits_PC = map_BACHW[where[0], where[1], :, where[2], where[3]]
    xy = bce(logits_PC[:, T_XY], target.offsets_xy, target.weights[:, None], reduction="sum")
    wh = 0.5 * (target.weights[:, None] * (logits_PC[:, T_WH] - target.log_wh).square()).sum()
    answers = torch.zeros_like(ignored_BAHW)
    answers[where] = True
    counted = (answers | ~ignored_BAHW).to(map_BACHW.dtype)
    truth = answers.to(map_BACHW.dtype)
    objectness = bce(map_BACHW[:, :, OBJECTNESS], truth, counted, reduction="sum")
    return torch.stack([xy, wh, objectness, bce(logits_PC[:, CLASSES], target.class_probs, reduction="sum")])


def _cells(boxes_cxcywh: Tensor, stride: int, image_size: tuple[int, int]) -> Tensor:
    """Return the cell (column, row) [M, 2] int64 of one level that holds each box's centre."""
    last = torch.tensor([image_size[1] // stride - 1, image_size[0] // stride - 1], device=boxes_cxcywh.device)
    return torch.minimum((boxes_cxcywh[:, :2] / stride).floor().long().clamp(min=0), last)


def _offsets(centres_P2: Tensor, cells_P2: Tensor, head: Head) -> Tensor:
    """Return what sigmoid(t_xy) should be [P, 2] for centres in input pixels.

    Where scale_x_y s stretches a centre about the cell's middle, x = s sigmoid(t) - (s - 1) / 2, that is
    (x + (s - 1) / 2) / s, in 0..1 for all s >= 1 and clamped for others. So the loss stays a cross-entropy, whose
    gradient sigmoid(t) - target vanishes where the box is right and nowhere else, and with s = 1 it is YOLOv3's.
    (Darknet's networks with s > 1 learn the boxes' overlap instead.)
    """
    offsets = (centres_P2 / head.stride - cells_P2).clamp(0, 1)
    return ((offsets + (head.scale_x_y - 1) / 2) / head.scale_x_y).clamp(0, 1)


def _prediction_ids(
    image_index: Tensor, cells: Sequence[Tensor], image_size: tuple[int, int], heads: Sequence[Head]
) -> Tensor:
    """Return a number [M, O] for the prediction behind each anchor that a box may take; equal ones are the same."""
    image_M = image_index * image_size[0] * image_size[1]
    columns = [
        (cells_M2[:, 1] * image_size[1] + cells_M2[:, 0] + image_M)[:, None].expand(-1, len(head.anchors_px))
        for cells_M2, head in zip(cells, heads, strict=True)
    ]
    cells_MO = torch.cat(columns, 1)
    return cells_MO * cells_MO.shape[1] + torch.arange(cells_MO.shape[1], device=cells_MO.device)


def _smoothed(one_hot: Tensor, label_smoothing: float) -> Tensor:
    """Return the class targets [M, K]."""
    return one_hot * (1 - label_smoothing) + (1 - one_hot) * (label_smoothing / max(1, one_hot.shape[1] - 1))


def _shared(fits_MO: Tensor, predictions_MO: Tensor, anchors_O2: Tensor) -> tuple[Tensor, Tensor]:
    """Return (box, option) [P] each: what each box is given, and what of the same anchor is free in other heads."""
    chosen = _choose(fits_MO, predictions_MO)
    box = (chosen >= 0).nonzero()[:, 0]
    option = chosen[box]
    is_same = (anchors_O2[:, None] == anchors_O2).all(2).fill_diagonal_(False)
    if not is_same.any():
        return box, option
    row, other = is_same[option].nonzero(as_tuple=True)
    wanting = box[row]
    free = ~torch.isin(predictions_MO[wanting, other], predictions_MO[box, option])
    wanting, other = wanting[free], other[free]
    order = fits_MO[wanting, other].argsort(descending=True, stable=True)
    order = order[_is_first(predictions_MO[wanting, other][order])]
    return torch.cat([box, wanting[order]]), torch.cat([option, other[order]])


def _choose(fits: Tensor, predictions: Tensor) -> Tensor:
    """Return for each box [M] the option it gets, or -1 where none is left.

    Args:
        fits: [M, O] how well each option suits each box, at least 0.
        predictions: [M, O] int64, the prediction behind each option; no two boxes may get the same.
    """
    fits = fits.clone()
    while len(fits):
        best, chosen = fits.max(1)
        order = best.argsort(descending=True, stable=True)
        lost = order[~_is_first(predictions[order, chosen[order]]) & (best[order] >= 0)]
        if not len(lost):
            return torch.where(best >= 0, chosen, -1)
        fits[lost, chosen[lost]] = -1
    return predictions.new_zeros(0)


def _is_first(values: Tensor) -> Tensor:
    """Return a mask [P], True where a value occurs for the first time."""
    _, group = values.unique(return_inverse=True)
    places = torch.arange(len(values), device=values.device)
    return torch.full_like(places, len(values)).scatter_reduce(0, group, places, "amin")[group] == places


def _check_truth(
    boxes_xyxy: Tensor, labels: Tensor, image_size: tuple[int, int], strides: Sequence[int], num_classes: int
) -> None:
    if any(side % stride for side in image_size for stride in strides):
        raise ValueError(
            f"an input of {image_size[0]}x{image_size[1]} pixels is not divided by strides {tuple(strides)}"
        )
    if not boxes_xyxy.isfinite().all():
        raise ValueError("a true box has coordinates that are not finite")
    if ((labels < 0) | (labels >= num_classes)).any():
        raise ValueError(f"labels must be in 0..{num_classes - 1}, not {labels.min()}..{labels.max()}")
