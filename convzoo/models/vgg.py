"""VGG-16: thirteen 3x3 convolutions in five stages, then three fully connected layers.

Simonyan and Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image Recognition", arXiv:1409.1556,
table 1 column D. 138,357,544 parameters at 1000 classes, 138,365,992 with batch norm (names and numbers as
torchvision's vgg16 and vgg16_bn). The head "small" replaces the classifier for small pictures by one linear layer on
the pooled 512 features: 14,728,266 parameters at 10 classes with batch norm.
Numerics: BN eps 1e-5, momentum 0.1; symmetric padding 1; ReLU; 2x2 max pool, floor.
Variants of the MindSpore zoo: its CIFAR-10 network is batch_norm, conv_bias=False, dropout=0, init="xavier"; its
ImageNet network conv_bias=False.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from convzoo.config.registry import register
from convzoo.models.blocks import init_conv

# Channels of the convolutions; M is a 2x2 max pool.
PLAN = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


class VGG(nn.Module):
    """images [B, 3, H, W] -> logits [B, num_classes]; H and W at least 32."""

    def __init__(self, features: nn.Sequential, classifier: nn.Module, pool_px: int):
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(pool_px)  # the identity for 224x224 pictures and 7, for 32x32 and 1
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


@register("model")
def vgg16(
    *,
    num_classes: int = 1000,
    batch_norm: bool = False,
    head: Literal["imagenet", "small"] = "imagenet",
    dropout: float = 0.5,
    conv_bias: bool = True,
    init: Literal["kaiming", "xavier"] = "kaiming",
) -> VGG:
    """Build VGG-16.

    Args:
        head: "imagenet" is 7x7 pooling and the paper's three linear layers; "small" one linear layer for 32x32.
        dropout: probability before each but the first linear layer; 0 for none.
    """
    features = _features(batch_norm, conv_bias)
    if head == "imagenet":
        layers = [
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
        ]
        classifier = nn.Sequential(*layers, nn.Linear(4096, num_classes))
    else:
        classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(512, num_classes))
    model = VGG(features, classifier, pool_px=7 if head == "imagenet" else 1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            init_conv(module, "kaiming_fan_out" if init == "kaiming" else "xavier")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)
    return model


def _features(batch_norm: bool, conv_bias: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for step in PLAN:
        if step == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(channels, step, 3, padding=1, bias=conv_bias))
        if batch_norm:
            layers.append(nn.BatchNorm2d(step))
        layers.append(nn.ReLU())
        channels = step
    return nn.Sequential(*layers)
