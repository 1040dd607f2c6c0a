"""MindSpore checkpoints: equal to the zoo's outputs, read and written without MindSpore, and all that can be wrong."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from convzoo.config import registry
from convzoo.convert import mindspore, readers
from convzoo.convert import state_dict as state_dict_module
from convzoo.convert.mindspore_ckpt import DTYPES, read_records, write_records
from convzoo.convert.state_dict import ExpectedWeights, file_bytes
from convzoo.data.transforms.pipeline import Pipeline, normalize
from convzoo.errors import ConvzooError, UsageError
from convzoo.types import Key, Sample
from fixtures.drawn import parameter
from helpers import SHARED, on_its_grid

TOLERANCE = 1e-4
TINY = {"name": "tinydarknet", "num_classes": 1000, **mindspore.ZOO["tinydarknet"]}
VARIANTS = {
    "densenet100": {"stem_norm": True},
    "densenet121": {"transition_pool": "max", "stem_pool": "bottom_right"},
    "tinydarknet": {"leaky_slope": 0.2, "norm_eps": 1e-3, "last": "norm_leaky", "init": "truncated_normal"},
    "vgg16_cifar10": {"conv_bias": False, "batch_norm": True, "dropout": 0.0, "init": "xavier"},
    "vgg16_imagenet": {"conv_bias": False, "batch_norm": False},
    "yolov3": {
        "backbone_act": "relu",
        "backbone_norm_momentum": 0.9,
        "down_padding": "bottom_right",
        "init": "uniform_fan_in",
    },
}
SLOW = ("vgg16_cifar10", "vgg16_imagenet")


def drawn(folder: Path) -> dict[str, torch.Tensor]:
    """Return the parameters behind a network's outputs, drawn again."""
    if folder.is_relative_to(SHARED):  # by the script beside them
        spec = importlib.util.spec_from_file_location("make_params", folder.parent / "make_params.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return {name: torch.from_numpy(value) for name, value in module.params(folder.name).items()}
    rows = [line.split("\t") for line in (folder / "names.tsv").read_text().splitlines()[1:]]
    shapes = {name: tuple(int(size) for size in shape.split("x")) for name, shape, _ in rows}
    return {name: torch.from_numpy(parameter(name, shape)) for name, shape in shapes.items()}


def stored(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(path))


def difference(outputs: torch.Tensor, path: Path) -> float:
    expected = stored(path)
    return float((outputs - expected).abs().max() / expected.abs().max().clamp(min=1))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in VARIANTS if name != "yolov3"],
)
def test_classifiers_equal_mindspore(mindspore_outputs, name):
    folder = mindspore_outputs / name
    path = folder / "model.ckpt"
    converted = readers.read(path) if path.exists() else mindspore.read(write_records(drawn(folder)))
    num_classes = stored(folder / "output.npy").shape[1]
    assert converted.model == {"name": name.split("_")[0], "num_classes": num_classes, **VARIANTS[name]}
    assert converted.header["bytes_left"] == 0 and not converted.missing and not converted.dropped
    assert converted.header["records"] == len(converted.table)
    model = readers.network(converted)
    with torch.no_grad():
        assert difference(model(stored(folder / "input.npy")), folder / "output.npy") <= TOLERANCE
        if name == "tinydarknet":
            odd = mindspore_outputs / "tinydarknet_227"
            assert difference(model(stored(odd / "input.npy")), odd / "output.npy") <= TOLERANCE


def test_yolov3_raw_maps_equal_mindspore(mindspore_outputs):
    folder = mindspore_outputs / "yolov3"
    converted = mindspore.convert(drawn(folder), "yolov3.ckpt")
    assert converted.model == {"name": "yolov3", "num_classes": 80, **VARIANTS["yolov3"]}
    assert (
        converted.class_names
        and converted.class_names[0] == "person"
        and sum(tensor.dim() == 4 for tensor in converted.state_dict.values()) == 75
    )
    model = readers.network(converted)
    for images, raw in (("input", "output_raw"), ("input_nonsquare", "nonsquare_raw")):
        with torch.no_grad():
            maps = model(stored(folder / f"{images}.npy"))
        for level, head in enumerate(reversed(maps)):  # the zoo gives the coarsest first
            assert difference(head, folder / f"{raw}_{level}.npy") <= TOLERANCE


def preprocess(image: torch.Tensor, transform: dict) -> torch.Tensor:
    """Run a recipe's evaluation transform on [3, H, W] uint8 and return it in levels, 0..255 before mean and std."""
    parts = [registry.bind("transform", {"name": key, **keys}) for op in transform["eval"] for key, keys in op.items()]
    sample = Pipeline(parts, seed=0)(Sample(image, 0, 0, "", (image.shape[1], image.shape[2])), Key(0, 0))
    return normalize(sample.image[None], transform["mean"], transform["std"])[0]


@pytest.mark.parametrize(
    "model, file",
    [
        ({"name": "vgg16", "num_classes": 1000, "batch_norm": False}, "imagenet_256x256_c224_vgg_densenet"),
        ({"name": "densenet121", "num_classes": 1000}, "imagenet_256x256_c224_vgg_densenet"),
        ({"name": "tinydarknet", "num_classes": 1000}, "imagenet_short256_c224_tinydarknet"),
        ({"name": "vgg16", "num_classes": 10, "batch_norm": True}, "cifar_vgg224"),
        ({"name": "densenet100", "num_classes": 10}, "cifar_densenet32"),
    ],
)
def test_attached_preprocessing_equals_the_zoos(mindspore_outputs, model, file):
    transform, names, _ = mindspore.evaluation(model)
    folder = mindspore_outputs / "preprocess"
    expected = images_of(folder / f"{file}.npz")
    if file.startswith("cifar"):
        images = torch.from_numpy(images_of(folder / "cifar_raw.npz")).permute(0, 3, 1, 2)
        assert names and names[0] == "airplane"
    else:
        paths = sorted(folder.glob("folder/*/*.JPEG"), key=lambda path: path.parent.name)
        images = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in paths]
    std_255 = 255 * torch.tensor(transform["std"]).view(3, 1, 1)
    for image, theirs in zip(images, torch.from_numpy(expected), strict=True):
        ours = on_its_grid(preprocess(image, transform), theirs)
        assert float(((ours - theirs) * std_255).abs().max()) <= 1.0001


def images_of(path: Path) -> np.ndarray:
    return np.load(path)["images"]


def test_files_of_mindspore_are_reproduced_byte_for_byte(mindspore_outputs):
    paths = list(mindspore_outputs.glob("*/model.ckpt"))
    assert paths
    for path in paths:
        records = read_records(file_bytes(path), path.parent.name)
        assert write_records({key: record.tensor() for key, record in records.items()}) == path.read_bytes()


@pytest.mark.parametrize("name", ["densenet100", "tinydarknet", "yolov3"])
def test_training_checkpoint(mindspore_outputs, name):
    """Prefixes, optimiser slots and bookkeeping of a training run; the values are arbitrary."""
    lines = (mindspore_outputs / "train_names" / f"{name}.tsv").read_text().splitlines()
    tensors = {}
    for line in lines:
        key, shape, dtype = line.split("\t")
        tensors[key] = torch.ones([int(size) for size in shape.split("x") if size], dtype=DTYPES[dtype])
    if name == "yolov3":
        converted = mindspore.convert({key: v for key, v in tensors.items() if not mindspore.is_bookkeeping(key)}, name)
    else:
        converted = mindspore.read(write_records(tensors))
        assert {"global_step", "momentum", "learning_rate"} <= set(converted.dropped)
        assert len(converted.dropped) + len(converted.table) == len(lines)
    assert converted.model["name"] == name and not converted.missing
    prefix = {"densenet100": "network.", "yolov3": "yolo_network.", "tinydarknet": ""}[name]
    assert f"{prefix}{converted.table[0].source}" in tensors


def zoo_state_dict(model: dict) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state_dict = registry.bind("model", model)().state_dict()
    return {name: torch.rand_like(tensor) if tensor.dim() else tensor for name, tensor in state_dict.items()}


@pytest.mark.parametrize("crc", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        TINY,
        {"name": "densenet100", "num_classes": 3, "stem_norm": True},
        {"name": "densenet121", "num_classes": 7, "transition_pool": "max", "stem_pool": "bottom_right"},
    ],
    ids=lambda model: model["name"],
)
def test_written_checkpoint_reads_back_equal(model, crc):
    state_dict = zoo_state_dict(model)
    converted = mindspore.read(
        mindspore.write(state_dict, model, crc), ExpectedWeights(model["name"], model["num_classes"])
    )
    assert converted.model == model
    assert list(converted.state_dict) == list(state_dict)
    assert all(torch.equal(converted.state_dict[name], tensor) for name, tensor in state_dict.items())


@pytest.mark.skipif(importlib.util.find_spec("mindspore") is None, reason="MindSpore is not installed")
def test_mindspore_reads_what_we_write(tmp_path):
    ms = importlib.import_module("mindspore")

    state_dict = zoo_state_dict(TINY)
    (tmp_path / "model.ckpt").write_bytes(mindspore.write(state_dict, TINY, crc=True))
    parameters = ms.load_checkpoint(str(tmp_path / "model.ckpt"), crc_check=True)
    for ours, theirs in mindspore.zoo_names(TINY).items():
        assert np.array_equal(parameters[theirs].asnumpy(), state_dict[ours].numpy())


def test_yolov3_names_map_both_ways(mindspore_outputs):
    names = mindspore.zoo_names({"name": "yolov3", **mindspore.ZOO["yolov3"]})
    assert len(set(names.values())) == len(names) == 366
    lines = (mindspore_outputs / "yolov3" / "names.tsv").read_text().splitlines()[1:]
    assert {line.split("\t")[0] for line in lines} == set(names.values())


def test_backbone_on_its_own():
    model = {"name": "yolov3", "num_classes": 80, **mindspore.ZOO["yolov3"]}
    shapes = state_dict_module.meta_network(model).state_dict()
    zoo = mindspore.zoo_names(model)
    tensors = {zoo[name]: torch.ones(shapes[name].shape) for name in zoo if name.startswith("backbone.")}
    converted = mindspore.convert(tensors, "backbone.ckpt")
    assert len(converted.table) == 260 and converted.transform is None
    assert all(not name.startswith("backbone.") for name in converted.missing)
    del tensors["feature_map.backbone.layer3.7.conv2.1.beta"]
    with pytest.raises(ConvzooError, match=r"layer3.7.conv2.1.beta' of yolov3 .* is missing \(1 missing in all\)"):
        mindspore.convert(tensors, "backbone.ckpt")


def test_fine_tuned_head_and_half_precision_and_safetensors(tmp_path):
    model = {"name": "densenet100", "num_classes": 4, "stem_norm": True}
    state_dict, names = zoo_state_dict(model), mindspore.zoo_names(model)
    tensors = {f"network.{names[ours]}": state_dict[ours].half() for ours in names}
    save_file({**tensors, "moments.network.head.fc.bias": torch.ones(4)}, tmp_path / "model.safetensors")
    converted = readers.read(tmp_path / "model.safetensors")
    assert converted.model == model and converted.dropped == ["moments.network.head.fc.bias"]
    assert converted.state_dict["classifier.weight"].dtype == torch.float32
    assert converted.table[0].dtype == "float16"
    assert mindspore._plain_name("classifier.6.dense.weight") == "classifier.6.weight"


def test_writes_only_what_the_zoo_computes():
    model = {"name": "tinydarknet", "num_classes": 10}
    with pytest.raises(UsageError, match=r"the zoo's tinydarknet has num_classes 1000, this model 10"):
        mindspore.write(zoo_state_dict(model), model)
    model = {"name": "densenet121"}
    with pytest.raises(UsageError, match=r"transition_pool max, this model avg"):
        mindspore.write({}, model)
    with pytest.raises(UsageError, match="not darknet53"):
        mindspore.write({}, {"name": "darknet53"})
    with pytest.raises(ConvzooError, match=r"'features.0.conv.weight' of tinydarknet .* is missing"):
        mindspore.write({}, TINY)


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def record(name: bytes = b"a", dims: tuple = (2,), dtype: bytes = b"Float32", content: bytes = bytes(8)) -> bytes:
    sizes = b"".join(field(1, size) for size in dims)
    return field(1, field(1, name) + field(2, sizes + field(2, dtype) + field(3, content)))


CRC = write_records({"a": torch.ones(3)}, crc=True)


@pytest.mark.parametrize(
    "data, message",
    [
        (record() + record(b"b")[:-3], "the file is cut off: 26 bytes declared, 23 there"),
        (field(1, b"")[:-1], "the file is cut off within a number"),
        (b"\x0a" + b"\xff" * 12, "a number of more than ten bytes"),
        (b"\x0a" + varint(1 << 62) + b"abc", "4611686018427387904 bytes declared, 3 there"),
        (record(dims=(1 << 39, 1 << 39)), "declares .* bytes, and holds 8"),
        (record(dims=(1 << 62,)), "declares the shape"),
        (record(dims=((1 << 64) - 2,)), "declares the shape"),
        (record(dims=(1,) * 9), "more than 8 dimensions"),
        (record(dims=(3,)), r"'a' declares \[3\] Float32, 12 bytes, and holds 8"),
        (record(dtype=b"Float8"), "'a': unknown data type 'Float8'"),
        (record(dtype=b"x" * 40), "the data type of 'a' takes 40 bytes"),
        (record(name=b"n" * 2000), "a name takes 2000 bytes"),
        (record(name=b"\xff\xfe"), "a name is not UTF-8"),
        (record(name=b""), "a record without a name"),
        (field(1, field(1, b"a")), r"a record without values \('a'\)"),
        (field(1, field(1, b"a") + field(2, field(2, b"Float32"))), "'a' has no values"),
        (field(1, field(1, b"a") + field(2, field(3, b""))), "'a' has no data type"),
        (field(1, field(1, b"a") + field(3, b"")), "'a' is a map parameter"),
        (field(1, field(7, 1)), "field 7 is not one of a parameter"),
        (field(2, b""), "field 2 is not one of a MindSpore checkpoint"),
        (field(1, 5), "field 1 is not one of a MindSpore checkpoint"),
        (b"\x0d\0\0\0\0", "wire type 5 does not occur"),
        (record() + record(b"b") + record(), "'a' stands there twice"),
        (record() + record(), r"'a' declares \[2\] Float32, 8 bytes, and holds 16"),
        (record(dims=(4,)) + record(dims=(2, 2)), "its parts differ in shape or type"),
        (record(dims=(4,), content=bytes(4)), "16 bytes, and holds 4"),
        (CRC[:20] + b"\x01" + CRC[21:], "damaged: its CRC-32"),
        (record(), "not the names of a network of the zoo, the first is 'a'"),
        (record(b"moments.x"), "no weights"),
    ],
)
def test_bad_files(data, message):
    with pytest.raises(ConvzooError, match=message) as raised:
        mindspore.read(data)
    assert raised.value.exit_code == 1 and "\n" not in str(raised.value)


def test_parts_of_one_parameter_are_joined_and_packed_dims_are_read():
    values = np.arange(6, dtype=np.float32)
    parts = [record(dims=(2, 3), content=part.tobytes()) for part in np.array_split(values, 3)]
    assert read_records(file_bytes(b"".join(parts)), "x")["a"].tensor().tolist() == [[0, 1, 2], [3, 4, 5]]
    packed = field(
        1, field(1, b"a") + field(2, field(1, b"\x02\x03") + field(2, b"Float32") + field(3, values.tobytes()))
    )
    assert read_records(file_bytes(packed), "x")["a"].dims == (2, 3)
    scalar = read_records(file_bytes(record(dims=(0,), content=bytes(4))), "x")["a"]
    assert scalar.tensor().shape == ()


def test_wrong_networks():
    shapes = state_dict_module.meta_network(TINY).state_dict()
    tensors = {theirs: torch.ones(shapes[ours].shape) for ours, theirs in mindspore.zoo_names(TINY).items()}
    for change, message in (
        ({"conv3.conv.weight": torch.ones(4)}, r"'conv3.conv.weight' is \[4\], tinydarknet .* has \[16, 32, 1, 1\]"),
        ({"conv17.conv.weight": torch.ones(4)}, r"'conv17.conv.weight' is not in tinydarknet .* \(1 extra in all\)"),
        ({"conv3.bn.gamma": torch.ones(16, dtype=torch.int32)}, "'conv3.bn.gamma' is int32, not floating point"),
        ({"conv3.bn.gamma": torch.full((16,), torch.nan)}, "'conv3.bn.gamma' holds values that are not finite"),
        ({"conv3.bn.moving_variance": torch.full((16,), -1.0)}, "'conv3.bn.moving_variance' holds a negative"),
        ({"network.conv3.bn.gamma": torch.ones(16)}, "'conv3.bn.gamma' stands there twice"),
    ):
        with pytest.raises(ConvzooError, match=message):
            mindspore.convert({**tensors, **change}, "x.ckpt")
    with pytest.raises(ConvzooError, match=r"x.ckpt: holds tinydarknet, not densenet121"):
        mindspore.convert(tensors, "x.ckpt", ExpectedWeights("densenet121"))
    with pytest.raises(ConvzooError, match="tinydarknet with 1000 classes, not 10"):
        mindspore.convert(tensors, "x.ckpt", ExpectedWeights(num_classes=10))
    with pytest.raises(UsageError, match="unknown model 'densenet12'; did you mean 'densenet121'"):
        mindspore.convert(tensors, "x.ckpt", ExpectedWeights("densenet12"))
    with pytest.raises(ConvzooError, match="a YOLOv3 head of 256 channels"):
        mindspore.convert({"feature_map.backblock0.conv6.weight": torch.ones(256, 1, 1, 1)}, "x.ckpt")


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=300))
def test_random_bytes_give_one_error(data):
    for content in (data, b"\n" + data, field(1, data), field(1, field(1, b"a") + field(2, data))):
        with pytest.raises(ConvzooError) as raised:
            mindspore.read(content)
        assert "\n" not in str(raised.value)


NAME = st.text(min_size=1, max_size=20)
SHAPE = st.lists(st.integers(1, 5), max_size=4)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(NAME, st.tuples(SHAPE, st.sampled_from(sorted(DTYPES))), min_size=1, max_size=5), st.booleans())
def test_records_round_trip(described, crc):
    tensors = {}
    for seed, (name, (shape, dtype)) in enumerate(described.items()):
        generator = torch.Generator().manual_seed(seed)
        tensors[name] = torch.randint(0, 2, shape, generator=generator).to(DTYPES[dtype])
    data = write_records(tensors, crc)
    records = read_records(file_bytes(data), "x")
    assert list(records) == list(tensors)
    for name, tensor in tensors.items():
        assert records[name].tensor().dtype == tensor.dtype and torch.equal(records[name].tensor(), tensor)


SMALL = write_records({"layers.0.weight": torch.ones(2, 3), "global_step": torch.tensor([3])})


@settings(deadline=None, max_examples=200)
@given(st.integers(0, len(SMALL) - 1), st.integers(1, 255))
def test_a_changed_byte_gives_one_error(at, change):
    changed = bytearray(SMALL)
    changed[at] ^= change
    for content in (bytes(changed), SMALL[:at]):
        with pytest.raises(ConvzooError):
            mindspore.read(content)
