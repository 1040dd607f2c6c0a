"""From the raw maps of a detector's heads to boxes and scores, for every kind of head that Darknet has.

Redmon and Farhadi 2016, "YOLO9000: Better, Faster, Stronger", arXiv:1612.08242, section 2 (region); the same 2018,
"YOLOv3: An Incremental Improvement", arXiv:1804.02767, section 2.1 (yolo); Bochkovskiy et al. 2020, "YOLOv4",
arXiv:2004.10934, section 3.4 (scale_x_y); Wang et al. 2021, "Scaled-YOLOv4", arXiv:2011.08036 (new_coords).
"""

# B images, A anchors of a head, H W cells, K classes, C = 5 + K channels, N predictions.

from collections.abc import Sequence

import torch
from torch import Tensor

from convzoo.boxes import cxcywh_to_xyxy
from convzoo.types import Head

OBJECTNESS, CLASSES = 4, slice(5, None)


def decode_heads(maps: Sequence[Tensor], heads: Sequence[Head]) -> tuple[Tensor, Tensor]:
    """Turn raw head maps into boxes and class scores.

    With s = scale_x_y, v = sigmoid(t) ("new_coords": v = t, a sigmoid having been applied):
    b_xy = (s v_xy - (s - 1) / 2 + cell) * stride; b_wh = anchor * exp(t_wh) ("new_coords": anchor * 4 t_wh^2);
    scores = v_objectness * v_class ("region": * softmax(t_class)).

    Args:
        maps: each [B, A*(5+K), H/s, W/s], channels anchor-major; half precision is computed in float32.
        heads: what each map means.
    Returns:
        boxes_xyxy [B, N, 4] in input pixels, not clipped, and scores [B, N, K] in 0..1; N counts head by head, then
        anchor, row, column.
    Raises:
        ValueError: a map's channels are not A*(5+K) for one K, or there are not as many maps as heads.
    """
    boxes, scores = [], []
    for map_BACHW, head in zip(split_maps(maps, heads), heads, strict=True):
        boxes.append(cxcywh_to_xyxy(boxes_cxcywh(map_BACHW, head)).flatten(1, 3))
        scores += _scores(map_BACHW, head).flatten(3).unbind(1)
    return torch.cat(boxes, 1), torch.cat(scores, 2).transpose(1, 2)  # joined as they lie in memory: quicker


def split_maps(maps: Sequence[Tensor], heads: Sequence[Head]) -> list[Tensor]:
    """View each map [B, A*C, H, W] as [B, A, C, H, W], in float32 at least. Raises ValueError as `decode_heads`."""
    if len(maps) != len(heads):
        raise ValueError(f"{len(maps)} maps of {len(heads)} heads")
    channels = [divmod(map_.shape[1], len(head.anchors_px)) for map_, head in zip(maps, heads, strict=True)]
    if len(set(channels)) != 1 or channels[0][0] < 6 or channels[0][1]:
        sizes = ", ".join(f"{m.shape[1]} for {len(head.anchors_px)}" for m, head in zip(maps, heads, strict=True))
        raise ValueError(f"a map has A*(5+K) channels for A anchors and one K >= 1, not {sizes}")
    promoted = [map_.to(torch.promote_types(map_.dtype, torch.float32)) for map_ in maps]
    return [map_.unflatten(1, (len(head.anchors_px), -1)) for map_, head in zip(promoted, heads, strict=True)]


def boxes_cxcywh(map_BACHW: Tensor, head: Head) -> Tensor:
    """Return boxes_cxcywh [B, A, H, W, 4] in input pixels."""
    options = {"device": map_BACHW.device, "dtype": map_BACHW.dtype}
    rows, columns = (torch.arange(n, **options) for n in map_BACHW.shape[3:])
    anchors_w, anchors_h = torch.tensor(head.anchors_px, **options)[:, :, None, None].unbind(1)  # each [A, 1, 1]
    t_x, t_y, t_w, t_h = map_BACHW[:, :, :4].unbind(2)  # each [B, A, H, W]
    if head.kind == "new_coords":
        x, y, w, h = t_x, t_y, 4 * t_w.square(), 4 * t_h.square()
    else:
        x, y, w, h = t_x.sigmoid(), t_y.sigmoid(), t_w.exp(), t_h.exp()
    if head.scale_x_y != 1:
        x, y = (head.scale_x_y * v - (head.scale_x_y - 1) / 2 for v in (x, y))
    return torch.stack(
        [(x + columns) * head.stride, (y + rows[:, None]) * head.stride, w * anchors_w, h * anchors_h], -1
    )


def _scores(map_BACHW: Tensor, head: Head) -> Tensor:
    """Return scores [B, A, K, H, W]."""
    objectness, classes = map_BACHW[:, :, OBJECTNESS, None], map_BACHW[:, :, CLASSES]
    if head.kind == "new_coords":
        return classes * objectness
    return (classes.softmax(2) if head.kind == "region" else classes.sigmoid()) * objectness.sigmoid()
