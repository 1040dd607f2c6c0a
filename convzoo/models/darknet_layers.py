"""The layers of a Darknet network: where each takes its input, what shape it gives, and whether that can be.

Pure arithmetic on what `darknet_cfg` read; nothing is built, so an absurd file costs no memory.
Shapes are [C, H, W]. Facts: github.com/pjreddie/darknet, src/parser.c and the make_ functions of its layers.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from convzoo.models.darknet_cfg import MAX_CHANNELS, MAX_SIDE_PX, Section, read_sections
from convzoo.plain import JsonValue

MAX_FLOATS = 2**30  # of weights, 4 GB; VGG-16 has 138 million
MAX_MAP_FLOATS = 2**31
HEADS = ("yolo", "region")
ENDS = (*HEADS, "softmax", "cost")  # nothing comes after these but more of them


class Map(NamedTuple):
    """What a layer gives: its shape, and how many input pixels lie between neighbours."""

    channels: int
    height: int
    width: int
    stride: Fraction = Fraction(1)

    def __str__(self) -> str:
        return f"{self.channels}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        section: as the file has it: number, name, line and options.
        sources: the layers whose maps it takes in, -1 for the picture.
        inputs: those maps.
        output: the map that it gives.
    """

    section: Section
    sources: tuple[int, ...]
    inputs: tuple[Map, ...]
    output: Map

    @property
    def options(self) -> Mapping[str, JsonValue]:
        return self.section.options


@dataclass(frozen=True)
class DarknetCfg:
    """A network as its `.cfg` describes it.

    Attributes:
        width, height: of the input in pixels.
        letter_box: pictures keep their aspect ratio.
        training: the other keys of [net], as text.
        layers: from 0 on.
        num_classes: of its heads or its softmax; None of a network that has neither.
    """

    width: int
    height: int
    letter_box: bool
    training: Mapping[str, str]
    layers: tuple[Layer, ...]
    num_classes: int | None


def read_cfg(text: str, where: str = "model.cfg") -> DarknetCfg:
    """Read the text of a Darknet `.cfg`.

    Args:
        where: the file's name, for messages.
    Raises:
        UsageError: the text is no network, or one that is not supported or cannot be, with line and layer.
    """
    net, *sections = read_sections(text, where)
    maps = {-1: Map(3, net.options["height"], net.options["width"])}
    layers: list[Layer] = []
    num_floats = 0
    for section in sections:
        sources = _sources(section)
        _check_sources(section, sources, layers)
        inputs = tuple(maps[source] for source in sources)
        layer = Layer(section, sources, inputs, _OUTPUTS.get(section.name, _unchanged)(section, inputs))
        _check_map(section, layer.output)
        if section.name in HEADS:
            _check_head(layer, maps[-1])
        num_floats += count_floats(layer)
        if num_floats > MAX_FLOATS:
            raise section.error(f"up to here {num_floats} weights; at most {MAX_FLOATS} are read")
        maps[section.number] = layer.output
        layers.append(layer)
    options = net.options
    return DarknetCfg(
        options["width"], options["height"], options["letter_box"], net.training, tuple(layers), _num_classes(layers)
    )


def count_floats(layer: Layer) -> int:
    """Return how many floats a layer has in a weight file."""
    options = layer.options
    if layer.section.name == "convolutional":
        outputs = options["filters"]
        fan_in = layer.inputs[0].channels // options["groups"] * options["size"] ** 2
    elif layer.section.name == "connected":
        outputs, fan_in = options["output"], math.prod(layer.inputs[0][:3])
    else:
        return 0
    return outputs * (fan_in + (4 if options["batch_normalize"] else 1))


def head_anchors(layer: Layer) -> tuple[tuple[float, float], ...]:
    """Return the (width, height) of a head's anchors as the file has them: of [region] in cells, of [yolo] in pixels.

    Raises:
        UsageError: the mask, or `num`, goes beyond the anchors.
    """
    section, anchors, num = layer.section, layer.options["anchors"], layer.options["num"]
    mask = layer.options.get("mask") or tuple(range(num))
    if max(mask) >= min(num, len(anchors)):
        key = "mask" if "mask" in section.lines else "num"
        raise section.error(f"anchor {max(mask)} is not there: num={num}, anchors has {len(anchors)} pairs", key)
    return tuple(anchors[i] for i in mask)


def _sources(section: Section) -> tuple[int, ...]:
    """Return the numbers of the layers that this one takes in. Raises UsageError for one that is not before it."""
    before = section.number - 1
    key = "layers" if section.name == "route" else "from"
    given = section.options.get(key)
    if given is None:
        return (before,)
    numbers = given if section.name == "route" else (given,)
    absolute = [number if number >= 0 else section.number + number for number in numbers]
    for number, layer in zip(numbers, absolute, strict=True):
        if not 0 <= layer < section.number:
            raise section.error(f"{number}: there is no such layer before layer {section.number}", key)
    return tuple(absolute) if section.name == "route" else (before, *absolute)


def _check_sources(section: Section, sources: tuple[int, ...], layers: list[Layer]) -> None:
    ends = {layer.section.name for layer in layers} & {"softmax", "cost"}
    if ends and section.name != "cost":
        raise section.error(f"comes after the network's [{min(ends)}]")
    for source in sources if section.name != "cost" else ():
        name = layers[source].section.name if source >= 0 else "net"
        if name in ENDS:
            raise section.error(f"takes in layer {source} [{name}], whose output is none; a [route] goes around it")


def _check_map(section: Section, output: Map) -> None:
    if not 1 <= output.channels <= MAX_CHANNELS or math.prod(output[:3]) > MAX_MAP_FLOATS:
        raise section.error(f"a map of {output} is beyond what is read")
    if not (1 <= output.height <= MAX_SIDE_PX and 1 <= output.width <= MAX_SIDE_PX):
        raise section.error(f"nothing is left: its map would be {output}; the input is too small")


def _window(source: Map, channels: int, size: int, stride: int, padding: int) -> Map:
    """Return what a window makes of a map; `padding` is the total of both sides."""
    height, width = ((side + padding - size) // stride + 1 for side in source[1:3])
    return Map(channels, height, width, source.stride * stride)


def convolution_padding(options: Mapping[str, JsonValue]) -> int:
    """Return the padding of each side."""
    return options["size"] // 2 if options["pad"] else options["padding"]


def pool_window(options: Mapping[str, JsonValue]) -> tuple[int, int, int]:
    """Return size, stride and total padding, of which the smaller half goes before."""
    size = options["stride"] if options["size"] is None else options["size"]
    return size, options["stride"], size - 1 if options["padding"] is None else options["padding"]


def _convolutional(section: Section, inputs: tuple[Map, ...]) -> Map:
    options, (source,) = section.options, inputs
    if source.channels % options["groups"] or options["filters"] % options["groups"]:
        raise section.error(
            f"{options['groups']} groups do not divide {source.channels} channels into {options['filters']}", "groups"
        )
    padding = 2 * convolution_padding(options)
    return _window(source, options["filters"], options["size"], options["stride"], padding)


def _maxpool(section: Section, inputs: tuple[Map, ...]) -> Map:
    size, stride, padding = pool_window(section.options)
    if padding >= size:
        raise section.error(f"padding {padding} of a window of {size} leaves windows empty", "padding")
    return _window(inputs[0], inputs[0].channels, size, stride, padding)


def _crop(section: Section, inputs: tuple[Map, ...]) -> Map:
    height, width = section.options["crop_height"], section.options["crop_width"]
    if height > inputs[0].height or width > inputs[0].width:
        raise section.error(f"{height}x{width} is larger than its input, {inputs[0]}")
    return Map(inputs[0].channels, height, width, inputs[0].stride)


def _route(section: Section, inputs: tuple[Map, ...]) -> Map:
    groups, group_id = section.options["groups"], section.options["group_id"]
    if group_id >= groups:
        raise section.error(f"{group_id} of {groups} groups", "group_id")
    first = inputs[0]
    for other in inputs:
        if other[1:3] != first[1:3]:
            step = max(first.stride, other.stride)
            raise section.error(f"maps of {first} and {other} do not fit; are width and height multiples of {step}?")
        if other.channels % groups:
            raise section.error(f"{groups} groups do not divide {other.channels} channels", "groups")
    return Map(sum(source.channels // groups for source in inputs), *first[1:])


def _shortcut(section: Section, inputs: tuple[Map, ...]) -> Map:
    here, other = inputs
    step = other.height // here.height
    if step < 1 or (other.height, other.width) != (step * here.height, step * here.width):
        raise section.error(f"a map of {other} is not added to one of {here}", "from")
    return here


def _scale_channels(section: Section, inputs: tuple[Map, ...]) -> Map:
    here, other = inputs
    if here[:3] != (other.channels, 1, 1):
        raise section.error(f"needs {other.channels}x1x1 to scale a map of {other}, not {here}")
    return other


def _sam(section: Section, inputs: tuple[Map, ...]) -> Map:
    if inputs[0][:3] != inputs[1][:3]:
        raise section.error(f"a map of {inputs[0]} is not multiplied with one of {inputs[1]}")
    return inputs[0]


def _upsample(section: Section, inputs: tuple[Map, ...]) -> Map:
    source, factor = inputs[0], section.options["stride"]
    return Map(source.channels, source.height * factor, source.width * factor, source.stride / factor)


def _reorg(section: Section, inputs: tuple[Map, ...]) -> Map:
    source, step = inputs[0], section.options["stride"]
    if source.channels % step**2 or source.height % step or source.width % step:
        raise section.error(f"a map of {source} is not divided into {step}x{step} parts", "stride")
    return Map(source.channels * step**2, source.height // step, source.width // step, source.stride * step)


def _softmax(section: Section, inputs: tuple[Map, ...]) -> Map:
    if inputs[0][1:3] != (1, 1):
        raise section.error(f"takes one value a class, not a map of {inputs[0]}")
    return inputs[0]


def _unchanged(section: Section, inputs: tuple[Map, ...]) -> Map:
    return inputs[0]


_OUTPUTS: dict[str, Callable[[Section, tuple[Map, ...]], Map]] = {
    "convolutional": _convolutional,
    "connected": lambda section, inputs: Map(section.options["output"], 1, 1),
    "maxpool": _maxpool,
    "avgpool": lambda section, inputs: Map(inputs[0].channels, 1, 1),
    "crop": _crop,
    "route": _route,
    "shortcut": _shortcut,
    "scale_channels": _scale_channels,
    "sam": _sam,
    "upsample": _upsample,
    "reorg": _reorg,
    "softmax": _softmax,
}


def _check_head(layer: Layer, picture: Map) -> None:
    section, source, classes = layer.section, layer.inputs[0], layer.options["classes"]
    num_anchors = len(head_anchors(layer))
    needed = num_anchors * (5 + classes)
    if source.channels != needed:
        raise section.error(
            f"{source.channels} channels before it, not {needed} = {num_anchors} anchors x (5 + {classes} classes); "
            "correct filters there, or classes, mask or num here"
        )
    if source.stride.denominator != 1 or any(
        source.stride * n != m for n, m in zip(source[1:3], picture[1:3], strict=True)
    ):
        raise section.error(
            f"width={picture.width} and height={picture.height} must be multiples of the stride {source.stride}: "
            f"its map is {source}"
        )


def _num_classes(layers: list[Layer]) -> int | None:
    """Return the number of classes. Raises UsageError where heads differ, or stand beside a softmax."""
    ends = [layer for layer in layers if layer.section.name in (*HEADS, "softmax")]
    counts = [layer.options.get("classes", layer.output.channels) for layer in ends]
    for layer, count in zip(ends, counts, strict=True):
        if count != counts[0]:
            raise layer.section.error(f"{count} classes, but layer {ends[0].section.number} has {counts[0]}", "classes")
        if layer.section.name == "softmax" and len(ends) > 1:
            raise layer.section.error("beside heads of a detector is not supported")
    return counts[0] if counts else None
