"""YOLOv3 on DarkNet-53: a small detection head at each of three scales, the network of Darknet's yolov3.cfg.

Redmon and Farhadi 2018, "YOLOv3: An Incremental Improvement", arXiv:1804.02767, section 2. 61,949,149 parameters at 80
classes. Modules are registered in the order of yolov3.cfg, which is the order of a Darknet weight file.
Numerics: as DarkNet-53 (leaky slope 0.1, BN eps 1e-5, symmetric padding); the last convolution of each head is linear
with bias; nearest upsampling, concatenated before the backbone's map.
Variant of the MindSpore zoo: backbone_act="relu", down_padding="bottom_right", backbone_norm_momentum=0.9,
init="uniform_fan_in".
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convzoo.config.registry import register
from convzoo.errors import UsageError
from convzoo.models.blocks import conv_norm_act, init_conv
from convzoo.models.darknet import Block, Darknet53Backbone
from convzoo.types import Head

STRIDES = (8, 16, 32)  # input pixels per cell, finest first
# (width, height) in input pixels, three per scale, finest first; found by k-means on COCO.
ANCHORS_PX = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)


Anchors = Sequence[Sequence[Sequence[float]]]


def heads(anchors_px: Anchors = ANCHORS_PX) -> tuple[Head, ...]:
    """Return what YOLOv3's maps mean, finest first, with anchors as `yolov3` takes them."""
    rows = [tuple((float(width), float(height)) for width, height in row) for row in anchors_px]
    return tuple(Head(stride, row) for stride, row in zip(STRIDES, rows, strict=True))


class Scale(nn.Module):
    """One scale's five convolutions, whose output also feeds the next finer scale, and its head."""

    def __init__(self, in_channels: int, channels: int, num_outputs: int, block: Block):
        super().__init__()
        self.neck = nn.Sequential(
            block(in_channels, channels, 1),
            block(channels, 2 * channels, 3),
            block(2 * channels, channels, 1),
            block(channels, 2 * channels, 3),
            block(2 * channels, channels, 1),
        )
        self.head = nn.Sequential(
            OrderedDict(block=block(channels, 2 * channels, 3), out=nn.Conv2d(2 * channels, num_outputs, 1))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.neck(x)
        return x, self.head(x)


class YoloV3(nn.Module):
    """images [B, 3, H, W], H and W multiples of 32 -> raw head maps, finest first, each [B, 3*(5+K), H/s, W/s].

    Channels are anchor-major: for each of the scale's three anchors t_x, t_y, t_w, t_h, objectness, K class logits.

    Attributes:
        heads: of each map its stride and anchors, which say what its numbers mean.
    """

    def __init__(self, backbone: Darknet53Backbone, num_classes: int, block: Block, anchors_px: Anchors):
        super().__init__()
        small, medium, large = backbone.channels[-3:]
        self.heads = heads(anchors_px)
        num_outputs = len(ANCHORS_PX[0]) * (5 + num_classes)
        self.backbone = backbone
        self.scale32 = Scale(large, large // 2, num_outputs, block)
        self.lateral16 = block(large // 2, medium // 2, 1)
        self.scale16 = Scale(medium // 2 + medium, medium // 2, num_outputs, block)
        self.lateral8 = block(medium // 2, small // 2, 1)
        self.scale8 = Scale(small // 2 + small, small // 2, num_outputs, block)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        map8, map16, map32 = self.backbone(x)
        x, head32 = self.scale32(map32)
        x = F.interpolate(self.lateral16(x), scale_factor=2.0, mode="nearest")
        x, head16 = self.scale16(torch.cat([x, map16], 1))
        x = F.interpolate(self.lateral8(x), scale_factor=2.0, mode="nearest")
        _, head8 = self.scale8(torch.cat([x, map8], 1))
        return head8, head16, head32


def check_anchors(anchors_px: list[list[tuple[float, float]]], num_scales: int) -> None:
    """Raise UsageError for other than three positive anchors for each scale."""
    is_complete = [len(scale) for scale in anchors_px] == [3] * num_scales
    if not is_complete or min(min(pair) for row in anchors_px for pair in row) <= 0:
        rows = {2: "two", 3: "three"}[num_scales]
        raise UsageError(f"model.anchors_px: {rows} rows, finest first, of three [width, height] in pixels above 0")


@register("model")
def yolov3(
    *,
    num_classes: int = 80,
    width: float = 1.0,
    norm_momentum: float = 0.1,
    backbone_act: Literal["leaky", "relu"] = "leaky",
    backbone_norm_momentum: float = 0.1,
    down_padding: Literal["symmetric", "bottom_right"] = "symmetric",
    init: Literal["kaiming_fan_in", "uniform_fan_in"] = "kaiming_fan_in",
    anchors_px: list[list[tuple[float, float]]] | None = None,
) -> YoloV3:
    """Build YOLOv3.

    Args:
        width: scales the channels of all but the last convolutions; a multiple of 1/32.
        norm_momentum: of the necks and heads; Darknet's is 0.01, here and in the backbone.
        down_padding: where the backbone's five stride-2 convolutions pad.
        anchors_px: (width, height) in input pixels, three for each of three scales, finest first; None for COCO's. The
            network is the same with any: they say what its outputs mean, and go with its weights.
    Raises:
        UsageError: a width that leaves broken channels, or other than three times three positive anchors.
    """
    if anchors_px is not None:
        check_anchors(anchors_px, len(STRIDES))
    if width <= 0 or width * 32 % 1:
        raise UsageError(f"model.width: must be a multiple of 1/32, so that all channels are whole, not {width}")

    def block(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
        return conv_norm_act(in_channels, out_channels, kernel_size, norm_momentum=norm_momentum, act=nn.LeakyReLU(0.1))

    def backbone_block(in_channels: int, out_channels: int, kernel_size: int, **options) -> nn.Sequential:
        act = nn.LeakyReLU(0.1) if backbone_act == "leaky" else nn.ReLU()
        return conv_norm_act(
            in_channels, out_channels, kernel_size, norm_momentum=backbone_norm_momentum, act=act, **options
        )

    backbone = Darknet53Backbone(backbone_block, partial(backbone_block, stride=2, padding=down_padding), width)
    model = YoloV3(backbone, num_classes, block, anchors_px or ANCHORS_PX)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            init_conv(module, init)
    return model
