"""From decoded boxes and scores to each picture's detections: threshold, non-maximum suppression, original pixels.

Zheng et al. 2020, "Distance-IoU Loss", arXiv:1911.08287, section 3.4, for suppression that looks at centres too, with
the exponent that Darknet's box.c gives it; the same 2020, arXiv:2005.03572, section 3.2, for suppression by matrices.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from convzoo.boxes import clip_boxes, pairwise_iou, to_original
from convzoo.errors import ConvzooError

FAR_PX = 1e6  # no corner lies farther out: exp(t) may overflow, and the overlap of infinite boxes is undefined
FIRST_CANDIDATES = 1000
BLOCK = 256
GREEDY_EXPONENT = 0.6

NmsKind = Literal["default", "greedynms", "diounms"]


class Detections(NamedTuple):
    """What is seen in one picture, best first: boxes_xyxy [N, 4] in original pixels, scores [N] in 0..1, labels [N]."""

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor


@torch.no_grad()
def postprocess(
    boxes_xyxy: Tensor,
    scores: Tensor,
    placement: Tensor,
    original_hw: Tensor,
    *,
    score_threshold: float = 0.001,
    iou_threshold: float = 0.5,
    max_detections: int | None = 100,
    multi_label: bool = False,
    box_rule: Literal["clip", "darknet", "mindspore"] = "clip",
    nms_kind: NmsKind = "default",
    nms_beta: float = 0.6,
) -> list[Detections]:
    """Select each picture's detections: greedy non-maximum suppression within each class.

    Args:
        boxes_xyxy: [B, N, 4] in input pixels, as `heads.decode_heads` returns them.
        scores: [B, N, K] in 0..1, objectness times class.
        placement: [B, 4] scale_x, scale_y, offset_x, offset_y, as `boxes.Placement`.
        original_hw: [B, 2] height and width of the original pictures.
        score_threshold: only scores above it count.
        iou_threshold: a box goes where its `similarity` to a better one of its class is above this.
        max_detections: of a picture, over all classes; None for all.
        multi_label: a box may be several classes, as in Darknet, not only the one with the best score.
        box_rule: "clip" clips the boxes that are left to the picture and drops those wholly outside; "darknet" leaves
            all as they are, as its `detector test` does. "mindspore" is the MindSpore zoo's: left and top moved to 0
            and width and height cut to the picture's, each for itself, all before suppression, and for the overlap
            width and height are a pixel larger.
        nms_kind, nms_beta: of `similarity`; "default" is the overlap alone.
    Raises:
        ConvzooError: scores that are not finite.
    """
    if not torch.isfinite(scores.sum()):
        raise ConvzooError("the network's scores are not finite (NaN or infinite); its weights or its input are broken")
    detections = []
    for boxes_N4, scores_NK, where, (height, width) in zip(
        boxes_xyxy, scores, placement, original_hw.tolist(), strict=True
    ):
        prediction, label, score = _candidates(scores_NK, score_threshold, multi_label)
        boxes = to_original(boxes_N4[prediction], where).clamp(-FAR_PX, FAR_PX)
        shown, compared = _shown_and_compared(boxes, (height, width), box_rule)
        visible = (shown[:, 2:] > shown[:, :2]).all(1) | (box_rule != "clip")
        if nms_kind == "default":
            survivors = _suppress(compared, score, label, visible, iou_threshold, max_detections)
        else:
            alike = functools.partial(similarity, size=(height, width), nms_kind=nms_kind, nms_beta=nms_beta)
            survivors = _suppress_alike(alike, compared, label, visible, iou_threshold, max_detections)
        detections.append(Detections(shown[survivors], score[survivors], label[survivors]))
    return detections


def similarity(
    boxes_xyxy: Tensor, others_xyxy: Tensor, size: tuple[int, int], nms_kind: NmsKind, nms_beta: float
) -> Tensor:
    """Return what suppression compares with its threshold [...], at most 1, of boxes [..., 4] with others [..., 4].

    The IoU, less (d^2 / c^2)^0.6 ("greedynms") or (d^2 / c^2)^nms_beta ("diounms"): d is the distance of the centres,
    c the diagonal of the box round both, in shares of the picture, so both depend on its aspect ratio.

    Args:
        size: (height, width) of the picture in whose pixels the boxes are.
    """
    ious = pairwise_iou(boxes_xyxy.unsqueeze(-2), others_xyxy.unsqueeze(-2))[..., 0, 0]
    if nms_kind == "default":
        return ious
    share = boxes_xyxy.new_tensor([size[1], size[0]] * 2)
    (low, high), (other_low, other_high) = ((boxes / share).split(2, -1) for boxes in (boxes_xyxy, others_xyxy))
    distance = ((low + high - other_low - other_high) / 2).square().sum(-1)
    diagonal = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).square().sum(-1)
    ratio = distance / diagonal.clamp(min=torch.finfo(diagonal.dtype).tiny)
    return ious - ratio ** (GREEDY_EXPONENT if nms_kind == "greedynms" else nms_beta)


def _candidates(scores_NK: Tensor, score_threshold: float, multi_label: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the prediction, label and score of all candidates, best first."""
    if multi_label:
        prediction, label = (scores_NK > score_threshold).nonzero(as_tuple=True)
        score = scores_NK[prediction, label]
    else:
        best = scores_NK.amax(1)  # without the class, which a few need: four times as fast
        prediction = (best > score_threshold).nonzero()[:, 0]
        score, label = best[prediction], scores_NK[prediction].argmax(1)
    score, order = score.sort(descending=True, stable=True)
    return prediction[order], label[order], score


def _shown_and_compared(boxes_xyxy: Tensor, size: tuple[int, int], box_rule: str) -> tuple[Tensor, Tensor]:
    """Return the boxes as they are given back, and as suppression takes them; `size` (height, width) in pixels."""
    if box_rule == "clip":
        return clip_boxes(boxes_xyxy, size), boxes_xyxy
    if box_rule == "mindspore":
        corner = boxes_xyxy[:, :2].clamp(min=0)
        sides = torch.minimum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], boxes_xyxy.new_tensor([size[1], size[0]]))
        cut = torch.cat([corner, corner + sides], 1)
        return cut, cut + cut.new_tensor([0, 0, 1, 1])
    return boxes_xyxy, boxes_xyxy


def _suppress(
    boxes_xyxy: Tensor, score: Tensor, label: Tensor, visible: Tensor, iou_threshold: float, limit: int | None
) -> Tensor:
    """Return the indices, best first, of the visible survivors among candidates that are sorted by score.

    What survives depends on better candidates only, so the best few are tried first, and more while too few survive.
    """
    total = len(score)
    tried = total if limit is None else min(total, max(FIRST_CANDIDATES, limit))
    # Classes are moved apart: in float32, or with negative corners, they would be mixed up.
    boxes = boxes_xyxy.double()
    boxes = boxes - boxes.amin() if total else boxes
    while True:
        survivors = _suppress_by_class(boxes[:tried], score[:tried].to(boxes.dtype), label[:tried], iou_threshold)
        survivors = survivors[visible[survivors]].sort().values[:limit]
        if tried == total or len(survivors) == limit:
            return survivors
        tried = min(total, 4 * tried)


def _suppress_by_class(boxes_xyxy: Tensor, score: Tensor, label: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices of the survivors among boxes [P, 4] whose smallest corner is 0, in any order."""
    nms = _nms()
    if len(score) <= FIRST_CANDIDATES:
        apart = label.to(boxes_xyxy) * (boxes_xyxy.max() + 1 if len(score) else 0)
        return nms(boxes_xyxy + apart[:, None], score, iou_threshold)
    groups = [(label == one).nonzero()[:, 0] for one in label.unique()]  # of many boxes few are of a class
    return torch.cat([group[nms(boxes_xyxy[group], score[group], iou_threshold)] for group in groups])


@functools.cache
def _nms() -> Callable[..., Tensor]:
    """Return torchvision's kernel. Its library is loaded by itself where it is found: the package takes seconds."""
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec and spec.submodule_search_locations) or ():
        for library in Path(folder).glob("_C*"):
            torch.ops.load_library(library)
    operators: Any = torch.ops.torchvision  # Any: operators appear on it as libraries are loaded
    if not hasattr(operators, "nms"):
        importlib.import_module("torchvision")
    return operators.nms


def _suppress_alike(
    alike: Callable[[Tensor, Tensor], Tensor],
    boxes_xyxy: Tensor,
    label: Tensor,
    visible: Tensor,
    threshold: float,
    limit: int | None,
) -> Tensor:
    """Do as `_suppress` by any measure of how alike boxes [P, 4] and others [P, 4] are, block after block.

    Within a block the survivors are the fixed point of "no survivor before it is too like it". Each round settles one
    more candidate at least, in practice nearly all are after a few (Zheng et al. 2020, proposition 1).
    """
    boxes = boxes_xyxy.double()

    def too_alike(these: Tensor, those: Tensor) -> Tensor:
        matrix = label[these, None] == label[those]
        i, j = matrix.nonzero(as_tuple=True)  # of many classes few pairs are one's
        matrix[i, j] = alike(boxes[these[i]], boxes[those[j]]) > threshold
        return matrix

    survivors = label.new_zeros(0)
    for block in torch.arange(len(label), device=label.device).split(BLOCK):
        block = block[~too_alike(survivors, block).any(0)]
        before = too_alike(block, block).triu(1)
        previous, alive = None, torch.ones_like(block, dtype=torch.bool)
        while previous is None or not torch.equal(alive, previous):
            previous, alive = alive, ~(before & alive[:, None]).any(0)
        survivors = torch.cat([survivors, block[alive]])
        if limit is not None and int(visible[survivors].sum()) >= limit:
            break
    return survivors[visible[survivors]][:limit]
