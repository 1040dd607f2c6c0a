"""Tell whether detections are what suppression makes of boxes and scores, when those are known to a tolerance only.

Comparing two lists would not do: where two scores, or an overlap and its threshold, are as good as equal, rounding
decides which of two boxes stays, and with it whether others do. Both lists are then right.
"""

from typing import NamedTuple

import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor
from torchvision.ops import batched_nms

from convzoo.boxes import clip_boxes
from convzoo.plain import JsonObject
from convzoo.tasks.postprocess import similarity
from convzoo.types import Prediction


class Matched(NamedTuple):
    """Detections [D] beside the reference's own numbers for them: boxes_xyxy [D, 4], scores [D]."""

    boxes_xyxy: Tensor
    scores: Tensor
    reference_boxes_xyxy: Tensor
    reference_scores: Tensor


def matched(
    detections: Prediction,
    boxes_xyxy: Tensor,
    scores: Tensor,
    size: tuple[int, int],
    options: JsonObject,
    tolerance: float,
) -> Matched | None:
    """Match each detection with the reference's candidate that it is, and check that the right ones are there.

    Args:
        detections: in pixels of the input.
        boxes_xyxy, scores: [N, 4] and [N, K], the reference's before suppression.
        size: (height, width) of the input, to which boxes are clipped after suppression.
        options: of the post-processing, as `Detect.options`.
        tolerance: of scores, and of boxes as a share of the largest coordinate.
    Returns:
        None where a detection is no candidate or is there twice, where two of a class overlap too much, or where a
        candidate is missing that no better detection of its class suppresses.
    """
    box, label = _candidates(scores, options, tolerance)
    score, boxes = scores[box, label], boxes_xyxy[box]
    shown = clip_boxes(boxes, size)
    mine = Matched(torch.as_tensor(detections.boxes_xyxy), torch.as_tensor(detections.scores), shown, score)
    labels = torch.as_tensor(detections.labels)
    reach_px = tolerance * max(1.0, float(shown.abs().max())) if len(shown) else 1.0
    apart = torch.cdist(mine.boxes_xyxy, shown, p=torch.inf) / reach_px
    apart = apart.maximum((mine.scores[:, None] - score).abs() / tolerance)
    apart[labels[:, None] != label] = torch.inf
    # One candidate each: two that were cut to the same box, with scores as good as equal, are still two.
    which = _pairs(apart, _survivors(boxes, score, label, options["iou_threshold"]))
    if which is None:
        return None
    mine = Matched(mine.boxes_xyxy, mine.scores, shown[which], score[which])
    error_px = float((mine.boxes_xyxy - mine.reference_boxes_xyxy).abs().max()) if len(which) else 0.0
    error_px = error_px + tolerance * (boxes - shown).abs().amax(1, keepdim=True)  # beyond the picture it is not seen
    candidates = _Candidates(box, label, score, boxes, (shown[:, 2:] > shown[:, :2]).all(1))
    return mine if _is_what_suppression_leaves(which, candidates, size, error_px, options, tolerance) else None


def _pairs(apart_DC: Tensor, preferred: Tensor) -> Tensor | None:
    """Return the candidate [D] of each detection, the nearest within 1, or None where not all have one of their own.

    As many as can be are of the mask `preferred` [C]: of candidates within 1, such as boxes that were cut to the same
    one, rounding decides which is nearest.
    """
    count, candidates = apart_DC.shape
    if not count or count > candidates:
        return None if count else torch.zeros(0, dtype=torch.int64)
    costs = 1e-6 + apart_DC.double() + (1 + count) * ~preferred  # more than all distances together
    weights = torch.where(apart_DC <= 1, costs, 0.0)  # 0 is no pair
    try:
        return torch.from_numpy(min_weight_full_bipartite_matching(csr_array(weights.numpy()))[1]).long()
    except ValueError:  # its way to say that there is none
        return None


def _survivors(boxes_xyxy: Tensor, score: Tensor, label: Tensor, iou_threshold: float) -> Tensor:
    """Return a mask of what suppression by overlap leaves of the reference's candidates."""
    mask = torch.zeros_like(score, dtype=torch.bool)
    if len(score):
        mask[batched_nms((boxes_xyxy - boxes_xyxy.amin()).double(), score.double(), label, iou_threshold)] = True
    return mask


class _Candidates(NamedTuple):
    """The reference's candidates [C]: which box each is, class, score, boxes_xyxy [C, 4], if it shows in the input."""

    box: Tensor
    label: Tensor
    score: Tensor
    boxes_xyxy: Tensor
    visible: Tensor


def _is_what_suppression_leaves(
    which: Tensor,
    all_: _Candidates,
    size: tuple[int, int],
    error_px: Tensor,
    options: JsonObject,
    tolerance: float,
) -> bool:
    """Tell whether the candidates `which` [D] do not overlap too much, and leave out only what they suppress."""
    boxes, score = all_.boxes_xyxy, all_.score
    kind, beta = options["nms_kind"], options["nms_beta"]
    overlap = similarity(boxes[:, None], boxes[which], size, kind, beta)
    overlap[all_.label[:, None] != all_.label[which]] = -torch.inf
    # How far an overlap can be off, when corners are as far off as the worst that was found, error_px [C, 1].
    side = (boxes[:, 2:] - boxes[:, :2]).amin(1).clamp(min=1e-6)
    reach = error_px / torch.minimum(side[:, None], side[which])
    slack = 1e-6 + 8 * reach
    if kind != "default":  # (d / c)^p, of which d / c is off by at most sqrt(32) times the reach
        power = 1.2 if kind == "greedynms" else 2 * beta
        slack += max(1.0, power) * (6 * reach) ** min(1.0, power)
    limit, most = options["iou_threshold"], options["max_detections"]
    if (overlap[which] - slack[which] > limit).fill_diagonal_(False).any():
        return False
    suppressed = ((overlap + slack > limit) & (score[which] >= score[:, None] - tolerance)).any(1)
    end = float(score[which].min()) if most is not None and len(which) == most else 0.0
    missing = (score > max(end, options["score_threshold"]) + tolerance) & ~suppressed & all_.visible
    missing[which] = False
    if not options["multi_label"]:
        # Of two equally good classes a box has one, and may be kept or suppressed as either.
        missing &= ~torch.isin(all_.box, torch.cat([all_.box[which], all_.box[suppressed]]))
    return not missing.any()


def _candidates(scores_NK: Tensor, options: JsonObject, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return (box, class) of what might be a candidate: all classes above the threshold, or each box's best."""
    least = torch.full_like(scores_NK[:, :1], options["score_threshold"])
    if not options["multi_label"]:
        least = least.maximum(scores_NK.amax(1, keepdim=True))
    return (scores_NK > least - tolerance).nonzero(as_tuple=True)  # type: ignore[return-value]
