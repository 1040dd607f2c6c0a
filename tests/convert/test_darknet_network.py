"""Any Darknet network from its `.cfg`: the original's outputs, weight files byte for byte, bad files refused."""

import functools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from convzoo.config import registry
from convzoo.convert.darknet import Header, read_header
from convzoo.convert.darknet_network import darknet_layers, dump_weights, load_weights
from convzoo.deploy.graph import folded
from convzoo.errors import ConvzooError, UsageError
from convzoo.models.darknet_layers import read_cfg
from convzoo.models.darknet_network import darknet
from convzoo.tasks.heads import decode_heads
from convzoo.types import Head
from helpers import DARKNET, DIFFERENCES

BYTES = """
    alexnet 249,513,396, csresnext50-panet-spp 228,123,400, darknet19 83,427,124, darknet53 166,582,580, densenet201
    68,825,780, efficientnet_b0 19,560,180, enet-coco 19,233,100, resnet50 91,303,604, resnext50 89,251,508, tiny
    4,185,972, vgg-16 553,430,196, yolov2-tiny-voc 63,471,560, yolov2-voc 202,704,264, yolov3-spp 252,209,544,
    yolov3-tiny 35,434,956, yolov3-voc 246,714,648, yolov3 248,007,048, yolov4-csp-swish 211,944,840, yolov4-p5
    283,669,892, yolov4-tiny 24,251,276, yolov4 257,717,640, yolov7-tiny 24,967,560
"""
FULL_BYTES = {name: int(size.replace(",", "")) for name, size in re.findall(r"([a-z]\S+)\s+([\d,]+\d)", BYTES)}
every_slim = pytest.mark.parametrize("name", DIFFERENCES)

# A detector in a dozen lines; what the refused files are made from.
SMALL = """[net]
width=64
height=96
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
filters=27
size=1
activation=linear

[yolo]
mask=0,1,2
anchors=10,14, 23,27, 37,58
classes=4
num=3
"""


@functools.cache
def slim(name: str) -> SimpleNamespace:
    """Return a slim network with its weights, its picture and what the original computed."""
    folder = DARKNET / "zoo" / name
    if not folder.is_dir():
        pytest.skip(f"reference data not found at {folder} (set CONVZOO_SHARED)")
    text, weights = (folder / "slim.cfg").read_text(), (folder / "slim.weights").read_bytes()
    with torch.device("meta"):
        network = darknet(cfg=text)
    network.load_state_dict(load_weights(text, weights, name), assign=True)
    shared = DARKNET / "zoo" / ("input128.npy" if name == "yolov4-p5" else "input96.npy")
    own = folder / "input.npy"
    picture = torch.from_numpy(np.load(own if own.exists() else shared))[None]
    maps = {}
    for number, layer in enumerate(network.layers):
        layer.register_forward_hook(lambda _, __, output, number=number: maps.update({number: output[0].clone()}))
    with torch.inference_mode():
        outputs = network.eval()(picture)
    case = {"folder": folder, "text": text, "weights": weights, "network": network, "picture": picture}
    return SimpleNamespace(**case, maps=maps, outputs=outputs)


def tolerance(name: str) -> float:
    return max(1e-5, 4 * DIFFERENCES[name])


def as_darknet_keeps_it(x: torch.Tensor, head: Head) -> torch.Tensor:
    """Apply to a head's map what Darknet's own layer applies to its output before it makes boxes."""
    x = x.unflatten(0, (len(head.anchors_px), -1)).clone()
    if head.kind != "new_coords":
        x[:, :2], x[:, 4] = x[:, :2].sigmoid(), x[:, 4].sigmoid()
        x[:, 5:] = x[:, 5:].softmax(1) if head.kind == "region" else x[:, 5:].sigmoid()
    x[:, :2] = head.scale_x_y * x[:, :2] - (head.scale_x_y - 1) / 2
    return x.flatten(0, 1)


@every_slim
def test_every_layer_gives_what_the_original_gives(name):
    case = slim(name)
    heads = iter(case.network.heads)
    layers = json.loads((case.folder / "layers.json").read_text())
    assert len(layers) == len(case.network.layers)
    for layer in layers:
        x = case.maps[layer["layer"]]
        if layer["type"] in ("yolo", "region"):
            x = as_darknet_keeps_it(x, next(heads))
        elif layer["type"] == "softmax":
            x = x.softmax(0)
        if layer["shape"] != [0, 0, 0]:
            described = case.network.cfg.layers[layer["layer"]].output
            assert list(x.shape) == layer["shape"] == list(described[:3]) or x.dim() == 1
        ours = torch.cat([x.mean()[None], x.std(correction=0)[None], x.flatten()[:6]])
        theirs = torch.tensor([layer["mean"], layer["std"], *layer["first"]])
        assert (ours - theirs).abs().max() <= tolerance(name) * x.abs().max(), layer


@every_slim
def test_raw_outputs_are_the_originals(name):
    case = slim(name)
    with np.load(case.folder / "outputs.npz") as theirs:
        expected = [torch.from_numpy(theirs[key]) for key in theirs]
    outputs = list(case.outputs) if case.network.heads else [case.outputs[0], case.outputs[0].softmax(0)]
    assert len(outputs) == len(expected)
    for ours, theirs in zip(outputs, expected, strict=True):
        assert (ours.reshape(theirs.shape) - theirs).abs().max() <= tolerance(name) * theirs.abs().max()


@pytest.mark.parametrize("name", [name for name in DIFFERENCES if (DARKNET / f"zoo/{name}/detections.json").exists()])
def test_boxes_and_scores_are_the_originals(name):
    case, limit = slim(name), max(1e-3, tolerance(name))
    height, width = case.network.input_hw
    expected = json.loads((case.folder / "detections.json").read_text())
    boxes, scores = (x[0] for x in decode_heads(case.outputs, case.network.heads))
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    cxcywh = torch.cat([centres, sizes], 1) / torch.tensor([width, height, width, height])
    near = scores > expected["threshold"] - limit
    rows, classes = near.nonzero().T
    open_rows = {(int(row), int(class_)) for row, class_ in zip(rows, classes, strict=True)}
    for class_, score, *box in expected["before_nms"]:
        box = torch.tensor(box)
        errors = ((cxcywh - box).abs() / torch.cat([box[2:], box[2:]]).clamp(min=1)).max(1).values
        errors = torch.maximum(errors, (scores[:, class_] - score).abs())
        row = min((row for row, other in open_rows if other == class_), key=lambda row: float(errors[row]))
        assert errors[row] <= limit, (class_, score, box, errors[row])
        open_rows.remove((row, class_))
    # What only we have lies at the threshold.
    assert all(scores[row, class_] < expected["threshold"] + limit for row, class_ in open_rows)


@every_slim
def test_weights_are_written_back_byte_for_byte(name):
    case = slim(name)
    header = read_header(np.frombuffer(case.weights, np.uint8), name)
    assert dump_weights(case.network, case.text, header) == case.weights


@pytest.mark.parametrize("name", FULL_BYTES)
def test_full_networks_take_as_many_bytes_as_their_weight_files_have(name, shared):
    with torch.device("meta"):
        network = darknet(cfg=(shared / f"fixtures/darknet/cfg/{name}.cfg").read_text())
    assert 20 + 4 * sum(layer.num_floats for layer in darknet_layers(network)) == FULL_BYTES[name]


def test_all_full_networks_are_built():
    assert len(FULL_BYTES) == 22


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [
        (size, stride, padding)
        for size, stride in [(2, 1), (2, 2), (3, 1), (3, 2), (4, 2), (4, 3), (5, 1), (3, 3)]
        for padding in [None, *range(min(size, 3))]
    ],
)
def test_max_pools_take_their_windows_where_darknet_does(size, stride, padding):
    """The first window begins at -(padding / 2), rounded towards 0; nothing outside the map wins."""
    for side in range(5, 12):
        text = f"[net]\nwidth={side}\nheight={side}\nchannels=3\n[maxpool]\nsize={size}\nstride={stride}\n"
        network = darknet(cfg=text if padding is None else f"{text}padding={padding}\n")
        total = size - 1 if padding is None else padding
        starts = [i * stride - total // 2 for i in range((side + total - size) // stride + 1)]
        image = torch.randn(2, 3, side, side) - 5
        windows = [slice(max(0, start), start + size) for start in starts]
        expected = torch.stack(
            [torch.stack([image[:, :, rows, columns].amax((2, 3)) for columns in windows], -1) for rows in windows], -2
        )
        assert torch.equal(network(image), expected)
        assert network.cfg.layers[0].output[:3] == expected.shape[1:]


@pytest.mark.parametrize("name", ["yolov3-tiny", "parts-attention", "parts-crop", "yolov2-voc", "alexnet"])
def test_networks_are_folded_and_traced_with_any_batch(name):
    case = slim(name)
    # Of noise these networks make boxes so large that rounding shows in them.
    picture = torch.cat([case.picture, case.picture.flip(2), case.picture.flip(3)])
    plain = folded(case.network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in plain.modules())

    class Decoded(torch.nn.Module):
        def forward(self, x):
            outputs = network(x)
            return decode_heads(outputs, heads) if heads else (outputs,)

    network, heads = plain, case.network.heads
    module = Decoded()
    module.network = network
    program = torch.export.export(module, (picture[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    with torch.inference_mode():
        for images in (picture, picture[:1]):
            outputs = case.network(images)
            expected = decode_heads(outputs, heads) if heads else (outputs,)
            for ours, theirs in zip(program.module()(images), expected, strict=True):
                assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def plainly(maps: list[torch.Tensor], heads: list[Head]) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode by the formula of arXiv:1804.02767, section 2.1, in float32 at least."""
    boxes, scores = [], []
    for x, (stride, anchors_px, *_) in zip(maps, heads, strict=True):
        x = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (len(anchors_px), -1))
        rows, columns = (torch.arange(n, dtype=x.dtype) for n in x.shape[3:])
        sides = x[:, :, 2:4].exp() * torch.tensor(anchors_px, dtype=x.dtype)[:, :, None, None]
        centres = [(x[:, :, 0].sigmoid() + columns) * stride, (x[:, :, 1].sigmoid() + rows[:, None]) * stride]
        low = [centre - side / 2 for centre, side in zip(centres, sides.unbind(2), strict=True)]
        high = [centre + side / 2 for centre, side in zip(centres, sides.unbind(2), strict=True)]
        boxes.append(torch.stack([*low, *high], -1).flatten(1, 3))
        scores.append((x[:, :, 4:5].sigmoid() * x[:, :, 5:].sigmoid()).movedim(2, -1).flatten(1, 3))
    return torch.cat(boxes, 1), torch.cat(scores, 1)


def test_plain_heads_are_decoded_by_the_formula_bit_for_bit():
    torch.manual_seed(0)
    anchors = (((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 119)))
    maps = [torch.randn(2, 3 * 9, 6 // n, 8 // n) for n in (1, 2)]
    heads = [Head(8 * n, rows) for n, rows in zip((1, 2), anchors, strict=True)]
    for dtype in (torch.float32, torch.float16, torch.float64):
        cast = [map_.to(dtype) for map_ in maps]
        for ours, theirs in zip(decode_heads(cast, heads), plainly(cast, heads), strict=True):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("shapes", "num_anchors"), [([(1, 27, 2, 2)], [3, 3]), ([(1, 27, 2, 2)], [4]), ([(1, 27, 2, 2)] * 2, [3, 1])]
)
def test_maps_that_are_not_the_heads_are_refused(shapes, num_anchors):
    with pytest.raises(ValueError, match="map"):
        decode_heads([torch.zeros(shape) for shape in shapes], [Head(8, ((1, 1),) * n) for n in num_anchors])


def test_a_file_is_read_as_darknet_reads_it():
    """Short names, spaces, comments, Windows line ends, a byte order mark, a key that stands twice."""
    text = SMALL.replace("[convolutional]", "[conv]").replace("[maxpool]", "[max]").replace("=", " = ")
    text = text.replace("stride = 2\npad", "# no\n; no\n s t ride = 2\t\nstride = 1\npad").replace("58", "58,")
    odd, plain = read_cfg("\ufeff" + text.replace("\n", "\r\n")), read_cfg(SMALL)
    assert [layer.options for layer in odd.layers] == [layer.options for layer in plain.layers]
    assert [layer.output[:3] for layer in odd.layers] == [(8, 48, 32), (8, 24, 16), (27, 24, 16), (27, 24, 16)]
    network = darknet(cfg=SMALL, num_classes=4)
    assert network.heads == (Head(4, ((10, 14), (23, 27), (37, 58))),)
    assert (network.input_hw, network.num_classes, network.letter_box) == ((96, 64), 4, False)
    assert (network.nms_kind, network.nms_beta) == ("default", 0.6)


def test_what_the_last_head_says_of_suppression(shared):
    for name, kind in (("yolov4", "greedynms"), ("yolov4-csp-swish", "diounms"), ("yolov2-voc", "default")):
        with torch.device("meta"):
            network = darknet(cfg=(shared / f"fixtures/darknet/cfg/{name}.cfg").read_text())
        assert (network.nms_kind, network.nms_beta) == (kind, 0.6)
    assert network.heads[0].anchors_px[0] == (pytest.approx(1.3221 * 32), pytest.approx(1.73145 * 32))


def test_a_network_without_heads_gives_its_last_map_and_training_moves_its_statistics():
    network = darknet(cfg=SMALL[: SMALL.index("[yolo]")], norm_momentum=0.01)
    assert (network.num_classes, network.heads) == (None, ())
    assert network.train()(torch.rand(2, 3, 96, 64)).shape == (2, 27, 24, 16)
    assert network.layers[0].norm.momentum == 0.01
    with pytest.raises(UsageError, match="num_classes: 4, but model.cfg has none"):
        darknet(cfg=SMALL[: SMALL.index("[yolo]")], num_classes=4)


def test_what_no_later_layer_takes_in_is_dropped():
    text = SMALL.replace("[maxpool]", "[route]\nlayers=0\n\n[maxpool]")
    assert darknet(cfg=text).unused_after == [[-1], [0], [1], [2], [3, 4]]


def test_an_old_file_has_the_weights_of_connected_layers_input_by_input():
    text = (
        "[net]\nwidth=2\nheight=1\nchannels=3\n[connected]\noutput=4\nbatch_normalize=1\nactivation=linear\n[softmax]\n"
    )
    floats = np.arange(4 + 24 + 12, dtype="<f4")
    new = np.array([0, 2, 0, 7, 0], "<i4").tobytes() + floats.tobytes()
    old = np.array([0, 1001, 0, 7], "<i4").tobytes() + floats.tobytes()
    states = [load_weights(text, data, "x.weights") for data in (new, old)]
    weights = [state["layers.0.linear.weight"] for state in states]
    assert torch.equal(weights[0].flatten(), torch.arange(4.0, 28)) and torch.equal(
        weights[1].T.flatten(), weights[0].flatten()
    )
    assert states[0]["layers.0.norm.weight"].tolist() == [28, 29, 30, 31]
    headers = Header(0, 2, 0, 7, 20), Header(0, 1001, 0, 7, 16)
    for data, state, header in zip((new, old), states, headers, strict=True):
        assert dump_weights(state, text, header) == data


def test_every_float_of_a_weight_file_is_used():
    header = np.array([0, 2, 5, 0, 0], "<i4").tobytes()
    num_floats = 8 * (27 + 4) + 27 * 9
    assert load_weights(SMALL, header + bytes(4 * num_floats), "x.weights")
    for size, message in (
        (4 * num_floats - 4, "it ends in layer 2 [convolutional] of line 18, 490 of 491 floats"),
        (40, "it ends in layer 0 [convolutional] of line 6, 10 of 491 floats"),
        (4 * num_floats + 12, "too long for its .cfg: 3 of 494 floats are left"),
        (4 * num_floats - 2, "x.weights: cut off"),
    ):
        with pytest.raises(ConvzooError, match=re.escape(message)):
            load_weights(SMALL, header + bytes(size), "x.weights")
    with pytest.raises(ConvzooError, match=re.escape("no 'layers.0.norm.bias' [8]")):
        dump_weights({}, SMALL, read_header(np.frombuffer(header, np.uint8), ""))


REFUSED = [
    ("filters=27", "filters=28", "23: layer 3 [yolo]: 28 channels before it, not 27 = 3 anchors x (5 + 4 classes)"),
    ("mask=0,1,2", "mask=0,1,3", "24: layer 3 [yolo] mask: anchor 3 is not there: num=3, anchors has 3 pairs"),
    ("num=3", "num=2", "24: layer 3 [yolo] mask: anchor 2 is not there: num=2"),
    ("23,27, 37,58", "23,27, 37", "25: layer 3 [yolo] anchors: '10,14,23,27,37' is not pairs of width and height"),
    ("anchors=10,14, 23,27, 37,58\n", "", "23: layer 3 [yolo] anchors: is missing"),
    ("num=3", "num=3\nmap=x", "28: layer 3 [yolo] map: unknown key"),
    ("width=64", "width=66", "23: layer 3 [yolo]: width=66 and height=96 must be multiples of the stride 4"),
    ("channels=3", "channels=1", "4: [net] channels: '1' is not a whole number in 3..3"),
    ("width=64\n", "", "1: [net] width: is missing"),
    ("width=64", "width=9999999", "2: [net] width: '9999999' is not a whole number in 1..16384"),
    ("filters=27", "filters=1000000000", "19: layer 2 [convolutional] filters: '1000000000' is not a whole number"),
    ("filters=8\nsize=3", "filters=90000\nsize=701", "model.cfg:6: layer 0 [convolutional]: up to here 132678630000 w"),
    ("activation=leaky", "activation=tanh", "12: layer 0 [convolutional] activation: tanh is not one of linear, le"),
    ("pad=1", "pad=1\ndilation=2", "12: layer 0 [convolutional] dilation: '2' is not supported, only 1"),
    ("pad=1", "pad=1\nxnor=1", "12: layer 0 [convolutional] xnor: '1' is not supported, only 0"),
    ("pad=1", "pad=1\nshare_index=1", "12: layer 0 [convolutional] share_index: unknown key"),
    (
        "pad=1",
        "pad=1\nstride_x=1",
        "12: layer 0 [convolutional] stride_x: unknown key, which may change the result; did you mean 'stride'?",
    ),
    ("pad=1", "pad=1\ngroups=2", "12: layer 0 [convolutional] groups: 2 groups do not divide 3 channels into 8"),
    ("pad=1", "pad=1\npad", "12: pad is not key=value"),
    ("size=2", "size=two", "15: layer 1 [maxpool] size: two is not a whole number"),
    ("size=2", "size=2\npadding=5", "16: layer 1 [maxpool] padding: padding 5 of a window of 2 leaves windows empty"),
    ("[maxpool]", "[gru]", "14: '[gru]': no section that is supported"),
    ("[yolo]", "[Gaussian_yolo]", "23: '[Gaussian_yolo]': no section that is supported"),
    ("[maxpool]", "[maxpool", "14: '[maxpool': a section's name ends with ]"),
    ("[maxpool]", "[net]", "14: '[net]': a Darknet network begins with [net], once"),
    ("[net]", "[default]", "1: '[default]': a Darknet network begins with [net], once"),
    ("[net]", "[net]\n[yolo]\n[route]\n", "model.cfg:1: [net] width: is missing"),
    ("[maxpool]", "[route]\nlayers=-2\n[maxpool]", "15: layer 1 [route] layers: -2: there is no such layer before"),
    ("[maxpool]", "[route]\nlayers=7\n[maxpool]", "15: layer 1 [route] layers: 7: there is no such layer before"),
    ("[maxpool]", "[route]\nlayers=-1,,\n[maxpool]", "15: layer 1 [route] layers: '-1,,' is not a list with commas"),
    ("[maxpool]", "[shortcut]\nfrom=1\n[maxpool]", "15: layer 1 [shortcut] from: 1: there is no such layer before"),
    ("[yolo]", "[shortcut]\nfrom=0\nweights_type=per_channel\n[yolo]", "25: layer 3 [shortcut] weights_type: per_ch"),
    (
        "[yolo]",
        "[upsample]\n[shortcut]\nfrom=1\n[yolo]",
        "25: layer 4 [shortcut] from: a map of 8x24x16 is not added to",
    ),
    ("[yolo]", "[route]\nlayers=0,1\n[yolo]", "23: layer 3 [route]: maps of 8x48x32 and 8x24x16 do not fit; are wid"),
    ("[yolo]", "[reorg]\nstride=2\n[yolo]", "24: layer 3 [reorg] stride: a map of 27x24x16 is not divided into 2x2"),
    ("[yolo]", "[scale_channels]\nfrom=0\n[yolo]", "23: layer 3 [scale_channels]: needs 8x1x1 to scale a map of"),
    ("[yolo]", "[sam]\nfrom=0\n[yolo]", "23: layer 3 [sam]: a map of 27x24x16 is not multiplied with one of 8x48x32"),
    ("[yolo]", "[softmax]\n[yolo]", "23: layer 3 [softmax]: takes one value a class, not a map of 27x24x16"),
    ("[yolo]", "[avgpool]\n[softmax]\n[yolo]", "25: layer 5 [yolo]: comes after the network's [softmax]"),
    ("[yolo]", "[avgpool]\n[softmax]\ntree=x\n[yolo]", "25: layer 4 [softmax] tree: unknown key"),
    ("[yolo]", "[crop]\ncrop_width=17\ncrop_height=9\n[yolo]", "23: layer 3 [crop]: 9x17 is larger than its input"),
    ("[yolo]", "[conv]\nsize=30\n[yolo]", "23: layer 3 [convolutional]: nothing is left: its map would be 1x-5x-13"),
    ("num=3", "num=3\n[conv]", "28: layer 4 [convolutional]: takes in layer 3 [yolo], whose output is none"),
    ("[yolo]", "[region]\nsoftmax=0", "24: layer 3 [region] softmax: '0' is not a whole number in 1..1"),
    (SMALL, "", "model.cfg: no layers"),
    (SMALL, "[net]\nwidth=8\nheight=8\nchannels=3\n", "model.cfg: no layers"),
    (SMALL, "[DEFAULT]\nname = value\n", "model.cfg:1: '[DEFAULT]': a Darknet network begins with [net], once"),
    (SMALL, "width=3\n", "model.cfg:1: 'width=3' is not key=value in a section: no Darknet network"),
    (SMALL, '{"layers": [1, 2]}', "is not key=value in a section: no Darknet network"),
    (SMALL, "[net]\n" + "[avg]\n" * 1_000_000, "characters; a network's description has at most"),
    (SMALL, "[net]\n" + "[avg]\n" * 100_000, "model.cfg:5001: more than 5000 sections"),
]


@pytest.mark.parametrize(("part", "instead", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_read_is_refused_in_one_line(part, instead, message):
    assert part in SMALL
    with pytest.raises(UsageError) as refused:
        read_cfg(SMALL.replace(part, instead, 1))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_heads_of_different_classes_are_refused():
    again = SMALL[SMALL.index("[yolo]") :].replace("classes=4", "classes=1")
    middle = "[route]\nlayers=-2\n[conv]\nfilters=18\nactivation=linear\n"
    with pytest.raises(UsageError, match=re.escape("layer 6 [yolo] classes: 1 classes, but layer 3 has 4")):
        read_cfg(SMALL + middle + again)


def mutated(text: str, rng: np.random.Generator) -> str:
    """Return a text with up to three lines deleted, doubled or swapped, numbers changed or bytes flipped."""
    lines = text.split("\n")
    for _ in range(rng.integers(1, 4)):
        i, j = rng.integers(0, len(lines), 2)
        numbers = [k for k, line in enumerate(lines) if re.search("[0-9]", line)]
        match rng.integers(0, 5):
            case 0 if len(lines) > 2:
                del lines[i]
            case 1:
                lines.insert(j, lines[i])
            case 2:
                lines[i], lines[j] = lines[j], lines[i]
            case 3 if numbers:
                other = ["0", "-1", "1", "2", "7", "64", "1e9", "99999", "99999999999999999999", "nan", ""]
                k = rng.choice(numbers)
                lines[k] = re.sub(r"\d+", str(rng.choice(other)), lines[k], count=1)
            case _:
                content = bytearray(lines[i].encode())
                if content:
                    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
                lines[i] = content.decode("latin-1")
    return "\n".join(lines)


def test_a_damaged_file_is_a_network_or_a_message_of_one_line():
    rng = np.random.default_rng(0)
    texts = [
        SMALL,
        *(path.read_text() for path in sorted(DARKNET.glob("zoo/*/slim.cfg")) if path.stat().st_size < 3000),
    ]
    counts = {"network": 0, "message": 0}
    for number in range(500):
        text = mutated(texts[number % len(texts)], rng)
        try:
            with torch.device("meta"):
                registry.bind("model", {"name": "darknet", "cfg": text})()
            counts["network"] += 1
        except ConvzooError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 400, str(error)
            counts["message"] += 1
    assert min(counts.values()) > 50, counts
