"""From decoded boxes and scores to each picture's detections: threshold, non-maximum suppression, original pixels."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from convzoo.boxes import clip_boxes, to_original
from convzoo.errors import ConvzooError

FAR_PX = 1e6  # no corner lies farther out: exp(t) may overflow, and the overlap of infinite boxes is undefined
FIRST_CANDIDATES = 1000


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
) -> list[Detections]:
    """Select each picture's detections: greedy non-maximum suppression within each class.

    Args:
        boxes_xyxy: [B, N, 4] in input pixels, as `yolo.decode` returns them.
        scores: [B, N, K] in 0..1, objectness times class.
        placement: [B, 4] scale_x, scale_y, offset_x, offset_y, as `boxes.Placement`.
        original_hw: [B, 2] height and width of the original pictures.
        score_threshold: only scores above it count.
        iou_threshold: a box goes where it overlaps a better one of its class by more than this.
        max_detections: of a picture, over all classes; None for all.
        multi_label: a box may be several classes, as in Darknet, not only the one with the best score.
        box_rule: "clip" clips the boxes that are left to the picture and drops those wholly outside; "darknet" leaves
            all as they are, as its `detector test` does. "mindspore" is the MindSpore zoo's: left and top moved to 0
            and width and height cut to the picture's, each for itself, all before suppression, and for the overlap
            width and height are a pixel larger.
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
        shown, compared = boxes, boxes
        if box_rule == "clip":
            shown = clip_boxes(boxes, (height, width))
        elif box_rule == "mindspore":
            shown = _cut_as_mindspore(boxes, height, width)
            compared = shown + shown.new_tensor([0, 0, 1, 1])
        visible = (shown[:, 2:] > shown[:, :2]).all(1) | (box_rule != "clip")
        survivors = _suppress(compared, score, label, visible, iou_threshold, max_detections)
        detections.append(Detections(shown[survivors], score[survivors], label[survivors]))
    return detections


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


def _cut_as_mindspore(boxes_xyxy: Tensor, height: int, width: int) -> Tensor:
    corner = boxes_xyxy[:, :2].clamp(min=0)
    size = torch.minimum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], boxes_xyxy.new_tensor([width, height]))
    return torch.cat([corner, corner + size], 1)


def _suppress(
    boxes_xyxy: Tensor, score: Tensor, label: Tensor, visible: Tensor, iou_threshold: float, limit: int | None
) -> Tensor:
    """Return the indices, best first, of the visible survivors among candidates that are sorted by score.

    What survives depends on better candidates only, so the best few are tried first, and more while too few survive.
    """
    total = len(score)
    tried = total if limit is None else min(total, max(FIRST_CANDIDATES, limit))
    # batched_nms moves the classes apart: in float32, or with negative corners, it would mix them up
    boxes = boxes_xyxy.double()
    boxes = boxes - boxes.amin() if total else boxes
    while True:
        survivors = batched_nms(boxes[:tried], score[:tried].to(boxes.dtype), label[:tried], iou_threshold)
        survivors = survivors[visible[survivors]].sort().values[:limit]
        if tried == total or len(survivors) == limit:
            return survivors
        tried = min(total, 4 * tried)
