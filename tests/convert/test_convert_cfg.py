"""`convert` of a Darknet weight file with its `.cfg`: model files that detect what the original does, and bad input."""

import functools
import hashlib
import http.server
import json
import re
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import convzoo
from convzoo.boxes import UNMOVED, cxcywh_to_xyxy
from convzoo.config import registry
from convzoo.convert import darknet, darknet_own, darknet_pair, published, sources
from convzoo.convert.state_dict import CfgFile, ExpectedWeights
from convzoo.data.decode import decode_rgb
from convzoo.errors import UsageError
from convzoo.inference.torch_model import TorchModel, open_model
from convzoo.model_file import load_model
from convzoo.models.darknet_layers import read_cfg
from convzoo.types import Batch, Key, Sample
from helpers import CLASSIFIERS, DARKNET, DETECTORS, DIFFERENCES, SHARED, SMALL_CFG, one_line
from networks import write_model

ZOO = DARKNET / "zoo"
TINY = SHARED / "data/weights/yolov3-tiny.weights"
COCO = SHARED / "data/coco-mini"
MASKS = "trained with masks 1,2,3 at the fine head"
needs_zoo = pytest.mark.skipif(not ZOO.is_dir(), reason=f"no Darknet networks at {ZOO} (CONVZOO_SHARED)")
needs_tiny = pytest.mark.skipif(not TINY.is_file(), reason=f"no {TINY} (CONVZOO_SHARED)")

NUM_FLOATS = 8 * (4 + 27) + 14 * (1 + 8)


def weight_bytes(num_floats: int = NUM_FLOATS, version: tuple[int, int, int] = (0, 2, 5)) -> bytes:
    """Return a weight file; all of its floats are positive, so that any of them may be a variance."""
    floats = np.random.default_rng(0).uniform(0.1, 0.5, num_floats).astype("<f4")
    return struct.pack("<iiiq", *version, 640) + floats.tobytes()


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    """A small network's weights and `.cfg`."""
    (tmp_path / "my.weights").write_bytes(weight_bytes())
    (tmp_path / "my.cfg").write_text(SMALL_CFG)
    return tmp_path / "my.weights", tmp_path / "my.cfg"


@pytest.fixture
def slim(run, tmp_path):
    """Convert a slim network and open it."""

    def convert(name: str) -> TorchModel:
        out = tmp_path / f"{name}.safetensors"
        code, _, err = run("convert", ZOO / name / "slim.weights", "--cfg", ZOO / name / "slim.cfg", "--out", out)
        assert code == 0, err
        return open_model(out)

    return convert


def picture(name: str) -> torch.Tensor:
    own = ZOO / name / "input.npy"
    shared = ZOO / ("input128.npy" if name == "yolov4-p5" else "input96.npy")
    return torch.from_numpy(np.load(own if own.exists() else shared))[None]


def filling(images: torch.Tensor) -> Batch:
    """Return pictures that fill the network's input as they are."""
    count, hw = len(images), tuple(images.shape[-2:])
    places, numbers = torch.tensor([UNMOVED] * count), torch.arange(count)
    return Batch(images, None, numbers, [], torch.tensor([hw] * count), places, numbers >= 0, [])


@needs_zoo
@pytest.mark.parametrize("name", DETECTORS)
def test_a_converted_detector_detects_what_the_original_detects(slim, name):
    model, images, limit = slim(name), picture(name), max(1e-3, 4 * DIFFERENCES[name])
    expected = json.loads((ZOO / name / "detections.json").read_text())
    valid = {"score_threshold": 0.005, "iou_threshold": 0.45, "multi_label": True}
    assert valid.items() <= model.recipe.postprocess.items()
    threshold, iou = expected["threshold"], expected["nms_iou"]
    keys = {"score_threshold": threshold, "iou_threshold": iou, "max_detections": "null", "box_rule": "darknet"}
    task = model.changed(tuple(f"postprocess.{key}={value}" for key, value in keys.items())).task()
    (ours,) = task.postprocess(model.runner()(images), filling(images))
    assert ours.boxes_xyxy is not None
    rest, lone = set(range(len(ours.labels))), []
    for label, score, *box in expected["after_nms"]:
        height, width = images.shape[-2:]
        xyxy = (cxcywh_to_xyxy(torch.tensor(box)) * torch.tensor([width, height] * 2)).numpy()
        errors = np.abs(ours.boxes_xyxy - xyxy).max(1) / max(width, height, *(xyxy[2:] - xyxy[:2]))
        errors = np.maximum(errors, np.abs(ours.scores - score))
        row = min((row for row in rest if ours.labels[row] == label), key=lambda row: errors[row], default=None)
        if row is None or errors[row] > limit:
            lone.append(score)
        else:
            rest.remove(row)
    lone += [float(ours.scores[row]) for row in rest]
    assert all(abs(score - threshold) < limit for score in lone), lone


@needs_zoo
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_converted_classifier_gives_the_originals_logits(slim, name):
    model, images = slim(name), picture(name)
    with np.load(ZOO / name / "outputs.npz") as outputs:
        logits = torch.from_numpy(outputs[outputs.files[0]]).flatten()
    (ours,) = model.runner()(images)
    assert (ours[0] - logits).abs().max() <= 2e-4 * logits.abs().max()
    assert model.recipe.task == "classify" and len(model.class_names) == len(logits)
    (answer,) = model.task().postprocess((ours,), filling(images))
    assert answer.labels[0] == int(logits.argmax())


@pytest.mark.parametrize(
    ("revision", "extra", "flags", "name"),
    [
        (5, "", [], "resize"),
        (0, "", [], "letterbox"),
        (5, "letter_box=1", [], "letterbox"),
        (0, "letter_box=1", ["--resize", "stretch"], "resize"),
        (5, "", ["--resize", "letterbox"], "letterbox"),
    ],
)
def test_how_pictures_get_the_size_is_taken_from_the_files_and_said(run, pair, tmp_path, revision, extra, flags, name):
    weights, cfg = pair
    weights.write_bytes(weight_bytes(version=(0, 2, revision)))
    cfg.write_text(SMALL_CFG.replace("channels=3", f"channels=3\n{extra}"))
    out = tmp_path / "my.safetensors"
    code, text, _ = run("convert", weights, "--cfg", cfg, *flags, "--out", out)
    assert code == 0
    how = {"resize": ["stretched to 96x64"], "letterbox": ["letterboxed on grey to 96x64"]}[name]
    assert all(words in text for words in [*how, "preprocessing: ", "10x14 23x27 px at stride 4"])
    ((operation, keys),) = load_model(out)[1].preprocessing["eval"][0].items()
    assert operation == name and keys["size_px"] == [96, 64]


def test_pictures_that_are_not_square_are_stretched_with_their_boxes(run, pair, tmp_path):
    """Boxes of a picture whose pixels are 2x3 blocks are those of the picture of single pixels, times the factors."""
    weights, cfg = pair
    out = tmp_path / "my.safetensors"
    assert run("convert", weights, "--cfg", cfg, "--out", out)[0] == 0
    small = torch.randint(0, 256, (96, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    Image.fromarray(small).save(tmp_path / "small.png")
    Image.fromarray(small.repeat(2, 0).repeat(3, 1)).save(tmp_path / "large.png")
    model = convzoo.load(out, device="cpu")
    files = [tmp_path / f"{name}.png" for name in ("small", "large")]
    one, other = (np.asarray(answer.boxes_xyxy) for answer in model.predict(*files, min_score=None))
    assert len(one) == len(other) > 20 and np.abs(other - one * [3, 2, 3, 2]).max() <= 1e-3


def test_class_names_come_from_a_file_and_must_be_as_many_as_the_classes(run, pair, tmp_path):
    weights, cfg = pair
    names, out = tmp_path / "my.names", tmp_path / "my.safetensors"
    names.write_text("cat\ncat\n")
    assert run("convert", weights, "--cfg", cfg, "--classes", names, "--out", out)[0] == 0
    assert load_model(out)[1].class_names == ["cat", "cat (2)"]
    names.write_text("cat\n")
    code, _, err = run("convert", weights, "--cfg", cfg, "--classes", names, "--out", out)
    assert code == 2 and "1 class names, the network has 2 outputs" in one_line(err)


@pytest.mark.parametrize(
    ("weights", "text", "flags", "code", "message"),
    [
        (
            weight_bytes(NUM_FLOATS - 1),
            SMALL_CFG,
            [],
            1,
            "too short for its .cfg: it ends in layer 1 [convolutional] of",
        ),
        (weight_bytes(100), SMALL_CFG, [], 1, "ends in layer 0 [convolutional] of line 6, 100 of 374 floats"),
        (weight_bytes(NUM_FLOATS + 3), SMALL_CFG, [], 1, "too long for its .cfg: 3 of 377 floats are left"),
        (weight_bytes()[:-2], SMALL_CFG, [], 1, "do not end with a whole float"),
        (weight_bytes()[:10], SMALL_CFG, [], 1, "does not begin with a version"),
        (
            weight_bytes(),
            SMALL_CFG.replace("filters=14", "filters=15"),
            [],
            2,
            "my.cfg:19: layer 2 [yolo]: 15 channels",
        ),
        (weight_bytes(), SMALL_CFG.replace("height=96", "height=97"), [], 2, "must be multiples of the stride 4"),
        (
            weight_bytes(),
            SMALL_CFG.replace("filters=8", "filters=1000000000"),
            [],
            2,
            "my.cfg:8: layer 0 [convolutional]",
        ),
        (
            weight_bytes(),
            SMALL_CFG.replace("[yolo]", "[lstm]"),
            [],
            2,
            "my.cfg:19: '[lstm]': no section that is supported",
        ),
        (weight_bytes(), "[core]\nbare = false\n", [], 2, "my.cfg:1: '[core]': a Darknet network begins with [net]"),
        (weight_bytes(), "[net]\n" + "[cost]\n" * 1_000_000, [], 2, "bytes; a network's description has at most"),
        (weight_bytes(), SMALL_CFG[: SMALL_CFG.index("[yolo]")], [], 1, "my.cfg ends with neither heads nor [softmax]"),
        (weight_bytes(), SMALL_CFG, ["--model", "yolov3"], 1, "holds darknet, not yolov3"),
        (weight_bytes(), SMALL_CFG, ["--num-classes", "3"], 1, "darknet with 2 classes, not 3"),
        (b"PK\x03\x04" + bytes(300), SMALL_CFG, [], 2, "torch weights; a .cfg describes Darknet's alone"),
        (b"<html>", SMALL_CFG, [], 1, "an HTML page"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(run, pair, tmp_path, weights, text, flags, code, message):
    pair[0].write_bytes(weights)
    pair[1].write_text(text)
    out = tmp_path / "my.safetensors"
    got, _, err = run("convert", pair[0], "--cfg", pair[1], *flags, "--out", out)
    assert (got, message in one_line(err)) == (code, True), err
    assert not out.exists()


def test_flags_without_meaning_are_refused(run, pair, tmp_path):
    weights, out = pair[0], tmp_path / "my.safetensors"
    code, _, err = run("convert", weights, "--resize", "stretch", "--out", out)
    assert code == 2 and "--resize has no meaning without --cfg" in one_line(err)
    code, _, err = run("convert", weights, "--cfg", tmp_path / "none.cfg", "--out", out)
    assert code == 2 and "none.cfg: no such .cfg file" in one_line(err)


@pytest.mark.parametrize("change", [lambda text: text, lambda text: text.replace("\n", "\r\n")])
@pytest.mark.parametrize("comment", [b"", "# 网络\n".encode(), "# r\xe9seau\n".encode("latin-1")])
def test_what_came_from_darknet_goes_back_byte_for_byte(run, pair, tmp_path, change, comment):
    weights, cfg = pair
    cfg.write_bytes(comment + change(SMALL_CFG).encode())
    ours, back = tmp_path / "my.safetensors", tmp_path / "back.weights"
    assert run("convert", weights, "--cfg", cfg, "--check", "--out", ours)[0] == 0
    assert run("convert", ours, "--to", "darknet", "--out", back)[0] == 0
    assert back.read_bytes() == weights.read_bytes()
    assert back.with_suffix(".cfg").read_bytes() == cfg.read_bytes()
    back.with_suffix(".cfg").write_text("mine")
    code, _, err = run("convert", ours, "--to", "darknet", "--out", back)
    assert code == 2 and "back.cfg: another file than the .cfg of back.weights" in one_line(err)


@needs_zoo
@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("tiny", {"name": "tinydarknet", "num_classes": 1000}),
        ("darknet53", {"name": "darknet53", "num_classes": 1000}),
        ("yolov3", {"name": "yolov3", "num_classes": 80}),
        ("yolov3-voc", {"name": "yolov3", "num_classes": 20}),
        ("yolov3-spp", None),
        ("yolov4", None),
        ("darknet19", None),
    ],
)
def test_our_own_networks_are_known_by_their_cfg(name, model):
    assert darknet_own.own_model(read_cfg((DARKNET / f"cfg/{name}.cfg").read_text())) == model


@needs_zoo
def test_our_own_network_has_the_anchors_and_the_size_of_its_cfg():
    text = (DARKNET / "cfg/yolov3.cfg").read_text()
    text = text.replace("10,13,  16,30", "11,12,  13,14.5").replace("width=608", "width=320")
    other = read_cfg(re.sub(r"classes=80", "classes=1", text.replace("filters=255", "filters=18")))
    model = darknet_own.own_model(other)
    assert model and model["name"] == "yolov3" and model["num_classes"] == 1
    assert model["anchors_px"][0] == [[11, 12], [13, 14.5], [33, 23]] and model["anchors_px"][2][2] == [373, 326]
    again = read_cfg(darknet_own.model_cfg(model, (608, 320)))
    assert darknet_own.own_model(again) == model and (again.height, again.width) == (608, 320)
    assert darknet_own.own_model(read_cfg(text.replace("mask = 6,7,8", "mask = 0,1,2"))) != {"name": "yolov3"}


@pytest.mark.parametrize("model", [{"name": "yolov3", "width": 0.0625}, {"name": "yolov3_tiny", "width": 0.25}])
def test_a_narrow_network_of_our_own_goes_to_darknet_and_comes_back(model):
    model = {**model, "num_classes": 3}
    network = registry.bind("model", model)()
    text = darknet_own.model_cfg(model, (96, 96))
    data = darknet.write(network.state_dict(), model)
    again = darknet_pair.read_as(CfgFile("narrow.cfg", text, hashlib.sha256(text.encode()).hexdigest()), data)
    assert again.model == model
    assert all(torch.equal(tensor, again.state_dict[name]) for name, tensor in network.state_dict().items())


def test_our_own_network_goes_to_darknet_and_comes_back(run, digits_run, tmp_path):
    """The file of a run, written with its `.cfg`, is read again as the same network with the same tensors."""
    ours, there, again = digits_run / "checkpoints/last.safetensors", tmp_path / "my.weights", tmp_path / "my.st"
    assert run("convert", ours, "--to", "darknet", "--out", there)[0] == 0
    assert run("convert", there, "--cfg", there.with_suffix(".cfg"), "--out", again)[0] == 0
    (before, about, _), (after, read, _) = load_model(ours), load_model(again)
    assert read.recipe["model"]["name"] == "tinydarknet" and read.recipe["model"]["num_classes"] == 10
    assert all(torch.equal(before[name], after[name]) for name in after if before[name].dim())
    assert about.input_hw is not None
    net = read_cfg(there.with_suffix(".cfg").read_text())
    assert (net.height, net.width) == tuple(about.input_hw)


@pytest.mark.parametrize("recipe", ["yolov3-digits", "yolov3-tiny-digits"])
def test_a_detector_of_a_recipe_with_its_anchors_and_width_goes_to_darknet_and_comes_back(run, tmp_path, recipe):
    ours, there, again = write_model(tmp_path, recipe), tmp_path / "my.weights", tmp_path / "again.safetensors"
    assert run("convert", ours, "--to", "darknet", "--out", there)[0] == 0
    assert run("convert", there, "--cfg", there.with_suffix(".cfg"), "--out", again)[0] == 0
    (before, about, _), (after, read, _) = load_model(ours), load_model(again)
    written, back = (info.recipe["model"] for info in (about, read))
    assert back["anchors_px"] == written["anchors_px"] and back["width"] == written["width"] < 1
    assert all(torch.equal(before[name], after[name]) for name in after if before[name].dim())


@pytest.mark.parametrize(
    ("num_bytes", "message"),
    [
        (24_251_276, "24251276 bytes, as yolov4-tiny.cfg takes"),
        (35_434_956, "35434956 bytes, as yolov3-tiny.cfg takes"),
        (99_999_999, "fits no network that is known without its .cfg"),
    ],
)
def test_weights_alone_say_which_cfg_they_need(run, tmp_path, num_bytes, message):
    path = tmp_path / "my.weights"
    with open(path, "wb") as file:
        file.write(struct.pack("<iiiq", 0, 2, 5, 0))
        file.truncate(num_bytes)
    code, _, err = run("convert", path, "--out", tmp_path / "my.safetensors")
    assert code in (1, 2) and message in one_line(err) and "--cfg" in one_line(err)


@functools.cache
def real(cfg: Path | None) -> sources.WeightSource:
    return sources.open_source(TINY, ExpectedWeights(cfg=cfg))


@needs_tiny
@needs_zoo
def test_the_published_yolov3_tiny_gets_the_anchors_of_its_training():
    alone, published_ = real(None).converted, real(DARKNET / "cfg/yolov3-tiny.cfg").converted
    assert any(MASKS in note and "851" in note for note in alone.notes)
    assert any(MASKS in note and "the .cfg says 0,1,2" in note for note in published_.notes)
    assert alone.class_names and alone.class_names[0] == "person"
    assert real(None).licence and real(None).licence.startswith("public domain")  # pyright: ignore[reportOptionalMemberAccess]
    assert [keys for step in (alone.transform or {})["eval"] for keys in step.values()] == [
        {"size_px": 416, "align_corners": True}
    ]


@needs_tiny
@needs_zoo
@pytest.mark.parametrize(("flags", "masks"), [([], "123"), (["--cfg", DARKNET / "cfg/yolov3-tiny.cfg"], "012")])
def test_the_published_yolov3_tiny_sees_the_dog(run, tmp_path, flags, masks):
    out = tmp_path / "tiny.safetensors"
    assert run("convert", TINY, *flags, "--out", out)[0] == 0
    model = convzoo.load(out, device="cpu")
    Image.fromarray(np.load(DARKNET / "decoded/dog.npy")).save(tmp_path / "dog.png")  # as the original decodes it
    (answer,) = model.predict(tmp_path / "dog.png", min_score=0.25)
    expected = json.loads((DARKNET / f"yolov3-tiny/dog_mask{masks}.json").read_text())["after_nms"]
    assert answer.labels == [row[0] for row in expected]
    assert answer.scores == pytest.approx([row[1] for row in expected], abs=0.01)
    assert answer.boxes_xyxy is not None
    for box, (_, _, *cxcywh) in zip(answer.boxes_xyxy, expected, strict=True):
        letterboxed = box * 416 / 768 + [0, 52, 0, 52]
        assert letterboxed == pytest.approx(416 * cxcywh_to_xyxy(torch.tensor(cxcywh)).numpy(), abs=2)


@pytest.mark.slow
@needs_tiny
@pytest.mark.parametrize(
    ("flags", "ap", "ap50"), [([], 21.36, 43.15), (["--cfg", DARKNET / "cfg/yolov3-tiny.cfg"], 14.15, 27.41)]
)
def test_the_published_yolov3_tiny_has_the_originals_ap(run, tmp_path, flags, ap, ap50):
    out = tmp_path / "tiny.safetensors"
    assert run("convert", TINY, *flags, "--out", out)[0] == 0
    code, text, err = run("eval", out, "--data", COCO, "--json")
    assert code == 0, err
    result = json.loads(text)
    assert result["images"] == 128
    assert 100 * result["AP"] == pytest.approx(ap, abs=0.3) and 100 * result["AP50"] == pytest.approx(ap50, abs=0.3)


@needs_tiny
def test_the_published_yolov3_tiny_comes_from_the_network_when_asked_for(run, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(TINY.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}/"
        table = tuple(
            entry._replace(source=entry.source.replace(published.DARKNET_URL, here)) for entry in published.TABLE
        )
        monkeypatch.setattr(published, "TABLE", table)
        name, out = "darknet:yolov3-tiny.weights", tmp_path / "tiny.safetensors"
        code, _, err = run("convert", name, "--out", out)
        assert code == 2 and "add --download" in one_line(err) and not (tmp_path / "torch").exists()
        code, text, err = run("convert", name, "--download", "--out", out)
        server.shutdown()
    assert code == 0, err
    assert load_model(out)[1].provenance["converted_from"] == name and MASKS in text


def test_weights_are_opened_by_their_cfg_without_a_model_file(run, pair, tmp_path):
    """From Python and by `predict` the answers are those of the converted file; other files have no `.cfg`."""
    weights, cfg = pair
    out, drawn = tmp_path / "my.safetensors", tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(drawn)
    assert run("convert", weights, "--cfg", cfg, "--resize", "letterbox", "--out", out)[0] == 0
    models = [convzoo.load(out), convzoo.load(weights, cfg=cfg, resize="letterbox"), convzoo.load(weights, cfg=cfg)]
    (answers, same, stretched) = [next(iter(model.predict(drawn, min_score=None))) for model in models]
    assert len(answers.names) > 20 and same.row() == answers.row() != stretched.row()
    assert run("convert", weights, "--cfg", cfg, "--out", out)[0] == 0
    code, rows, err = run("predict", weights, drawn, "--cfg", cfg, "--json")
    assert code == 0 and rows == run("predict", out, drawn, "--json")[1], err
    with pytest.raises(UsageError, match="no weights of Darknet, which alone have a .cfg"):
        convzoo.load(out, cfg=cfg)
    code, _, err = run("eval", out, "--cfg", cfg)
    assert code == 2 and "no weights of Darknet, which alone have a .cfg" in one_line(err)
    code, _, err = run("eval", weights)
    assert code == 1 and "--cfg" in one_line(err)


def test_a_network_of_ones_own_is_trained_written_for_darknet_and_read_back_equal(run, tmp_path):
    """By the recipe of its `.cfg`, which is neither square nor one of ours: the same bytes, tensors and answers."""
    text = SMALL_CFG.replace("classes=2", "classes=10").replace("filters=14", "filters=30")
    (tmp_path / "my.cfg").write_text(text.replace("channels=3", "channels=3\nbatch=8\nmax_batches=64"))
    assert run("convert", tmp_path / "my.cfg", "--out", tmp_path / "my.yaml")[0] == 0
    quick = ["data.name=digit_scenes", "data.max_train_images=16", "train.epochs=2", "train.eval_every_epochs=0"]
    code, _, err = run("train", tmp_path / "my.yaml", *quick, "--out", tmp_path / "run")
    assert code == 0, err
    ours, there = tmp_path / "run/checkpoints/last.safetensors", tmp_path / "there.weights"
    again, names = tmp_path / "again.safetensors", tmp_path / "my.names"
    names.write_text("\n".join(load_model(ours)[1].class_names))
    assert run("convert", ours, "--to", "darknet", "--out", there)[0] == 0
    assert there.with_suffix(".cfg").read_bytes() == (tmp_path / "my.cfg").read_bytes()
    flags = ["--classes", names, "--resize", "letterbox"]
    assert run("convert", there, "--cfg", there.with_suffix(".cfg"), *flags, "--out", again)[0] == 0
    before, after = (load_model(path)[0] for path in (ours, again))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items() if tensor.dim())
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    answers = [next(iter(convzoo.load(path).predict(tmp_path / "a.png", min_score=None))) for path in (ours, again)]
    assert answers[0].row() == answers[1].row() and len(answers[0].names) > 20


def test_a_network_that_is_not_square_sees_what_a_square_one_sees_of_a_padded_picture(run, tmp_path):
    """64 wide and 96 high it gets the picture alone, 96 by 96 with grey on both sides: the boxes are the same ones.

    But for those of cells that see past the picture's sides, zeros here and grey there: of a 3x3 convolution by 4 and
    one by 1 the outer two on either side, 8 pixels.
    """
    layer = "[convolutional]\nbatch_normalize=1\nfilters=8\nsize=3\nstride=1\npad=1\nactivation=leaky\n\n"
    wide = SMALL_CFG.replace("[convolutional]\nfilters=14", f"{layer}[convolutional]\nfilters=14")
    square = wide.replace("width=64", "width=96")
    rng, norm = np.random.default_rng(0), [np.zeros(8), np.ones(8), np.zeros(8), np.ones(8)]
    floats = [*norm, rng.normal(0, 0.3, 8 * 27), *norm, rng.normal(0, 0.2, 8 * 72), rng.normal(0, 0.3, 14 * (1 + 8))]
    weights = struct.pack("<iiiq", 0, 2, 0, 0) + np.concatenate(floats).astype("<f4").tobytes()
    (tmp_path / "my.weights").write_bytes(weights)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    every = ["score_threshold=0", "iou_threshold=1", "max_detections=null", "box_rule=darknet"]
    boxes, scores = [], []
    for name, text in (("wide", wide), ("square", square)):
        (tmp_path / f"{name}.cfg").write_text(text)
        out = tmp_path / f"{name}.safetensors"
        assert run("convert", tmp_path / "my.weights", "--cfg", tmp_path / f"{name}.cfg", "--out", out)[0] == 0
        model = open_model(out, overrides=tuple(f"postprocess.{key}" for key in every))
        placed = model.pipeline()(
            Sample(decode_rgb((tmp_path / "a.png").read_bytes(), ""), 0, 0, "", (96, 64)), Key(0, 0)
        )
        images, task = placed.image[None], model.task()
        assert tuple(images.shape[2:]) == ((96, 64) if name == "wide" else (96, 96))
        (seen,) = task.postprocess(model.runner()(images), task.collate([placed]))
        xyxy = np.asarray(seen.boxes_xyxy)
        centre_x = (xyxy[:, 0] + xyxy[:, 2]) / 2
        inside = (centre_x > 8) & (centre_x < 56)
        order = np.lexsort((xyxy[inside, 0], xyxy[inside, 1], seen.labels[inside]))
        boxes.append(xyxy[inside][order])
        scores.append(seen.scores[inside][order])
    assert len(boxes[0]) == len(boxes[1]) == 2 * 2 * 12 * 24  # anchors, classes, columns, rows
    assert np.abs(boxes[0] - boxes[1]).max() < 1e-4 and np.abs(scores[0] - scores[1]).max() < 1e-6
    assert scores[0].std() > 1e-3
