"""Darknet networks computed by NumPy alone (`darknet_in_numpy.py`): a proof that needs no reference data."""

import json

import numpy as np
import pytest
from PIL import Image

import darknet_in_numpy
from convzoo.inference.torch_model import TorchModel, open_model
from convzoo.models.darknet_network import Network


def conv(filters: int, size: int = 1, activation: str = "leaky", norm: bool = True, **options: int) -> str:
    keys = {"filters": filters, "size": size, "pad": 1, "batch_normalize": int(norm), **options}
    return section("convolutional", **keys, activation=activation)


def section(name: str, **options: object) -> str:
    """`after` stands for `from`, which is a word of Python."""
    return "".join([f"[{name}]\n", *(f"{key.replace('after', 'from')}={value}\n" for key, value in options.items())])


def net(width: int, height: int) -> str:
    return section("net", width=width, height=height, channels=3)


ANCHORS = "4,5, 8,9, 20,14"
NETWORKS = {
    "yolo": [
        net(32, 32),
        conv(4, 3, stride=2),
        section("maxpool", size=2, stride=2),
        conv(6, activation="mish", norm=False),
        section("upsample", stride=2),
        section("route", layers="-1,0"),
        conv(4, 3, "swish", stride=2),
        section("shortcut", after=-5, activation="linear"),
        conv(14, activation="linear", norm=False),
        section("yolo", mask="1,2", anchors=ANCHORS, classes=2, num=3, scale_x_y=1.1),
    ],
    "two heads": [
        net(32, 48),
        conv(8, 3, "mish", stride=2),
        conv(8, 3, "relu6", stride=2, groups=2),
        section("maxpool", size=5, stride=1),
        section("route", layers="-1,-2"),
        conv(8, activation="logistic"),
        section("sam", after=1, activation="linear"),
        section("avgpool"),
        conv(8, activation="logistic", norm=False),
        section("scale_channels", after=-3, activation="leaky"),
        conv(14, activation="linear", norm=False),
        section("yolo", mask="0,2", anchors=ANCHORS, classes=2, num=3),
        section("route", layers=-3),
        section("maxpool", size=2, stride=2),
        section("route", layers=-1, groups=2, group_id=1),
        section("maxpool", size=2, stride=1),
        conv(7, activation="linear", norm=False),
        section("yolo", mask=1, anchors=ANCHORS, classes=2, num=3, scale_x_y=2, nms_kind="greedynms"),
    ],
    "new coordinates": [
        net(48, 32),
        conv(8, 3, "swish", stride=4),
        conv(21, activation="logistic", norm=False),
        section(
            "yolo", mask="0,1,2", anchors=ANCHORS, classes=2, num=3, new_coords=1, scale_x_y=1.05,
            nms_kind="diounms", beta_nms=0.8,
        ),
    ],
    "region": [
        net(32, 32),
        conv(8, 3, stride=2),
        conv(8, 3, "relu", stride=2),
        section("route", layers=-2),
        section("reorg", stride=2),
        section("route", layers="-1,-3"),
        conv(16, activation="linear", norm=False),
        section("region", anchors="1.3,1.7, 3.2,4.1", classes=3, num=2, softmax=1),
    ],
    "classifier": [
        net(24, 20),
        section("crop", crop_width=19, crop_height=17),
        conv(6, 3, "ramp", norm=False, stride=2),
        section("maxpool", size=3, stride=2, padding=1),
        conv(4, 3, pad=0, padding=1),
        section("shortcut", after=-2, activation="relu"),
        section("connected", output=9, batch_normalize=1, activation="leaky"),
        section("dropout", probability=0.5),
        section("connected", output=2, activation="linear"),
        section("softmax"),
    ],
}  # fmt: skip
MIN_SCORE = 0.15
every_network = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture
def network(request, name, run, tmp_path):
    """A network of random weights, converted from its files; a picture, and the map of each layer by NumPy."""
    text, weights = "".join(NETWORKS[name]), darknet_in_numpy.Weights(seed=11)
    width, height = (darknet_in_numpy.read(text)[0].number(key) for key in ("width", "height"))
    pixels = np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
    maps = darknet_in_numpy.layers(text, pixels.transpose(2, 0, 1) / 255, weights)
    classes = "cup\nspoon\nfork\n" if name == "region" else "cup\nspoon\n"
    files = [tmp_path / f"net.{suffix}" for suffix in ("cfg", "weights", "names")]
    for path, content in zip(files, (text.encode(), weights.content, classes.encode()), strict=True):
        path.write_bytes(content)
    out = tmp_path / "net.safetensors"
    code, _, err = run("convert", files[1], "--cfg", files[0], "--classes", files[2], "--out", out)
    assert code == 0, err
    return text, pixels, maps, out


def network_of(opened: TorchModel) -> Network:
    assert isinstance(opened.model, Network)
    return opened.model


@every_network
def test_every_layer_gives_what_numpy_gives(network):
    _, pixels, expected, out = network
    opened, maps = open_model(out), dict[int, np.ndarray]()

    def keep(number: int):
        return lambda _module, _inputs, output: maps.update({number: output[0].numpy()})

    for number, layer in enumerate(network_of(opened).layers):
        layer.register_forward_hook(keep(number))
    opened.runner()(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))
    assert len(maps) == len(expected)
    for number, theirs in enumerate(expected):
        ours = maps[number].reshape(theirs.shape)
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max(), number


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "classifier"])
def test_detections_are_numpys(run, network, tmp_path):
    text, pixels, maps, out = network
    opened = open_model(out)
    head = darknet_in_numpy.read(text)[-1].options
    rule = opened.recipe.postprocess
    boxes, scores = darknet_in_numpy.decoded(text, maps)
    rows, labels = (scores > MIN_SCORE).nonzero()
    kind = head.get("nms_kind", "default"), float(head.get("beta_nms", 0.6))
    chosen = darknet_in_numpy.survivors(boxes[rows], scores[rows, labels], labels, rule["iou_threshold"], *kind)
    assert 2 < len(chosen) < len(rows)  # some were suppressed
    height, width, _ = pixels.shape
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    corners = np.clip(corners * ([width, height] * 2), 0, [width, height] * 2)

    Image.fromarray(pixels).save(tmp_path / "picture.png")
    code, answer, err = run("predict", out, tmp_path / "picture.png", "--min-score", MIN_SCORE, "--json")
    assert code == 0, err
    detections = json.loads(answer)["detections"]
    for detection, index in zip(detections, chosen[:100], strict=True):
        row, label = rows[index], labels[index]
        assert detection["class"] == opened.class_names[label]
        assert detection["score"] == pytest.approx(scores[row, label], abs=2e-5)
        assert detection["box_xyxy"] == pytest.approx(corners[row], abs=0.02)


@pytest.mark.parametrize("name", ["classifier"])
def test_a_class_is_numpys(run, network, tmp_path):
    _, pixels, maps, out = network
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    code, answer, err = run("predict", out, tmp_path / "picture.png", "--json")
    assert code == 0, err
    best = json.loads(answer)["classes"][0]
    probabilities = darknet_in_numpy.softmax(maps[-1].ravel(), 0)
    assert best["score"] == pytest.approx(probabilities.max(), abs=1e-5)
    assert best["class"] == ["cup", "spoon"][int(probabilities.argmax())]


@every_network
def test_the_file_is_written_back_byte_for_byte(run, network, tmp_path):
    _, _, _, out = network
    assert run("convert", out, "--to", "darknet", "--out", tmp_path / "again.weights")[0] == 0
    assert (tmp_path / "again.weights").read_bytes() == (tmp_path / "net.weights").read_bytes()
