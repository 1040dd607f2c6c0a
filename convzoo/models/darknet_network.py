"""Any network of Darknet, built from the text of its `.cfg`: classifiers, YOLOv2 to YOLOv7 and what lies between.

Redmon 2013-2016, "Darknet: Open Source Neural Networks in C", pjreddie.com/darknet; Bochkovskiy et al. 2020,
"YOLOv4: Optimal Speed and Accuracy of Object Detection", arXiv:2004.10934, for what its successors added.
One module a layer, `layers.0` on, in the order of the file, which is the order of a weight file.
Numerics: BN eps 1e-5; leaky slope 0.1; max pools pad with nothing that could win; nearest upsampling. Init N(0, 2 /
fan_in) as Darknet, whose running statistics move by 0.01 a batch (norm_momentum).
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convzoo.config.registry import register
from convzoo.errors import UsageError
from convzoo.models.blocks import init_conv
from convzoo.models.darknet_layers import (
    HEADS,
    DarknetCfg,
    Layer,
    convolution_padding,
    head_anchors,
    pool_window,
    read_cfg,
)
from convzoo.types import Head


class Ramp(nn.Module):
    """max(x, 0) + 0.1 x."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) + 0.1 * x


class Connected(nn.Sequential):
    """A fully connected layer of a whole map, [B, C, H, W] -> [B, outputs, 1, 1]."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(1))[:, :, None, None]


class GlobalAverage(nn.Module):
    """[B, C, H, W] -> [B, C, 1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class Crop(nn.Module):
    """The centre of a picture, moved from 0..1 to -1..1 unless the file says noadjust."""

    def __init__(self, height: int, width: int, adjust: bool):
        super().__init__()
        self.height, self.width, self.adjust = height, width, adjust

    def forward(self, x: Tensor) -> Tensor:
        top, left = (x.shape[2] - self.height) // 2, (x.shape[3] - self.width) // 2
        x = x.narrow(2, top, self.height).narrow(3, left, self.width)
        return 2 * x - 1 if self.adjust else x


class Route(nn.Module):
    """The maps of other layers one after the other, or of each the same part of its channels."""

    def __init__(self, groups: int, group_id: int):
        super().__init__()
        self.groups, self.group_id = groups, group_id

    def forward(self, *maps: Tensor) -> Tensor:
        if self.groups > 1:
            maps = tuple(part.chunk(self.groups, 1)[self.group_id] for part in maps)
        return maps[0] if len(maps) == 1 else torch.cat(maps, 1)


class Shortcut(nn.Module):
    """x + another layer's map. Of a larger map every `step`-th pixel counts; channels that x lacks are left out."""

    def __init__(self, channels: int, other_channels: int, step: int, act: nn.Module):
        super().__init__()
        self.channels, self.missing, self.step = channels, channels - other_channels, step
        self.act = act

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        if self.step > 1:
            other = other[:, :, :: self.step, :: self.step]
        if self.missing > 0:
            other = F.pad(other, (0, 0, 0, 0, 0, self.missing))
        elif self.missing < 0:
            other = other[:, : self.channels]
        return self.act(x + other)


class Scale(nn.Module):
    """Another layer's map times x: a value a channel, as in squeeze and excitation, or a value each."""

    def __init__(self, act: nn.Module):
        super().__init__()
        self.act = act

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.act(other * x)


class Reorg(nn.Module):
    """[B, C, H, W] -> [B, C s^2, H/s, W/s] as YOLOv2 has it: the map is read as if it had C / s^2 wider channels."""

    def __init__(self, channels: int, step: int):
        super().__init__()
        self.channels, self.step = channels, step

    def forward(self, x: Tensor) -> Tensor:
        (height, width), s = x.shape[2:], self.step
        x = x.reshape(-1, self.channels // s**2, height, s, width, s).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(-1, self.channels * s**2, height // s, width // s)


class Network(nn.Module):
    """images [B, 3, H, W] -> what the file's last layers take in.

    A detector gives a tuple of raw head maps in the order of the file, each [B, A*(5+K), H/s, W/s] with the channels
    anchor-major; a classifier logits [B, K]; a network with neither heads nor softmax its last map.

    Attributes:
        heads: what each map means; none of a classifier.
        input_hw: (height, width) in pixels.
        num_classes: None of a network with neither heads nor softmax.
        nms_kind: "default" (IoU), "greedynms" or "diounms", as the last head says; nms_beta, the latter's exponent.
        letter_box: pictures keep their aspect ratio.
        cfg: the file, read.
    """

    def __init__(self, cfg: DarknetCfg, norm_momentum: float):
        super().__init__()
        self.cfg = cfg
        self.layers = nn.ModuleList(_module(layer, norm_momentum) for layer in cfg.layers)
        self.input_hw, self.num_classes, self.letter_box = (cfg.height, cfg.width), cfg.num_classes, cfg.letter_box
        heads = [layer for layer in cfg.layers if layer.section.name in HEADS]
        self.heads = tuple(map(_head, heads))
        last = heads[-1].options if heads else {}
        kind = last.get("nms_kind", "default")
        self.nms_kind = "default" if kind == "cornersnms" else kind  # which differ in name only
        self.nms_beta = last.get("beta_nms", 0.6)
        ends = [layer.section.number for layer in cfg.layers if layer.section.name in (*HEADS, "softmax")]
        self.ends = ends or [len(cfg.layers) - 1]
        last_use = {number: number for number in range(len(cfg.layers))}
        last_use |= {source: layer.section.number for layer in cfg.layers for source in layer.sources}
        self.unused_after = [[n for n, last in last_use.items() if last == number] for number in range(len(cfg.layers))]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps, outputs = {-1: x}, []
        for number, (layer, module) in enumerate(zip(self.cfg.layers, self.layers, strict=True)):
            x = maps[number] = module(*[maps[source] for source in layer.sources])
            if number in self.ends:
                outputs.append(x)
            for unused in self.unused_after[number]:
                del maps[unused]
        return tuple(outputs) if self.heads else outputs[0]


@register("model")
def darknet(*, cfg: str, num_classes: int | None = None, norm_momentum: float = 0.1) -> Network:
    """Build the network of a Darknet `.cfg`.

    Args:
        cfg: the text of the file.
        num_classes: where it is given, the file must have as many.
        norm_momentum: PyTorch's, the share of the new batch in the running statistics; Darknet's is 0.01.
    Raises:
        UsageError: the text is no network, one that is not supported, or one of other classes.
    """
    described = read_cfg(cfg)
    if num_classes not in (None, described.num_classes):
        raise UsageError(f"model.num_classes: {num_classes}, but model.cfg has {described.num_classes or 'none'}")
    network = Network(described, norm_momentum)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            init_conv(module, "kaiming_fan_in")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _head(layer: Layer) -> Head:
    stride, options = int(layer.inputs[0].stride), layer.options
    if layer.section.name == "region":
        anchors_px = tuple((width * stride, height * stride) for width, height in head_anchors(layer))
        return Head(stride, anchors_px, kind="region")
    return Head(stride, head_anchors(layer), options["scale_x_y"], "new_coords" if options["new_coords"] else "yolo")


def _activation(name: str) -> nn.Module:
    return {
        "linear": nn.Identity,
        "leaky": lambda: nn.LeakyReLU(0.1),
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "logistic": nn.Sigmoid,
        "swish": nn.SiLU,
        "mish": nn.Mish,
        "ramp": Ramp,
    }[name]()


def _module(layer: Layer, norm_momentum: float) -> nn.Module:
    options, source = layer.options, layer.inputs[0]
    match layer.section.name:
        case "convolutional" | "connected":
            return _weighted(layer, norm_momentum)
        case "maxpool":
            return _max_pool(*pool_window(options))
        case "avgpool":
            return GlobalAverage()
        case "dropout":
            return nn.Dropout(options["probability"])
        case "crop":
            return Crop(options["crop_height"], options["crop_width"], not options["noadjust"])
        case "route":
            return Route(options["groups"], options["group_id"])
        case "shortcut":
            other = layer.inputs[1]
            act = _activation(options["activation"])
            return Shortcut(source.channels, other.channels, other.height // source.height, act)
        case "scale_channels" | "sam":
            return Scale(_activation(options["activation"]))
        case "upsample":
            return nn.Upsample(scale_factor=float(options["stride"]), mode="nearest")
        case "reorg":
            return Reorg(source.channels, options["stride"])
        case "softmax":
            return nn.Flatten()  # logits; whoever wants probabilities takes the softmax
        case _:  # heads, whose maps are given as they are, and [cost]
            return nn.Identity()


def _weighted(layer: Layer, norm_momentum: float) -> nn.Sequential:
    """Return a convolution or fully connected layer, its batch norm and activation, named conv or linear, norm, act."""
    options, source = layer.options, layer.inputs[0]
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    has_norm = options["batch_normalize"]
    if layer.section.name == "convolutional":
        size, padding = options["size"], convolution_padding(options)
        channels = source.channels, options["filters"]
        parts["conv"] = nn.Conv2d(
            *channels, size, options["stride"], padding, groups=options["groups"], bias=not has_norm
        )
    else:
        inputs = source.channels * source.height * source.width
        parts["linear"] = nn.Linear(inputs, options["output"], bias=not has_norm)
    if has_norm:
        norm = nn.BatchNorm2d if "conv" in parts else nn.BatchNorm1d
        parts["norm"] = norm(layer.output.channels, momentum=norm_momentum)
    if options["activation"] != "linear":
        parts["act"] = _activation(options["activation"])
    return nn.Sequential(parts) if "conv" in parts else Connected(parts)


def _max_pool(size: int, stride: int, padding: int) -> nn.Module:
    """Return a max pool padded by `padding` pixels in all, the smaller half of them before."""
    if padding % 2 == 0:
        return nn.MaxPool2d(size, stride, padding // 2)
    if stride == 2:
        return nn.MaxPool2d(size, stride, padding // 2, ceil_mode=True)
    # The odd pixel behind repeats the last one, which every window over it sees anyway.
    return nn.Sequential(nn.ReplicationPad2d((0, 1, 0, 1)), nn.MaxPool2d(size, stride, padding // 2))
