"""Tiny-DarkNet and DarkNet-53 as classifiers, the networks of Darknet's tiny.cfg and darknet53.cfg.

Redmon, pjreddie.com/darknet/tiny-darknet; Redmon and Farhadi 2018, "YOLOv3: An Incremental Improvement",
arXiv:1804.02767, table 1. tinydarknet: 1,042,104 parameters at 1000 classes; darknet53: 41,609,928.
Numerics: leaky slope 0.1; BN eps 1e-5; symmetric padding; 2x2 max pools keep an odd last row (ceil mode); the last
convolution is linear, with bias and no batch norm; logits are its mean over the picture (tinydarknet) or it follows
the mean (darknet53). Init N(0, 2 / fan_in) as Darknet, whose running statistics move by 0.01 a batch (norm_momentum).
Variant of the MindSpore zoo: its tinydarknet is leaky_slope=0.2, norm_eps=1e-3, last="norm_leaky",
init="truncated_normal", always 1000 classes wide. timm's darknet53 is leaky_slope=0.01.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from convzoo.config.registry import register
from convzoo.models.blocks import conv_norm_act, init_conv

# (channels, kernel) of tiny.cfg's convolutions but the last; M is a 2x2 max pool.
TINY_PLAN = (
    (16, 3), "M", (32, 3), "M",
    (16, 1), (128, 3), (16, 1), (128, 3), "M",
    (32, 1), (256, 3), (32, 1), (256, 3), "M",
    (64, 1), (512, 3), (64, 1), (512, 3), (128, 1),
)  # fmt: skip
# (channels, residual units) of DarkNet-53's stages, each begun by a stride-2 convolution.
STAGES_53 = ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))
Block = Callable[[int, int, int], nn.Sequential]  # (in_channels, out_channels, kernel_size)


class TinyDarknet(nn.Module):
    """images [B, 3, H, W] -> logits [B, num_classes]."""

    def __init__(self, features: nn.Sequential, head: nn.Module):
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)).mean((2, 3))


@register("model")
def tinydarknet(
    *,
    num_classes: int = 1000,
    leaky_slope: float = 0.1,
    norm_eps: float = 1e-5,
    norm_momentum: float = 0.1,
    last: Literal["linear", "norm_leaky"] = "linear",
    init: Literal["kaiming_fan_in", "truncated_normal"] = "kaiming_fan_in",
) -> TinyDarknet:
    """Build Tiny-DarkNet.

    Args:
        last: the last 1x1 convolution is "linear" with a bias, or has batch norm and a leaky ReLU like the others.
    """

    def block(in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
        act = nn.LeakyReLU(leaky_slope)
        return conv_norm_act(
            in_channels, out_channels, kernel_size, norm_eps=norm_eps, norm_momentum=norm_momentum, act=act
        )

    layers: list[nn.Module] = []
    channels = 3
    for step in TINY_PLAN:
        if step == "M":
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        else:
            layers.append(block(channels, *step))
            channels = step[0]
    head = nn.Conv2d(channels, num_classes, 1) if last == "linear" else block(channels, num_classes, 1)
    model = TinyDarknet(nn.Sequential(*layers), head)
    _init(model, init)
    return model


class Residual(nn.Module):
    """x + 3x3(1x1(x)), the 1x1 halving the channels; nothing after the sum."""

    def __init__(self, channels: int, block: Block):
        super().__init__()
        self.conv1 = block(channels, channels // 2, 1)
        self.conv2 = block(channels // 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


class Darknet53Backbone(nn.Module):
    """images [B, 3, H, W] -> the last three stages' maps, finest first: 256, 512, 1024 channels at H/8, H/16, H/32.

    `block` builds the convolutions of stride 1, `down` the first one of every stage; `width` scales all channels.
    """

    def __init__(self, block: Block, down: Block, width: float = 1.0):
        super().__init__()
        self.channels = [round(channels * width) for channels, _ in STAGES_53]
        self.stem = block(3, round(32 * width), 3)
        self.stages = nn.Sequential()
        before = round(32 * width)
        for channels, (_, num_units) in zip(self.channels, STAGES_53, strict=True):
            units = nn.Sequential(*(Residual(channels, block) for _ in range(num_units)))
            self.stages.append(nn.Sequential(OrderedDict(down=down(before, channels, 3), units=units)))
            before = channels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[2], maps[3], maps[4]


class Darknet53(nn.Module):
    """images [B, 3, H, W] -> logits [B, num_classes]."""

    def __init__(self, backbone: Darknet53Backbone, num_classes: int):
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.backbone(x)[-1].mean((2, 3)))


@register("model")
def darknet53(*, num_classes: int = 1000, leaky_slope: float = 0.1, norm_momentum: float = 0.1) -> Darknet53:
    """Build DarkNet-53 as a classifier."""

    def block(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> nn.Sequential:
        act = nn.LeakyReLU(leaky_slope)
        return conv_norm_act(
            in_channels, out_channels, kernel_size, stride=stride, norm_momentum=norm_momentum, act=act
        )

    model = Darknet53(Darknet53Backbone(block, partial(block, stride=2)), num_classes)
    _init(model, "kaiming_fan_in")
    return model


def _init(model: nn.Module, scheme: str) -> None:
    # Darknet scales by sqrt(2 / fan_in) whatever the slope.
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            init_conv(module, scheme)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
