"""The convolution block and the initialisations that several networks share."""

import math
from collections import OrderedDict
from typing import Literal

from torch import nn


def conv_norm_act(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    norm_eps: float = 1e-5,
    norm_momentum: float = 0.1,
    padding: Literal["symmetric", "bottom_right"] = "symmetric",
    act: nn.Module,
) -> nn.Sequential:
    """Return convolution (no bias, size kept at stride 1), batch norm and activation, named conv, norm and act.

    Args:
        norm_momentum: PyTorch's, the share of the new batch in the running statistics.
        padding: "symmetric", or only below and right, as MindSpore's "same" pads even sizes at stride 2.
    """
    around = kernel_size // 2 if padding == "symmetric" else 0
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, around, bias=False)
    norm = nn.BatchNorm2d(out_channels, eps=norm_eps, momentum=norm_momentum)
    block = OrderedDict(conv=conv, norm=norm, act=act)
    if padding == "bottom_right":
        last = kernel_size - stride
        block = OrderedDict(pad=nn.ZeroPad2d((0, last, 0, last)), **block)
    return nn.Sequential(block)


def init_conv(conv: nn.Conv2d, scheme: str) -> None:
    """Initialise one convolution's weights; a bias becomes 0.

    Args:
        scheme: kaiming_fan_out N(0, 2 / (out * k * k)) or kaiming_fan_in N(0, 2 / (in * k * k)) (He et al. 2015,
            section 2.2), xavier U(+-sqrt(6 / (fan_in + fan_out))) (Glorot and Bengio 2010,
            section 4.2.1), truncated_normal with sigma 0.02, cut at two sigma, or uniform_fan_in
            U(+-1/sqrt(in * k * k)), in which case a bias is drawn like the weights.
    """
    if scheme == "xavier":
        nn.init.xavier_uniform_(conv.weight)
    elif scheme == "truncated_normal":
        nn.init.trunc_normal_(conv.weight, std=0.02, a=-0.04, b=0.04)
    elif scheme == "uniform_fan_in":
        bound = 1 / math.sqrt(conv.weight[0].numel())
        for parameter in conv.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        return
    else:
        mode = "fan_in" if scheme == "kaiming_fan_in" else "fan_out"
        nn.init.kaiming_normal_(conv.weight, mode=mode, nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def init_linear_uniform(linear: nn.Linear) -> None:
    """Initialise a classifier's weights U(+-1/sqrt(fan_in)) and its bias 0."""
    bound = 1 / math.sqrt(linear.in_features)
    nn.init.uniform_(linear.weight, -bound, bound)
    nn.init.zeros_(linear.bias)
