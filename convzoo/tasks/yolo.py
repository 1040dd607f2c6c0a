"""YOLOv3's numbers: from raw head maps to boxes, from true boxes to targets, and the loss between the two.

Redmon and Farhadi 2018, "YOLOv3: An Incremental Improvement", arXiv:1804.02767, section 2, and, where the paper is
silent, Darknet's yolo_layer. Pure functions: a step is

    targets = assign_targets(boxes_xyxy, labels, image_index, ...)
    ignored = ignore_masks(heads, boxes_xyxy, image_index, ...)
    terms = yolo_loss(heads, targets, ignored)

Boxes, sizes and anchors are in pixels of the network's input, which need not be square. Heads, anchors and strides go
finest first; the predictions of all levels are numbered level by level, then anchor, row, column.
"""

# B images, L levels, A anchors a level, H W cells, K classes, C = 5 + K channels, N predictions, M true boxes,
# P predictions that answer for a box.

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from convzoo.boxes import centred_iou, cxcywh_to_xyxy, pairwise_iou, xyxy_to_cxcywh

T_XY, T_WH, OBJECTNESS, CLASSES = slice(0, 2), slice(2, 4), 4, slice(5, None)


class LevelTargets(NamedTuple):
    """What one head map should say, at the P predictions of it that answer for a box, one box each.

    Attributes:
        image, anchor, row, column: [P] int64 each, where they are.
        offsets_xy: [P, 2] in 0..1, the box's centre within the cell: what sigmoid(t_xy) should be.
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


def decode(heads: Sequence[Tensor], anchors_px: Tensor, strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Turn raw YOLOv3 head maps into boxes and class scores.

    b_xy = (sigmoid(t_xy) + cell) * stride,  b_wh = anchor * exp(t_wh)    (Redmon & Farhadi 2018, section 2.1)

    Args:
        heads: finest first, each [B, A*(5+K), H/s, W/s], raw logits; half precision is computed in float32.
        anchors_px: [levels, A, 2], (width, height) in network-input pixels.
        strides: input pixels per cell, e.g. (8, 16, 32).
    Returns:
        boxes_xyxy [B, N, 4] in input pixels, not clipped, and scores [B, N, K] in 0..1, objectness times class;
        N counts level by level, then anchor, row, column.
    Raises:
        ValueError: a head's channels are not A*(5+K), or there are not as many heads as anchor rows and strides.
    """
    boxes, scores = [], []
    for head_BACHW, anchors_A2, stride in _levels(heads, anchors_px, strides):
        boxes.append(cxcywh_to_xyxy(_decode_boxes(head_BACHW, anchors_A2, stride)).flatten(1, 3))
        scores_BAKHW = head_BACHW[:, :, CLASSES].sigmoid() * head_BACHW[:, :, OBJECTNESS, None].sigmoid()
        scores += scores_BAKHW.flatten(3).unbind(1)
    return torch.cat(boxes, 1), torch.cat(scores, 2).transpose(1, 2)  # joined as they lie in memory: quicker


def assign_targets(
    boxes_xyxy: Tensor,
    labels: Tensor,
    image_index: Tensor,
    *,
    image_size: tuple[int, int],
    anchors_px: Tensor,
    strides: Sequence[int],
    num_classes: int,
    label_smoothing: float = 0.0,
) -> list[LevelTargets]:
    """Find for each true box the one prediction that answers for it (section 2.1), and what that should say.

    A box goes to the anchor, of all levels, that it overlaps most when both lie on one centre, there to the cell that
    holds its centre. A prediction answers for one box: where several want the same, the one that the anchor fits best
    keeps it (of equals the first), the others take their next best anchor. So no box is lost, whatever the order,
    unless more share a cell than there are anchors. (Darknet and the MindSpore zoo let the last overwrite the others.)
    Centres are not rounded; one on or beyond an edge belongs to the last cell. A box without area is left out.

    Args:
        boxes_xyxy: [M, 4] of all images of the batch, in input pixels.
        labels: [M] int64 in 0..K-1.
        image_index: [M] int64 in 0..B-1, the image of each box.
        image_size: (height, width) of the input in pixels, multiples of every stride.
        anchors_px: [L, A, 2], (width, height).
        label_smoothing: e in 0..1: the true class should be 1 - e, each other one e / (K - 1).
    Returns:
        One LevelTargets a level, finest first.
    Raises:
        ValueError: boxes that are not finite, labels outside 0..K-1, or a size that a stride does not divide.
    """
    _check_truth(boxes_xyxy, labels, image_size, strides, num_classes)
    boxes_M4 = xyxy_to_cxcywh(boxes_xyxy)
    filled = (boxes_M4[:, 2:] > 0).all(1)
    boxes_M4, labels, image_index = boxes_M4[filled], labels[filled], image_index[filled]
    anchors_LA2 = anchors_px.to(boxes_M4)
    cells_LM2 = torch.stack([_cells(boxes_M4, stride, image_size) for stride in strides])
    fits_MO = centred_iou(boxes_M4[:, 2:], anchors_LA2.flatten(0, 1))
    chosen = _choose(fits_MO, _prediction_ids(image_index, cells_LM2, image_size, anchors_LA2.shape[1]))
    class_probs = _smoothed(F.one_hot(labels, num_classes).to(boxes_M4), label_smoothing)
    weights = 2 - (boxes_M4[:, 2] / image_size[1]) * (boxes_M4[:, 3] / image_size[0])
    targets = []
    for level, (anchors_A2, stride) in enumerate(zip(anchors_LA2, strides, strict=True)):
        mine = chosen // len(anchors_A2) == level
        anchor, cell = chosen[mine] % len(anchors_A2), cells_LM2[level, mine]
        offsets = (boxes_M4[mine, :2] / stride - cell).clamp(0, 1)
        log_wh = (boxes_M4[mine, 2:] / anchors_A2[anchor]).log()
        where = (image_index[mine], anchor, cell[:, 1], cell[:, 0])
        targets.append(LevelTargets(*where, offsets, log_wh, weights[mine], class_probs[mine]))
    return targets


@torch.no_grad()
def ignore_masks(
    heads: Sequence[Tensor],
    boxes_xyxy: Tensor,
    image_index: Tensor,
    *,
    anchors_px: Tensor,
    strides: Sequence[int],
    iou_threshold: float = 0.7,
) -> list[Tensor]:
    """Mark the predictions that overlap any true box of their image too well to be called background.

    Args:
        heads: finest first, each [B, A*(5+K), H/s, W/s], raw logits.
        boxes_xyxy: [M, 4] of all images of the batch, in input pixels.
        image_index: [M] int64 in 0..B-1.
        iou_threshold: a prediction is marked where its best IoU is above it; Darknet has 0.7, the paper 0.5.
    Returns:
        One bool mask [B, A, H, W] a level, True where the objectness is not penalised.
    Raises:
        ValueError: as `decode`.
    """
    levels = _levels(heads, anchors_px, strides)
    shapes = [(head.shape[1], *head.shape[3:]) for head, _, _ in levels]
    decoded = [_decode_boxes(head, anchors, stride).flatten(1, 3) for head, anchors, stride in levels]
    boxes_BN4 = cxcywh_to_xyxy(torch.cat(decoded, 1))
    ignored = boxes_BN4.new_zeros(boxes_BN4.shape[:2], dtype=torch.bool)
    truth = boxes_xyxy.to(boxes_BN4)
    for image in image_index.unique().tolist():
        ious_NM = pairwise_iou(boxes_BN4[image], truth[image_index == image])
        ignored[image] = (ious_NM > iou_threshold).any(1)
    parts = ignored.split([a * h * w for a, h, w in shapes], 1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]


def yolo_loss(heads: Sequence[Tensor], targets: Sequence[LevelTargets], ignored: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the loss of raw head maps and its four terms, summed over predictions and divided by the images.

    Cross-entropy on the logits for the centre, the objectness of every prediction that is not ignored, and each class
    on its own (section 2.2); half the squared error for t_wh. Their gradients are those of Darknet's yolo_layer.
    A prediction that answers for a box is never ignored; one that does not learns nothing but its objectness.

    Args:
        heads: finest first, each [B, A*(5+K), H, W], raw logits; half precision is computed in float32.
        targets: one a level, of `assign_targets` or another rule.
        ignored: one bool [B, A, H, W] a level, of `ignore_masks` or another rule.
    Returns:
        "loss", the sum of "loss_xy", "loss_wh", "loss_objectness" and "loss_class"; scalars.
    Raises:
        ValueError: a head's channels are not A*(5+K) for the targets' K.
    """
    terms = torch.stack([_level_terms(*level) for level in zip(heads, targets, ignored, strict=True)]).sum(0)
    xy, wh, objectness, class_ = terms / len(heads[0])
    return {
        "loss": xy + wh + objectness + class_,
        "loss_xy": xy,
        "loss_wh": wh,
        "loss_objectness": objectness,
        "loss_class": class_,
    }


def _level_terms(head: Tensor, target: LevelTargets, ignored_BAHW: Tensor) -> Tensor:
    """Return one level's sums [4] over all images: xy, wh, objectness, class."""
    head_BACHW = _split(head, ignored_BAHW.shape[1], target.class_probs.shape[1])
    bce = F.binary_cross_entropy_with_logits
    where = (target.image, target.anchor, target.row, target.column)
    logits_PC = head_BACHW[where[0], where[1], :, where[2], where[3]]
    xy = bce(logits_PC[:, T_XY], target.offsets_xy, target.weights[:, None], reduction="sum")
    wh = 0.5 * (target.weights[:, None] * (logits_PC[:, T_WH] - target.log_wh).square()).sum()
    answers = torch.zeros_like(ignored_BAHW)
    answers[where] = True
    counted = (answers | ~ignored_BAHW).to(head_BACHW.dtype)
    truth = answers.to(head_BACHW.dtype)
    objectness = bce(head_BACHW[:, :, OBJECTNESS], truth, counted, reduction="sum")
    return torch.stack([xy, wh, objectness, bce(logits_PC[:, CLASSES], target.class_probs, reduction="sum")])


def _levels(heads: Sequence[Tensor], anchors_px: Tensor, strides: Sequence[int]) -> list[tuple[Tensor, Tensor, int]]:
    """Return for each level its map [B, A, C, H, W], anchors [A, 2] and stride."""
    if not len(heads) == len(anchors_px) == len(strides):
        raise ValueError(f"{len(heads)} heads, {len(anchors_px)} rows of anchors and {len(strides)} strides")
    split = [_split(head, anchors_px.shape[1]) for head in heads]
    if len({head.shape[2] for head in split}) > 1:
        raise ValueError(f"heads differ in channels: {', '.join(str(head.shape[1]) for head in heads)}")
    return [(head, row.to(head), stride) for head, row, stride in zip(split, anchors_px, strides, strict=True)]


def _split(head: Tensor, num_anchors: int, num_classes: int | None = None) -> Tensor:
    """View [B, A*C, H, W] as [B, A, C, H, W], in float32 at least."""
    channels, left_over = divmod(head.shape[1], num_anchors)
    if left_over or channels < 6 or (num_classes is not None and channels != 5 + num_classes):
        classes = "K >= 1" if num_classes is None else f"K = {num_classes}"
        raise ValueError(f"a head has {head.shape[1]} channels, not {num_anchors}*(5+K), {classes}")
    return head.to(torch.promote_types(head.dtype, torch.float32)).unflatten(1, (num_anchors, channels))


def _decode_boxes(head_BACHW: Tensor, anchors_A2: Tensor, stride: int) -> Tensor:
    """Return boxes_cxcywh [B, A, H, W, 4] in input pixels."""
    rows, columns = (torch.arange(n, device=head_BACHW.device, dtype=head_BACHW.dtype) for n in head_BACHW.shape[3:])
    t_x, t_y, t_w, t_h = head_BACHW[:, :, :4].unbind(2)  # each [B, A, H, W]
    anchors_w, anchors_h = anchors_A2[:, :, None, None].unbind(1)  # each [A, 1, 1]
    x, y = (t_x.sigmoid() + columns) * stride, (t_y.sigmoid() + rows[:, None]) * stride
    return torch.stack([x, y, t_w.exp() * anchors_w, t_h.exp() * anchors_h], -1)


def _cells(boxes_cxcywh: Tensor, stride: int, image_size: tuple[int, int]) -> Tensor:
    """Return the cell (column, row) [M, 2] int64 of one level that holds each box's centre."""
    last = torch.tensor([image_size[1] // stride - 1, image_size[0] // stride - 1], device=boxes_cxcywh.device)
    return torch.minimum((boxes_cxcywh[:, :2] / stride).floor().long().clamp(min=0), last)


def _prediction_ids(image_index: Tensor, cells_LM2: Tensor, image_size: tuple[int, int], num_anchors: int) -> Tensor:
    """Return a number [M, L*A] for the prediction behind each anchor that a box may take; equal ones are the same."""
    cells_LM = cells_LM2[..., 1] * image_size[1] + cells_LM2[..., 0] + image_index * image_size[0] * image_size[1]
    cells_MO = cells_LM.T.repeat_interleave(num_anchors, 1)
    return cells_MO * cells_MO.shape[1] + torch.arange(cells_MO.shape[1], device=cells_MO.device)


def _smoothed(one_hot: Tensor, label_smoothing: float) -> Tensor:
    """Return the class targets [M, K]."""
    return one_hot * (1 - label_smoothing) + (1 - one_hot) * (label_smoothing / max(1, one_hot.shape[1] - 1))


def _choose(fits: Tensor, predictions: Tensor) -> Tensor:
    """Return for each box [M] the option it gets, or -1 where none is left.

    Args:
        fits: [M, O] how well each option suits each box, at least 0.
        predictions: [M, O] int64, the prediction behind each option; no two boxes may get the same.
    """
    fits = fits.clone()
    places = torch.arange(len(fits), device=fits.device)
    while len(fits):
        best, chosen = fits.max(1)
        order = best.argsort(descending=True, stable=True)
        _, group = predictions[order, chosen[order]].unique(return_inverse=True)
        first = torch.full_like(places, len(fits)).scatter_reduce(0, group, places, "amin")
        lost = order[(first[group] != places) & (best[order] >= 0)]
        if not len(lost):
            return torch.where(best >= 0, chosen, -1)
        fits[lost, chosen[lost]] = -1
    return predictions.new_zeros(0)


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
