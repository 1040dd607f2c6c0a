"""Darknet weight files: equal to the original program's outputs, round trips, and everything that can be wrong."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from convzoo.config import registry
from convzoo.convert import darknet, readers
from convzoo.convert.state_dict import ExpectedWeights, load_backbone
from convzoo.data.transforms.pipeline import Pipeline, normalize
from convzoo.errors import ConvzooError, UsageError
from convzoo.types import Key, Sample
from helpers import SHARED

FIXTURES = SHARED / "fixtures" / "darknet"
TINY = SHARED / "data" / "weights" / "tiny.weights"
WNIDS = SHARED / "data" / "imagenet-sample" / "darknet_wnids.txt"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"no Darknet outputs at {FIXTURES} (CONVZOO_SHARED)")
needs_tiny = pytest.mark.skipif(not TINY.is_file(), reason=f"no {TINY} (CONVZOO_SHARED)")
# Twice what the fixtures' README states against float64.
TOLERANCE = {"tiny": 4e-5, "darknet53": 4e-5, "darknet53.conv.74": 8e-5, "yolov3": 8e-4, "yolov3 decoded": 1.4e-3}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return what makes the fixtures' weight file of a network, once."""
    folder = tmp_path_factory.mktemp("darknet")

    def make(name: str) -> Path:
        path = folder / f"{name}.weights"
        if not path.exists():
            subprocess.run([sys.executable, FIXTURES / "make_weights.py", name, path], check=True, capture_output=True)
        return path

    return make


def fixture(path: str) -> torch.Tensor:
    array = torch.from_numpy(np.load(FIXTURES / path))
    return array if array.dim() == 4 else array[None]


@torch.no_grad()
def largest_difference(model, images: str, output: str) -> float:
    wanted = fixture(output)
    return float((model(fixture(images)).reshape(wanted.shape) - wanted).abs().max())


def preprocess(image: torch.Tensor, transform: dict) -> torch.Tensor:
    """Run a recipe's evaluation transform on [3, H, W] uint8."""
    operations = [
        registry.bind("transform", {"name": name, **keys}) for op in transform["eval"] for name, keys in op.items()
    ]
    sample = Pipeline(operations, seed=0)(Sample(image, 0, 0, "", (image.shape[1], image.shape[2])), Key(0, 0))
    return normalize(sample.image[None], transform["mean"], transform["std"])[0]


def random_weights(name: str, **options) -> tuple[dict, dict[str, torch.Tensor]]:
    model = {"name": name, **options}
    torch.manual_seed(0)
    state_dict = registry.bind("model", model)().state_dict()
    return model, {key: torch.rand_like(value) if value.dim() else value for key, value in state_dict.items()}


@needs_fixtures
@pytest.mark.parametrize("name, last", [("tiny", 20), ("darknet53", 76)])
def test_classifiers_equal_darknet(made, name, last):
    converted = readers.read(made(name))
    model = readers.network(converted)
    seeded = largest_difference(model, f"{name}/input.npy", f"{name}/output_seeded_logits{last}.npy")
    dog = largest_difference(model, f"{name}/preprocessed_dog.npy", f"{name}/output_dog_logits{last}.npy")
    assert max(seeded, dog) <= TOLERANCE[name]
    with torch.no_grad():
        top5 = model(fixture(f"{name}/preprocessed_dog.npy")).softmax(1).topk(5)
    expected = json.loads((FIXTURES / name / "top5_dog.json").read_text())
    assert top5.indices[0].tolist() == [row["index"] for row in expected]
    assert top5.values[0].tolist() == pytest.approx([row["prob"] for row in expected], abs=1e-5)


@needs_fixtures
def test_partial_file_is_a_backbone_for_both_networks(made):
    path = made("darknet53.conv.74")
    converted = readers.read(path)
    assert sum(tensor.dim() == 4 for tensor in converted.state_dict.values()) == 52
    assert converted.model["name"] == "darknet53"
    assert converted.missing == ["classifier.weight", "classifier.bias"]
    assert converted.transform is None and converted.class_names is None
    with pytest.raises(ConvzooError, match=r"'classifier.weight' is missing"):
        readers.network(converted)
    model = registry.bind("model", {"name": "darknet53"})().eval()
    assert load_backbone(model, converted) == 52
    model.classifier = torch.nn.Identity()
    wanted = fixture("darknet53-conv74/output_seeded_layer74.npy")
    with torch.no_grad():
        output = model.backbone(fixture("darknet53/input.npy"))[-1]
    assert float((output - wanted.reshape(output.shape)).abs().max()) <= TOLERANCE["darknet53.conv.74"]
    named = readers.read(path, ExpectedWeights("yolov3"))
    assert named.model == {"name": "yolov3", "num_classes": 80}
    assert len(named.missing) == 20 * 6 + 3 * 2  # convolutions with batch norm and its counter, then those with a bias


@needs_fixtures
def test_yolov3_raw_maps_equal_darknet(made):
    path = made("yolov3")
    converted = readers.read(path)
    names = converted.class_names or []
    assert names[:2] == ["person", "bicycle"] and len(names) == 80
    assert converted.header["bytes_used"] == path.stat().st_size == 248_007_048
    model = readers.network(converted)
    with torch.no_grad():
        maps = model(fixture("yolov3-416/input.npy"))
    assert [tuple(head.shape[1:]) for head in maps] == [(255, 52, 52), (255, 26, 26), (255, 13, 13)]
    for head, layer in ((maps[2], 81), (maps[1], 93)):
        wanted = fixture(f"yolov3-416/output_seeded_conv{layer}.npy").reshape(head.shape)
        assert float((head - wanted).abs().max()) <= TOLERANCE["yolov3"]


@needs_fixtures
def test_yolov3_activated_maps_of_the_dog(made):
    """The finest map too; these outputs come from Darknet's CPU code, which divides by sqrt(var) + 1e-6."""
    converted = readers.read(made("yolov3"))
    for name, tensor in converted.state_dict.items():
        if name.endswith("running_var"):
            tensor.copy_((tensor.double().sqrt() + 1e-6).square() - 1e-5)
    with torch.no_grad():
        maps = readers.network(converted)(fixture("yolov3-416/preprocessed_dog.npy"))
    for head, layer in zip(maps, (106, 94, 82), strict=True):
        activated = head.unflatten(1, (3, 85)).clone()
        activated[:, :, [0, 1, *range(4, 85)]] = activated[:, :, [0, 1, *range(4, 85)]].sigmoid()
        wanted = fixture(f"yolov3-416/output_dog_yolo{layer}.npy").reshape(activated.shape)
        assert float((activated - wanted).abs().max()) <= TOLERANCE["yolov3 decoded"]


@needs_fixtures
@pytest.mark.parametrize("name", ["tiny", "darknet53", "yolov3"])
def test_written_file_is_the_one_read(made, name):
    path = made(name)
    converted = readers.read(path)
    assert darknet.write(converted.state_dict, converted.model, seen=32013312, version=(0, 2, 5)) == path.read_bytes()


@needs_tiny
def test_real_tiny_weights():
    converted = readers.read(TINY, ExpectedWeights(classes=WNIDS))
    header = {"major": 0, "minor": 1, "revision": 0, "seen": 204_800_000, "num_bytes": 16}
    assert converted.header == {**header, "bytes_used": 4_185_968, "bytes_left": 0}
    assert converted.model == {"name": "tinydarknet", "num_classes": 1000}
    assert len(converted.table) == 15 * 5 + 2 and not converted.missing
    assert converted.class_names and converted.class_names[:2] == ["n02119789", "n02100735"]
    assert darknet.write(converted.state_dict, converted.model, 204_800_000, (0, 1, 0)) == TINY.read_bytes()
    assert readers.read(TINY).class_names == converted.class_names  # they come with the program


@needs_tiny
@needs_fixtures
def test_real_tiny_weights_know_the_dog():
    converted = readers.read(TINY, ExpectedWeights(classes=WNIDS))
    assert converted.transform and converted.class_names
    image = torch.from_numpy(np.load(FIXTURES / "decoded" / "dog.npy")).permute(2, 0, 1)
    image = preprocess(image, converted.transform)
    with torch.no_grad():
        top3 = readers.network(converted)(image[None]).topk(3)
    # dogsled, malamute, Eskimo dog
    assert {converted.class_names[i] for i in top3.indices[0]} == {"n03218198", "n02110063", "n02109961"}


@pytest.mark.parametrize("num_classes", [1, 7])
@pytest.mark.parametrize("version", [(0, 1, 0), (0, 2, 0), (0, 2, 5)])
def test_round_trip_of_other_classes(num_classes, version, tmp_path):
    model, state_dict = random_weights("tinydarknet", num_classes=num_classes)
    data = darknet.write(state_dict, model, seen=123, version=version)
    converted = darknet.read(data, ExpectedWeights("tinydarknet", num_classes))
    assert converted.model == model and converted.header["seen"] == 123
    assert all(torch.equal(converted.state_dict[name], tensor) for name, tensor in state_dict.items())
    with pytest.raises(ConvzooError, match=rf"tinydarknet with {num_classes} classes: then say how many"):
        darknet.read(data)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {i}" for i in range(num_classes)))
    assert darknet.read(data, ExpectedWeights(None, num_classes, names)).class_names == names.read_text().splitlines()
    names.write_text("a\nb\n")
    with pytest.raises(UsageError, match=f"2 class names, the network has {num_classes} outputs"):
        darknet.read(data, ExpectedWeights(None, num_classes, names))


def tiny_bytes(num_classes: int = 1000) -> bytes:
    model, state_dict = random_weights("tinydarknet", num_classes=num_classes)
    return darknet.write(state_dict, model)


DATA = tiny_bytes()


@pytest.mark.parametrize(
    "data, message",
    [
        (DATA[:-4], r"truncated: \d+ bytes, tinydarknet with 1000 classes takes 4185972"),
        (DATA[:-1], "truncated"),
        (DATA[:3000], "truncated"),
        (DATA[:18], "truncated: 18 bytes, the header alone takes 20"),
        (DATA[:7], "does not begin with a version"),
        (DATA + b"\0" * 8, "over-long"),
        (b"\xff" + DATA, "does not begin with a version"),
        (DATA[: -4 * 129], "damaged, or tinydarknet with 999 classes"),
        (DATA[: -4 * 129 * 1000], "it is cut off, or tinydarknet up to a layer: then say that it is tinydarknet"),
        (DATA[:60] + struct.pack("<f", float("nan")) + DATA[64:], "'features.0.norm.bias' holds values that are not"),
        (DATA[:60] + struct.pack("<f", float("inf")) + DATA[64:], "'features.0.norm.bias' holds values that are not"),
        (DATA[:212] + struct.pack("<f", -1.0) + DATA[216:], "'features.0.norm.running_var' holds a negative variance"),
    ],
)
def test_bad_files(data, message):
    with pytest.raises(ConvzooError, match=message) as raised:
        darknet.read(data)
    assert raised.value.exit_code == 1 and "\n" not in str(raised.value)


def test_wrong_network_and_wrong_options(tmp_path):
    with pytest.raises(ConvzooError, match="holds tinydarknet, not yolov3"):
        darknet.read(DATA, ExpectedWeights("yolov3"))
    with pytest.raises(ConvzooError, match="tinydarknet with 1000 classes: then say how many"):
        darknet.read(DATA, ExpectedWeights(num_classes=10))
    with pytest.raises(UsageError, match="for tinydarknet, darknet53, yolov3, yolov3_tiny, not vgg16"):
        darknet.read(DATA, ExpectedWeights("vgg16"))
    with pytest.raises(UsageError, match="at least one class"):
        darknet.read(DATA, ExpectedWeights(num_classes=0))
    with pytest.raises(UsageError, match="no such weight file"):
        readers.read(tmp_path / "none.weights")
    with pytest.raises(UsageError, match="a folder"):
        readers.read(tmp_path)


@pytest.mark.parametrize(
    "head, message",
    [
        (b"", "an empty file"),
        (b"\n <!DOCTYPE html><html>", "an HTML page, not a weight file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a git-lfs pointer"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1f\x8b\x08\x00", "a compressed file"),
        (b"some text that is no weight file", "not a Darknet, MindSpore, PyTorch or safetensors"),
    ],
)
def test_impostors(head, message, tmp_path):
    path = tmp_path / "file.weights"
    path.write_bytes(head)
    with pytest.raises(ConvzooError, match=message) as raised:
        readers.read(path)
    assert raised.value.exit_code == 1 and str(path) in str(raised.value)


def test_writes_only_what_darknet_computes():
    model, state_dict = random_weights("tinydarknet", leaky_slope=0.2)
    with pytest.raises(UsageError, match=r"leaky_slope 0.1, this model 0.2"):
        darknet.write(state_dict, model)
    with pytest.raises(UsageError, match="not vgg16"):
        darknet.write(state_dict, {"name": "vgg16"})
    model, state_dict = random_weights("tinydarknet", norm_momentum=0.01)
    del state_dict["head.bias"]
    with pytest.raises(ConvzooError, match=r"'head.bias' .* is missing \(1 missing in all\)"):
        darknet.write(state_dict, model)


def test_backbone_that_does_not_fit():
    model = registry.bind("model", {"name": "yolov3", "width": 0.125})()
    with pytest.raises(ConvzooError, match="no backbone to take"):
        load_backbone(model, darknet.read(DATA))


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200), st.sampled_from([None, "tinydarknet", "darknet53", "yolov3"]))
@example(struct.pack("<iiiq", 0, 2, 0, 0), "yolov3")
@example(struct.pack("<iiiq", 0, 2, 0, 0) + bytes(4 * 2000), "yolov3")
def test_random_bytes_give_one_error_or_weights(data, name):
    for content in (data, struct.pack("<iii", 0, 2, 0) + data):
        try:
            darknet.read(content, ExpectedWeights(name))
        except ConvzooError as error:
            assert "\n" not in str(error)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_a_cut_or_changed_file_is_never_partly_loaded(at, change):
    with pytest.raises(ConvzooError):
        readers.network(darknet.read(DATA[:at]))
    changed = bytearray(DATA)
    changed[at] ^= change
    try:
        converted = darknet.read(bytes(changed))
    except ConvzooError:
        return
    assert not converted.missing and converted.header["bytes_left"] == 0
