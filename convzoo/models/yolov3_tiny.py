"""YOLOv3-tiny: seven convolutions with max pools and a head at each of two scales, the network of yolov3-tiny.cfg.

Redmon and Farhadi 2018, "YOLOv3: An Incremental Improvement", arXiv:1804.02767, and github.com/pjreddie/darknet, which
alone describes it. 8,852,366 parameters at 80 classes. Modules are registered in the order of yolov3-tiny.cfg, which is
the order of a Darknet weight file.
Numerics: leaky slope 0.1; BN eps 1e-5; symmetric padding; the sixth max pool has stride 1 and sees nothing beyond the
map; the last convolution of each head is linear with bias; nearest upsampling, concatenated before the finer map. Init
N(0, 2 / fan_in) as Darknet, whose running statistics move by 0.01 a batch (norm_momentum).
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convzoo.config.registry import register
from convzoo.errors import UsageError
from convzoo.models.blocks import conv_norm_act, init_conv
from convzoo.models.darknet import Block
from convzoo.models.yolov3 import Anchors, check_anchors
from convzoo.types import Head

STRIDES = (16, 32)  # input pixels per cell, finest first
# (width, height) in input pixels, three per scale, finest first, as the published weights were trained: masks 1,2,3 and
# 3,4,5. The published .cfg says 0,1,2 for the finer (github.com/pjreddie/darknet, issue 851).
ANCHORS_PX = (
    ((23, 27), (37, 58), (81, 82)),
    ((81, 82), (135, 169), (344, 319)),
)


def heads(anchors_px: Anchors = ANCHORS_PX) -> tuple[Head, ...]:
    """Return what YOLOv3-tiny's maps mean, finest first, with anchors as `yolov3_tiny` takes them."""
    rows = [tuple((float(width), float(height)) for width, height in row) for row in anchors_px]
    return tuple(Head(stride, row) for stride, row in zip(STRIDES, rows, strict=True))


class YoloV3Tiny(nn.Module):
    """images [B, 3, H, W], H and W multiples of 32 -> raw head maps, finest first, each [B, 3*(5+K), H/s, W/s].

    Channels are anchor-major: for each of the scale's three anchors t_x, t_y, t_w, t_h, objectness, K class logits.

    Attributes:
        heads: of each map its stride and anchors, which say what its numbers mean.
    """

    def __init__(self, num_classes: int, width: float, block: Block, anchors_px: Anchors):
        super().__init__()
        self.heads = heads(anchors_px)
        num_outputs = len(ANCHORS_PX[0]) * (5 + num_classes)
        c16, c32, c64, c128, c256, c512, c1024 = (round(width * 2**n) for n in range(4, 11))
        self.fine = nn.Sequential(
            block(3, c16, 3),
            nn.MaxPool2d(2),
            block(c16, c32, 3),
            nn.MaxPool2d(2),
            block(c32, c64, 3),
            nn.MaxPool2d(2),
            block(c64, c128, 3),
            nn.MaxPool2d(2),
            block(c128, c256, 3),
        )
        self.coarse = nn.Sequential(
            nn.MaxPool2d(2),
            block(c256, c512, 3),
            nn.ReplicationPad2d((0, 1, 0, 1)),  # repeats the last pixels, which every window over them sees anyway
            nn.MaxPool2d(2, stride=1),
            block(c512, c1024, 3),
            block(c1024, c256, 1),
        )
        self.head32 = nn.Sequential(OrderedDict(block=block(c256, c512, 3), out=nn.Conv2d(c512, num_outputs, 1)))
        self.lateral16 = block(c256, c128, 1)
        self.head16 = nn.Sequential(OrderedDict(block=block(c128 + c256, c256, 3), out=nn.Conv2d(c256, num_outputs, 1)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        map16 = self.fine(x)
        map32 = self.coarse(map16)
        x = F.interpolate(self.lateral16(map32), scale_factor=2.0, mode="nearest")
        return self.head16(torch.cat([x, map16], 1)), self.head32(map32)


@register("model")
def yolov3_tiny(
    *,
    num_classes: int = 80,
    width: float = 1.0,
    norm_momentum: float = 0.1,
    anchors_px: list[list[tuple[float, float]]] | None = None,
) -> YoloV3Tiny:
    """Build YOLOv3-tiny.

    Args:
        width: scales the channels of all but the last convolutions; a multiple of 1/16.
        norm_momentum: PyTorch's; Darknet's is 0.01.
        anchors_px: (width, height) in input pixels, three for each of two scales, finest first; None for those that the
            published weights were trained with. The network is the same with any: they say what its outputs mean, and
            go with its weights.
    Raises:
        UsageError: a width that leaves broken channels, or other than two times three positive anchors.
    """
    if anchors_px is not None:
        check_anchors(anchors_px, len(STRIDES))
    if width <= 0 or width * 16 % 1:
        raise UsageError(f"model.width: must be a multiple of 1/16, so that all channels are whole, not {width}")

    def block(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
        return conv_norm_act(in_channels, out_channels, kernel_size, norm_momentum=norm_momentum, act=nn.LeakyReLU(0.1))

    model = YoloV3Tiny(num_classes, width, block, anchors_px or ANCHORS_PX)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            init_conv(module, "kaiming_fan_in")
    return model
