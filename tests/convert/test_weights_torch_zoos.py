"""State dicts of torchvision and timm: equal logits, wrappers taken off, and everything that can be wrong."""

import collections
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from convzoo.convert import readers, torch_zoos
from convzoo.convert.state_dict import ExpectedWeights
from convzoo.convert.verify import difference_from_source
from convzoo.errors import ConvzooError, UsageError

TOLERANCE = 1e-5
IMAGENET_MEAN = [0.485, 0.456, 0.406]


def random_network(build, seed: int = 0) -> torch.nn.Module:
    """Build a network of another library with weights at which a wrong mapping shows and activations stay near 1."""
    with torch.device("meta"):
        model = build()
    model = model.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.uniform_(0.6, 1.4, generator=generator)
        elif tensor.dim() == 1:
            tensor.uniform_(-0.1, 0.1, generator=generator)
        else:
            bound = (6 / tensor[0].numel()) ** 0.5
            tensor.uniform_(-bound, bound, generator=generator)
        if ".conv2.bn.weight" in name:
            tensor.mul_(0.25)  # the ends of residual units, which would add up
        elif name in ("head.fc.weight", "classifier.weight", "classifier.6.weight"):
            tensor.mul_(0.1)  # logits near 1, as the tolerance is absolute
    return model


def timm_network(name: str):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    return lambda: timm.create_model(name)


CASES = {
    "torchvision vgg16": ({"name": "vgg16", "num_classes": 1000, "batch_norm": False}, 224),
    "torchvision vgg16_bn": ({"name": "vgg16", "num_classes": 1000, "batch_norm": True}, 224),
    "torchvision densenet121": ({"name": "densenet121", "num_classes": 1000}, 224),
    "timm vgg16_bn": ({"name": "vgg16", "num_classes": 1000, "batch_norm": True}, 224),
    "timm densenet121": ({"name": "densenet121", "num_classes": 1000}, 224),
    "timm darknet53": ({"name": "darknet53", "num_classes": 1000, "leaky_slope": 0.01}, 256),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_source_library(case):
    model, size_px = CASES[case]
    zoo, name = case.split()
    theirs = random_network(timm_network(name) if zoo == "timm" else getattr(torchvision.models, name))
    converted = torch_zoos.convert(theirs.state_dict(), case)
    assert converted.model == model and not converted.missing
    assert converted.transform and converted.transform["mean"] == IMAGENET_MEAN
    assert converted.transform["eval"][1] == {"center_crop": {"size_px": size_px}}
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, logits = theirs(images), readers.network(converted)(images)
    assert 0.1 < float(wanted.abs().max()) < 100
    assert float((logits - wanted).abs().max()) <= TOLERANCE
    relative = difference_from_source(converted, size_px=64)
    assert relative is not None and relative <= TOLERANCE
    tracked = [tensor for name, tensor in converted.state_dict.items() if name.endswith("num_batches_tracked")]
    assert all(int(tensor) == 7 for tensor in tracked)


def test_preprocessing_is_that_of_the_libraries():
    preset = torchvision.models.DenseNet121_Weights.IMAGENET1K_V1.transforms()
    transform = torch_zoos._transform("densenet121")
    assert transform["eval"][0]["resize"]["size_px"] == preset.resize_size[0]
    assert transform["eval"][0]["resize"]["interpolation"] == preset.interpolation.value
    assert transform["eval"][1]["center_crop"]["size_px"] == preset.crop_size[0]
    assert (transform["mean"], transform["std"]) == (list(preset.mean), list(preset.std))
    timm = pytest.importorskip("timm", reason="timm is not installed")
    cfg = timm.get_pretrained_cfg("darknet53.c2ns_in1k")
    resize, crop = torch_zoos._transform("darknet53")["eval"]
    assert crop["center_crop"]["size_px"] == cfg.input_size[1]
    assert resize["resize"]["size_px"] == int(cfg.input_size[1] / cfg.crop_pct)
    assert resize["resize"]["interpolation"] == cfg.interpolation


@pytest.fixture(scope="module")
def densenet() -> dict[str, torch.Tensor]:
    return random_network(lambda: torchvision.models.densenet121(num_classes=5)).state_dict()


MODEL = {"name": "densenet121", "num_classes": 5}


def old_name(name: str) -> str:
    parts = name.split(".")
    if len(parts) == 5 and parts[2].startswith("denselayer"):
        parts[3] = f"{parts[3][:-1]}.{parts[3][-1]}"
    return ".".join(parts)


WRAPPERS = {
    "plain": lambda tensors: tensors,
    "old names": lambda tensors: {old_name(name): t for name, t in tensors.items() if "num_batches" not in name},
    "module.": lambda tensors: {f"module.{name}": t for name, t in tensors.items()},
    "compiled in a wrapper": lambda tensors: {f"model._orig_mod.{name}": t for name, t in tensors.items()},
    "state_dict": lambda tensors: {"epoch": 3, "state_dict": tensors, "optimizer": {"lr": 0.1}},
    "model": lambda tensors: {"model": collections.OrderedDict(tensors), "best": 0.5},
    "state_dict_ema": lambda tensors: {
        "state_dict": {name: t + 1 for name, t in tensors.items()},
        "state_dict_ema": {f"module.{name}": t for name, t in tensors.items()},
    },
    "averaged model": lambda tensors: {"n_averaged": torch.tensor(4), **{f"module.{n}": t for n, t in tensors.items()}},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("legacy", [False, True])
def test_wrappers(densenet, wrapper, legacy, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(WRAPPERS[wrapper](densenet), path, _use_new_zipfile_serialization=not legacy)
    converted = readers.read(path)
    assert converted.model == MODEL and converted.transform is None and converted.class_names is None
    assert all(torch.equal(converted.state_dict[n], t) for n, t in densenet.items() if "num_batches" not in n)
    assert converted.header["bytes_used"] == path.stat().st_size
    assert ("the moving average" in " ".join(converted.notes)) == (wrapper == "state_dict_ema")
    if wrapper == "old names":
        difference = difference_from_source(converted, size_px=64)
        assert difference is not None and difference <= TOLERANCE
        assert converted.table[5].source == "features.denseblock1.denselayer1.norm.1.weight"


def test_safetensors_and_half_precision(densenet, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({name: t.half() if t.is_floating_point() else t for name, t in densenet.items()}, path)
    converted = readers.read(path)
    assert converted.state_dict["classifier.weight"].dtype == torch.float32
    assert torch.equal(converted.state_dict["classifier.weight"], densenet["classifier.weight"].half().float())
    assert converted.table[0].dtype == "float16"


def test_wrong_network_and_wrong_classes(densenet):
    def convert(change: dict, **options):
        return torch_zoos.convert({**densenet, **change}, "x.pth", ExpectedWeights(**options))

    with pytest.raises(ConvzooError, match=r"x.pth: holds densenet121, not vgg16"):
        convert({}, model_name="vgg16")
    with pytest.raises(ConvzooError, match="densenet121 with 5 classes, not 10"):
        convert({}, num_classes=10)
    with pytest.raises(UsageError, match="unknown model 'resnet50'"):
        convert({}, model_name="resnet50")
    with pytest.raises(ConvzooError, match=r"'features.norm5.weight' is \[3\], densenet121 \(5 classes\) has \[1024\]"):
        convert({"features.norm5.weight": torch.ones(3)})
    with pytest.raises(ConvzooError, match=r"'features.denseblock3.denselayer25.norm1.weight' is not in densenet121"):
        convert({"features.denseblock3.denselayer25.norm1.weight": torch.ones(3)})
    with pytest.raises(ConvzooError, match=r"'classifier.bias' holds values that are not finite"):
        convert({"classifier.bias": torch.full((5,), torch.inf)})
    missing = {name: tensor for name, tensor in densenet.items() if not name.startswith("features.norm5.")}
    with pytest.raises(ConvzooError, match=r"'features.norm5.weight' .* is missing \(4 missing in all\)"):
        torch_zoos.convert(missing, "x.pth")
    with pytest.raises(ConvzooError, match=r"not the names of vgg16, .* the first is 'fc.weight'"):
        torch_zoos.convert({"fc.weight": torch.ones(1)}, "x.pth")


def test_class_names_from_a_file(densenet, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\ne\n")
    assert torch_zoos.convert(densenet, "x.pth", ExpectedWeights(classes=names)).class_names == list("abcde")
    names.write_text("crane\nb\ncrane\ncrane (2)\ncrane\n")  # a bird and a machine
    numbered = torch_zoos.convert(densenet, "x.pth", ExpectedWeights(classes=names)).class_names
    assert numbered == ["crane", "b", "crane (2)", "crane (2) (2)", "crane (3)"]
    names.write_text("a\nb\n")
    with pytest.raises(UsageError, match="2 class names"):
        torch_zoos.convert(densenet, "x.pth", ExpectedWeights(classes=names))
    with pytest.raises(UsageError, match="cannot be read as a list"):
        torch_zoos.convert(densenet, "x.pth", ExpectedWeights(classes=tmp_path / "none.txt"))


class Payload:
    """Would write a file, were it unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_payload_is_refused_and_never_run(legacy, tmp_path):
    path, trace = tmp_path / "weights.pt", tmp_path / "ran"
    torch.save({"state_dict": {}, "payload": Payload(trace)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ConvzooError, match=r"holds the pickled object _?io.open, which could run any code") as raised:
        readers.read(path)
    assert raised.value.exit_code == 1 and not trace.exists() and "weights_only" not in str(raised.value)
    path.write_bytes(pickle.dumps(Payload(trace), protocol=2))
    with pytest.raises(ConvzooError):
        readers.read(path)
    assert not trace.exists()


def test_pickled_modules_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(torch.nn.Linear(1, 1), path)
    with pytest.raises(ConvzooError, match=r"the pickled object torch.nn.modules.linear.Linear"):
        readers.read(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("torch") / "small.pth"
    torch.save({"features.0.weight": torch.arange(4000.0)}, path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".pth", ".weights"])
def test_damaged_files(saved, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    at = saved.index(torch.arange(4000.0).numpy().tobytes())
    for data, message in (
        (saved[: len(saved) // 2], "not a whole PyTorch file"),
        (saved[: at + 9] + b"\x01" + saved[at + 10 :], "damaged: the CRC-32 of small/data/0"),
        (b"PK\x03\x04" + b"x" * 100, "not a whole PyTorch file"),
        (b"\x80\x02}q\x00.", "not a whole PyTorch file"),
        ((16).to_bytes(8, "little") + b"{" + b"x" * 100, "not a whole safetensors file"),
        ((1 << 62).to_bytes(8, "little") + b"{" + b"x" * 100, "not a whole safetensors file"),
    ):
        path.write_bytes(data)
        with pytest.raises(ConvzooError, match=message) as raised:
            readers.read(path)
        assert raised.value.exit_code == 1 and "\n" not in str(raised.value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(ConvzooError, match="not a whole PyTorch file"):
        readers.read(path)


@pytest.mark.parametrize(
    "value, message",
    [
        ([1, 2], "holds a list, not a state dict"),
        ({}, "holds an empty dictionary"),
        ({"state_dict": {}}, "holds an empty dictionary"),
        ({"epoch": 3, "lr": 0.1}, "no state dict in it: 'epoch' is a int, not a tensor"),
        ({3: torch.ones(1)}, "no state dict in it: 3 is a Tensor"),
        (torch.ones(3), "holds a Tensor, not a state dict"),
    ],
)
def test_files_without_a_state_dict(value, message, tmp_path):
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(ConvzooError, match=message):
        readers.read(tmp_path / "x.pt")


def test_own_model_files_need_no_conversion(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", metadata={"convzoo": "{}"})
    with pytest.raises(ConvzooError, match="needs no conversion"):
        readers.read(tmp_path / "x.safetensors")
