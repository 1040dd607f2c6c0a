"""Our own networks as Darknet describes them: the `.cfg` of each, and which of them a `.cfg` is.

Facts: the public-domain cfg/tiny.cfg, darknet53.cfg, yolov3.cfg and yolov3-tiny.cfg of github.com/pjreddie/darknet.
"""

from collections.abc import Callable, Mapping, Sequence

from convzoo.config import registry
from convzoo.convert.state_dict import meta_network, resolve_model_spec
from convzoo.models.darknet import STAGES_53, TINY_PLAN
from convzoo.models.darknet_layers import (
    HEADS,
    DarknetCfg,
    Layer,
    convolution_padding,
    head_anchors,
    pool_window,
    read_cfg,
)
from convzoo.plain import JsonObject, JsonValue

Sections = list[tuple[str, JsonObject]]
Rows = Sequence[Sequence[Sequence[float]]]  # anchors in pixels, a row a head, finest first
SIZE_HW = (416, 416)  # any that the strides divide: a comparison of graphs asks for none


def _block(filters: int, size: int, stride: int = 1) -> Sections:
    return [("convolutional", {"batch_normalize": 1, "filters": filters, "size": size, "stride": stride} | _LEAKY)]


def _linear(filters: int) -> Sections:
    return [("convolutional", {"filters": filters, "size": 1, "stride": 1, "pad": 1, "activation": "linear"})]


_LEAKY = {"pad": 1, "activation": "leaky"}


def _pool(stride: int = 2) -> Sections:
    return [("maxpool", {"size": 2, "stride": stride})]


def _route(*layers: int) -> Sections:
    return [("route", {"layers": ",".join(map(str, layers))})]


def _head(num_classes: int, anchors: Rows, row: int) -> Sections:
    """Return the last convolution of a head and the head, whose masks point at its row among all anchors."""
    first = sum(map(len, anchors[:row]))
    numbers = range(first, first + len(anchors[row]))
    return [
        *_linear(len(anchors[row]) * (5 + num_classes)),
        (
            "yolo",
            {
                "mask": ",".join(map(str, numbers)),
                "anchors": ", ".join(f"{width!r},{height!r}" for pairs in anchors for width, height in pairs),
                "classes": num_classes,
                "num": sum(map(len, anchors)),
            },
        ),
    ]


def _tinydarknet(num_classes: int, anchors: Rows) -> Sections:
    features = [section for step in TINY_PLAN for section in (_pool() if step == "M" else _block(*step))]
    return [*features, *_linear(num_classes), ("avgpool", {}), ("softmax", {"groups": 1})]


def _backbone53() -> Sections:
    sections = _block(32, 3)
    for channels, num_units in STAGES_53:
        sections += _block(channels, 3, 2)
        for _ in range(num_units):
            sections += [*_block(channels // 2, 1), *_block(channels, 3)]
            sections.append(("shortcut", {"from": -3, "activation": "linear"}))
    return sections


def _darknet53(num_classes: int, anchors: Rows) -> Sections:
    return [*_backbone53(), ("avgpool", {}), *_linear(num_classes), ("softmax", {"groups": 1})]


def _yolov3(num_classes: int, anchors: Rows) -> Sections:
    sections = _backbone53()
    for row, channels, backbone_layer in ((2, 512, None), (1, 256, 61), (0, 128, 36)):
        if backbone_layer is not None:
            upsampled = [*_block(channels, 1), ("upsample", {"stride": 2})]
            sections += [*_route(-4), *upsampled, *_route(-1, backbone_layer)]
        for _ in range(3):
            sections += [*_block(channels, 1), *_block(2 * channels, 3)]
        sections += _head(num_classes, anchors, row)
    return sections


def _yolov3_tiny(num_classes: int, anchors: Rows) -> Sections:
    sections = _block(16, 3)
    for channels in (32, 64, 128, 256, 512):
        sections += [*_pool(), *_block(channels, 3)]
    sections += [*_pool(stride=1), *_block(1024, 3), *_block(256, 1), *_block(512, 3), *_head(num_classes, anchors, 1)]
    sections += [*_route(-4), *_block(128, 1), ("upsample", {"stride": 2}), *_route(-1, 8)]
    return [*sections, *_block(256, 3), *_head(num_classes, anchors, 0)]


# How many heads each has, and its sections from classes and anchors, three a head.
OWN: dict[str, tuple[int, Callable[[int, Rows], Sections]]] = {
    "tinydarknet": (0, _tinydarknet),
    "darknet53": (0, _darknet53),
    "yolov3": (3, _yolov3),
    "yolov3_tiny": (2, _yolov3_tiny),
}


def _narrowed(sections: Sections, width: float) -> Sections:
    """Return them with the channels of all but the last convolutions times a width."""
    return [
        (name, keys | {"filters": round(width * keys["filters"])} if "batch_normalize" in keys else keys)
        for name, keys in sections
    ]


def cfg_text(
    name: str,
    num_classes: int,
    anchors_px: Rows,
    input_hw: tuple[int, int],
    letter_box: bool = False,
    width: float = 1.0,
) -> str:
    """Write the `.cfg` of one of our networks.

    Args:
        anchors_px, width: of a detector, as its model section has them.
        input_hw: (height, width) of its input in pixels.
        letter_box: say that pictures keep their aspect ratio, which not every program of Darknet's assumes.
    """
    net = {"batch": 1, "subdivisions": 1, "width": input_hw[1], "height": input_hw[0], "channels": 3}
    body = _narrowed(OWN[name][1](num_classes, anchors_px), width)
    sections = [("net", net | ({"letter_box": 1} if letter_box else {})), *body]
    return "\n".join(f"[{head}]\n" + "".join(f"{k}={v}\n" for k, v in keys.items()) for head, keys in sections)


def model_cfg(model: Mapping[str, JsonValue], input_hw: tuple[int, int], letter_box: bool = False) -> str:
    """Write the `.cfg` of the network that a model section describes."""
    spec = resolve_model_spec(model)
    rows = [head.anchors_px for head in getattr(meta_network(model), "heads", ())]
    return cfg_text(spec["name"], spec["num_classes"], rows, input_hw, letter_box, spec.get("width", 1.0))


def own_model(cfg: DarknetCfg) -> JsonObject | None:
    """Return the model section of our network that a `.cfg` describes, of any classes, anchors, width and size."""
    heads = [layer for layer in cfg.layers if layer.section.name in HEADS]
    rows = [[list(pair) for pair in head_anchors(layer)] for layer in reversed(heads)]
    if cfg.num_classes is None or any(len(row) != 3 for row in rows):
        return None
    for name, (num_heads, _) in OWN.items():
        if name not in registry.names("model") or num_heads != len(rows):
            continue
        model: JsonObject = {"name": name, "num_classes": cfg.num_classes}
        text = cfg_text(name, cfg.num_classes, rows, SIZE_HW)
        width = _first_filters(cfg) / _first_filters(read_cfg(text))
        if width != 1 and "width" in resolve_model_spec(model):
            text, model = cfg_text(name, cfg.num_classes, rows, SIZE_HW, width=width), {**model, "width": width}
        if _graph(read_cfg(text)) == _graph(cfg):
            usual = [[list(pair) for pair in head.anchors_px] for head in getattr(meta_network(model), "heads", ())]
            return model if usual == rows else {**model, "anchors_px": rows}
    return None


def _first_filters(cfg: DarknetCfg) -> int:
    """Return the channels of the first convolution, 0 without one."""
    return next((layer.options["filters"] for layer in cfg.layers if layer.section.name == "convolutional"), 0)


def _graph(cfg: DarknetCfg) -> list[tuple[str, tuple[int, ...], object]]:
    """Return what each layer computes from which others."""
    return [
        (layer.section.name, layer.sources, _function(layer)) for layer in cfg.layers if layer.section.name != "cost"
    ]


def _function(layer: Layer) -> object:
    options = dict(layer.options)
    match layer.section.name:
        case "convolutional":
            return {**options, "pad": None, "padding": convolution_padding(options)}
        case "maxpool":
            return pool_window(options)
        case "yolo":
            return head_anchors(layer), options["classes"], options["scale_x_y"], options["new_coords"]
        case _:
            return options
