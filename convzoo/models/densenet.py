"""DenseNet-BC: every layer reads the concatenation of all earlier feature maps of its block.

Huang et al. 2017, "Densely Connected Convolutional Networks", arXiv:1608.06993, sections 3 and 4, table 1.
densenet100 (k=12, 16 layers a block, for 32x32): 769,162 parameters at 10 classes, as in the paper's table 2 (0.8M).
densenet121 (k=32, blocks of 6, 12, 24 and 16): 7,978,856 at 1000 classes, names and numbers as torchvision's.
Numerics: BN eps 1e-5, momentum 0.1; no convolution has a bias; transitions halve the channels, then 2x2 average pool;
Kaiming normal; classifier U(+-1/sqrt(fan_in)), bias 0.
Variants of the MindSpore zoo: its densenet100 has stem_norm=True (769,210 trainable), its densenet121
transition_pool="max" and stem_pool="bottom_right".
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convzoo.config.registry import register
from convzoo.models.blocks import init_conv, init_linear_uniform


class DenseLayer(nn.Module):
    """BN, ReLU, 1x1 to 4k channels, BN, ReLU, 3x3 to k channels, appended to the input."""

    def __init__(self, in_channels: int, growth_rate: int, dropout: float):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth_rate, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth_rate)
        self.conv2 = nn.Conv2d(4 * growth_rate, growth_rate, 3, padding=1, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.norm1(x)))
        new = self.conv2(F.relu(self.norm2(new)))
        if self.dropout:
            new = F.dropout(new, self.dropout, self.training)
        return torch.cat([x, new], 1)


def _transition(in_channels: int, pool: str) -> nn.Sequential:
    halve = nn.AvgPool2d(2) if pool == "avg" else nn.MaxPool2d(2)
    conv = nn.Conv2d(in_channels, in_channels // 2, 1, bias=False)
    return nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(in_channels), relu=nn.ReLU(), conv=conv, pool=halve))


class DenseNet(nn.Module):
    """images [B, 3, H, W] -> logits [B, num_classes]."""

    def __init__(
        self,
        stem: OrderedDict[str, nn.Module],
        stem_channels: int,
        growth_rate: int,
        blocks: Sequence[int],
        num_classes: int,
        transition_pool: str,
        dropout: float,
    ):
        super().__init__()
        self.features = nn.Sequential(stem)
        channels = stem_channels
        for number, num_layers in enumerate(blocks, 1):
            layers: OrderedDict[str, nn.Module] = OrderedDict(
                (f"denselayer{i + 1}", DenseLayer(channels + i * growth_rate, growth_rate, dropout))
                for i in range(num_layers)
            )
            self.features.add_module(f"denseblock{number}", nn.Sequential(layers))
            channels += num_layers * growth_rate
            if number < len(blocks):
                self.features.add_module(f"transition{number}", _transition(channels, transition_pool))
                channels //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_conv(module, "kaiming_fan_out")
        init_linear_uniform(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.features(x))
        return self.classifier(x.mean((2, 3)))


@register("model")
def densenet100(
    *,
    num_classes: int = 10,
    dropout: float = 0.0,
    stem_norm: bool = False,
    transition_pool: Literal["avg", "max"] = "avg",
) -> DenseNet:
    """Build DenseNet-BC with k=12 and 100 layers for 32x32 pictures.

    Args:
        dropout: after each 3x3 convolution; the paper uses 0.2 only where it trains without augmentation.
        stem_norm: batch norm and ReLU after the first convolution, which the paper does not have.
    """
    stem: OrderedDict[str, nn.Module] = OrderedDict(conv0=nn.Conv2d(3, 24, 3, padding=1, bias=False))
    if stem_norm:
        stem.update(norm0=nn.BatchNorm2d(24), relu0=nn.ReLU())
    return DenseNet(stem, 24, 12, (16, 16, 16), num_classes, transition_pool, dropout)


@register("model")
def densenet121(
    *,
    num_classes: int = 1000,
    dropout: float = 0.0,
    transition_pool: Literal["avg", "max"] = "avg",
    stem_pool: Literal["symmetric", "bottom_right"] = "symmetric",
) -> DenseNet:
    """Build DenseNet-121 (BC, k=32) for 224x224 pictures.

    Args:
        stem_pool: where the 3x3 stride-2 max pool pads, around the picture or only below and right of it.
    """
    pool = nn.MaxPool2d(3, 2, padding=1) if stem_pool == "symmetric" else nn.MaxPool2d(3, 2, ceil_mode=True)
    conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    stem: OrderedDict[str, nn.Module] = OrderedDict(conv0=conv, norm0=nn.BatchNorm2d(64), relu0=nn.ReLU(), pool0=pool)
    return DenseNet(stem, 64, 32, (6, 12, 24, 16), num_classes, transition_pool, dropout)
