"""`convzoo convert` and what follows it: converted models evaluate and train like others, wrong files are one line."""

import json
import pickle
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from convzoo.build import check_recipe
from convzoo.config import recipe as recipes
from convzoo.config import registry
from convzoo.convert import darknet, mindspore
from convzoo.convert.mindspore_ckpt import write_records
from convzoo.data.datasets.cifar10 import CLASS_NAMES
from convzoo.data.imagenet import darknet_wnids
from convzoo.files import file_sha256
from convzoo.model_file import ModelInfo, load_model, save_model, tensors_sha256
from helpers import one_line


def random_state_dict(model: dict) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state_dict = registry.bind("model", model)().state_dict()
    return {name: torch.rand_like(tensor) if tensor.dim() else tensor for name, tensor in state_dict.items()}


TINY = {"name": "tinydarknet", "num_classes": 10}
ZOO_TINY = {"name": "tinydarknet", "num_classes": 1000, **mindspore.ZOO["tinydarknet"]}
DARKNET = darknet.write(random_state_dict({**TINY, "num_classes": 1000}), {**TINY, "num_classes": 1000})
ZOO_TENSORS = {
    theirs: random_state_dict(ZOO_TINY)[ours] for ours, theirs in mindspore.zoo_names(ZOO_TINY).items()
}  # as a training run names them


@pytest.fixture
def tree(tmp_path):
    """Twenty pictures of CIFAR-10's classes, ten to train on."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in CLASS_NAMES:
            (tmp_path / "tree" / split / name).mkdir(parents=True)
            picture = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "tree" / split / name / "1.png")
    return tmp_path / "tree"


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A model file of ours, of random weights."""
    path = tmp_path_factory.mktemp("ours") / "digits.safetensors"
    recipe = recipes.load("tinydarknet-digits")
    save_model(
        path, random_state_dict(TINY), ModelInfo(recipe=recipe.plain(), class_names=[str(digit) for digit in range(10)])
    )
    return path


@pytest.fixture(scope="session")
def tiny(tiny_weights, tmp_path_factory):
    """Darknet's tiny.weights, of random numbers, converted with class names."""
    from convzoo import cli

    out = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    names = out.with_name("names.txt")
    names.write_text("\n".join(darknet_wnids()))
    assert cli.main(["convert", str(tiny_weights), "--classes", str(names), "--check", "--out", str(out)]) == 0
    return out


def test_the_real_tiny_darknet_is_as_good_as_in_darknet(run, shared, tmp_path):
    tiny = tmp_path / "tiny.safetensors"
    assert run("convert", shared / "data/weights/tiny.weights", "--check", "--out", tiny)[0] == 0
    assert (load_model(tiny)[1].licence or "").startswith("public domain")
    code, out, _ = run("eval", tiny, "--data", shared / "data/imagenet-sample", "--json")
    found = json.loads(out)
    assert code == 0 and found["images"] == found["images_expected"] == 200
    assert found["top1"] * 200 >= 136 and found["top5"] * 200 >= 178


def test_a_converted_file_says_where_it_comes_from(tiny_weights, tiny):
    _, info, _ = load_model(tiny)
    recipe = recipes.from_plain(info.recipe, "tiny")
    check_recipe(recipe)
    assert recipe.seed == 0 and recipe.data == {"name": "image_folder"}
    assert info.preprocessing["eval"][1] == {"center_crop": {"size_px": 224}} and info.preprocessing["mean"] == [
        0,
        0,
        0,
    ]
    assert info.class_names[0] == "n02119789" and info.licence is None  # known only of the published file
    provenance = info.provenance
    assert provenance["converted_from"] == "tiny.weights" and provenance["sha256"] == file_sha256(tiny_weights)
    assert provenance["format"].startswith("Darknet weights, version 0.1.0, 204800000 images seen: tinydarknet")
    assert provenance["converter"].startswith("convzoo ") and "byte for byte" in provenance["checked"][-1]
    assert "/" not in json.dumps([provenance["converted_from"], provenance["checked"]])


def test_what_was_consumed_is_printed(run, tiny_weights, tmp_path):
    out = tmp_path / "tiny.safetensors"
    code, text, _ = run("convert", tiny_weights, "--out", out)
    assert code == 0
    for line in (
        "bytes          4,185,968 used, 0 left",
        "header         major 0, minor 1, revision 0, seen 204800000, num_bytes 16",
        "class names    1000: n02119789, n02100735, n02110185, ... n03255030",
        "network        tinydarknet (1000 classes), to classify",
        "tensors        77, 1,046,488 values, 1,042,104 of them parameters",
        "preprocessing  short side 256 (bilinear), centre crop 224x224, RGB values 0..1",
    ):
        assert line in text.splitlines()
    assert len(text.splitlines()) < 15
    listed = run("convert", tiny_weights, "--verbose", "--out", out)[1].splitlines()
    assert len(listed) == len(text.splitlines()) + 77 and "features.18.norm.running_var" in "".join(listed)
    code, text, _ = run("convert", tiny_weights, "--out", out, "--json")
    found = json.loads(text)
    assert len(found["tensors"]) == 77 and found["tensors"][0]["shape"] == [16, 3, 3, 3]
    assert found["header"]["bytes_used"] == 4_185_968 and found["source_sha256"] == file_sha256(tiny_weights)
    assert any("Darknet's order" in note for note in found["notes"])


def test_classes_without_names_are_numbers_and_evaluation_says_what_to_do(run, tree, tmp_path):
    model, out = {**TINY, "num_classes": 7}, tmp_path / "tiny.safetensors"
    (tmp_path / "tiny.weights").write_bytes(darknet.write(random_state_dict(model), model))
    code, text, _ = run("convert", tmp_path / "tiny.weights", "--num-classes", 7, "--out", out)
    assert code == 0 and "--classes FILE" in text
    assert load_model(out)[1].class_names == [str(number) for number in range(7)]
    code, text, err = run("eval", out, "--data", tree)
    assert (
        code == 3 and text == "" and "convert them again (convzoo convert --classes FILE names them)" in one_line(err)
    )


def test_a_mindspore_checkpoint_evaluates_and_trains_on(run, own_mindspore, tree, tmp_path):
    source, out = own_mindspore / "densenet100/model.ckpt", tmp_path / "zoo.safetensors"
    code, text, _ = run("convert", source, "--check", "--out", out, "--json")
    found = json.loads(text)
    assert code == 0 and found["model"] == {"name": "densenet100", "num_classes": 10, "stem_norm": True}
    assert found["check"][0]["what"] == "the outputs beside the file" and found["check"][0]["difference"] <= 1e-4
    assert found["check"][1]["what"].startswith("written again") and found["class_names"] == CLASS_NAMES
    assert load_model(out)[1].recipe["data"]["name"] == "cifar10"
    code, text, _ = run("eval", out, "--data", tree, "--json")
    assert code == 0 and json.loads(text)["images"] == 10
    overrides = ["model.stem_norm=true", "train.epochs=1", "train.batch_size=10", "--data", tree]
    for name, weights in (("ours", out), ("theirs", source)):
        code, _, err = run("train", "densenet100-cifar10", *overrides, "--weights", weights, "--out", tmp_path / name)
        assert code == 0 and "new head" not in err and "warning" not in err.lower()
    trained = [load_model(tmp_path / name / "checkpoints/last.safetensors")[0] for name in ("ours", "theirs")]
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())
    before = load_model(out)[0]
    assert not torch.equal(trained[0]["classifier.bias"], before["classifier.bias"])


def test_check_refuses_outputs_that_differ(run, own_mindspore, tmp_path):
    folder = tmp_path / "zoo"
    shutil.copytree(own_mindspore / "densenet100", folder)
    output = np.load(folder / "output.npy")
    np.save(folder / "output.npy", output + np.abs(output).max() * 3e-4)
    code, _, err = run("convert", folder / "model.ckpt", "--check", "--out", tmp_path / "x.safetensors")
    assert code == 4 and "from the outputs beside the file, more than 0.0001" in one_line(err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["zoo"]


def test_check_runs_the_source_library(run, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.densenet121(num_classes=5)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    code, text, _ = run("convert", tmp_path / "net.pth", "--check", "--out", tmp_path / "net.safetensors", "--json")
    found = json.loads(text)
    assert code == 0 and found["check"][0]["what"] == "torchvision's own network on random input"
    assert found["check"][0]["difference"] <= 1e-4
    assert "preprocessing assumed" in " ".join(found["notes"])


def test_to_darknet_and_back(run, tiny_weights, tiny, ours, tmp_path):
    code, _, _ = run("convert", tiny, "--to", "darknet", "--out", tmp_path / "tiny.weights")
    assert code == 0 and (tmp_path / "tiny.weights").read_bytes() == tiny_weights.read_bytes()
    foreign = tmp_path / "digits.weights"
    code, text, _ = run("convert", ours, "--to", "darknet", "--out", foreign)
    assert code == 0 and "Darknet feeds values 0..1 without a mean" in text
    assert run("convert", foreign, "--num-classes", 10, "--out", tmp_path / "again.safetensors")[0] == 0
    trained, _, _ = load_model(ours)
    again, _, _ = load_model(tmp_path / "again.safetensors")
    assert all(torch.equal(again[name], t) for name, t in trained.items() if "num_batches" not in name)


@pytest.mark.parametrize(("mean", "std", "warns"), [(0.0, 1.0, False), (0.0, 0.5, True), (0.1, 1.0, True)])
def test_darknet_normalises_nothing(run, tmp_path, mean, std, warns):
    keys = [f"transform.{key}={[value] * 3}" for key, value in (("mean", mean), ("std", std))]
    info = ModelInfo(recipe=recipes.load("tinydarknet-digits", keys).plain(), class_names=list("0123456789"))
    save_model(tmp_path / "digits.safetensors", random_state_dict(TINY), info)
    code, text, _ = run("convert", tmp_path / "digits.safetensors", "--to", "darknet", "--out", tmp_path / "w.weights")
    assert code == 0 and ("transform.mean=[0,0,0] transform.std=[1,1,1]" in text) == warns


def test_to_mindspore_and_back(run, ours, tmp_path):
    (tmp_path / "zoo.ckpt").write_bytes(write_records({**ZOO_TENSORS, "global_step": torch.tensor([3])}))
    model = tmp_path / "zoo.safetensors"
    code, text, _ = run("convert", tmp_path / "zoo.ckpt", "--out", model, "--json")
    assert code == 0 and json.loads(text)["dropped"] == ["global_step"]
    assert run("convert", model, "--to", "mindspore", "--out", tmp_path / "again.ckpt")[0] == 0
    again = mindspore.read(tmp_path / "again.ckpt")
    assert all(torch.equal(again.state_dict[row.name], ZOO_TENSORS[row.source]) for row in again.table)
    assert len(again.table) == len(ZOO_TENSORS)
    code, _, err = run("convert", ours, "--to", "mindspore", "--out", tmp_path / "none.ckpt")
    assert code == 2 and "would compute something else there" in one_line(err)
    assert not (tmp_path / "none.ckpt").exists()


def test_tiny_darknet_of_the_zoo_trained_on_cifar10(run, tree, tmp_path):
    (tmp_path / "zoo.ckpt").write_bytes(write_records(ZOO_TENSORS))
    out = tmp_path / "zoo.safetensors"
    assert run("convert", tmp_path / "zoo.ckpt", "--data-name", "cifar10", "--out", out)[0] == 0
    _, info, _ = load_model(out)
    assert info.class_names[:11] == [*CLASS_NAMES, "unused 0"] and len(info.class_names) == 1000
    assert info.preprocessing["eval"] == [{"resize": {"size_px": 227, "mode": "stretch", "antialias": False}}]
    code, text, _ = run("eval", out, "--data", tree, "--json")
    assert code == 0 and json.loads(text)["images"] == 10


def test_weights_of_other_classes_give_all_but_the_last_layer(run, tmp_path):
    """The zoo's last block has batch norm, which goes with the classes too; what it computes differently is said."""
    (tmp_path / "zoo.ckpt").write_bytes(write_records(ZOO_TENSORS))
    quick = ["transform.train=[]", "transform.eval=[]", "data.max_train_images=64", "train.epochs=1"]
    variant = ["model.last=norm_leaky", "model.norm_eps=0.001", "train.freeze=['features.*']"]
    code, _, err = run(
        "train", "tinydarknet-digits", *quick, *variant, "--weights", tmp_path / "zoo.ckpt", "--out", tmp_path / "run"
    )
    assert code == 0 and "new head head.conv.weight, head.norm.weight" in err
    assert "trained with model.leaky_slope=0.2, this recipe has 0.1" in err and "norm_eps" not in err
    assert "trained with model.leaky_slope=0.2, this recipe has 0.1" in (tmp_path / "run/train.log").read_text()
    state_dict, _, _ = load_model(tmp_path / "run/checkpoints/last.safetensors")
    names = mindspore.zoo_names(ZOO_TINY)
    kept = [name for name in state_dict if name.startswith("features.") and name in names]
    assert len(kept) == 75 and all(torch.equal(state_dict[name], ZOO_TENSORS[names[name]]) for name in kept)
    code, _, err = run("train", "vgg16-digits", *quick, "--weights", tmp_path / "zoo.ckpt", "--out", tmp_path / "no")
    assert code == 1 and "it holds a tinydarknet, the recipe's is a vgg16" in one_line(err)


class Payload:
    """Would write a file, were it unpickled."""

    def __reduce__(self):
        return (open, ("payload-ran", "w"))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def saved(value: object, path) -> bytes:
    torch.save(value, path)
    return path.read_bytes()


def record(dtype: bytes = b"Float32", length: int | None = None) -> bytes:
    """One MindSpore record of four floats, with a data type and a declared length as wanted."""
    tensor = b"\x08\x04\x12" + bytes([len(dtype)]) + dtype + b"\x1a\x10" + bytes(16)
    value = b"\x0a\x01w\x12" + bytes([len(tensor)]) + tensor
    declared = len(value) if length is None else length
    lead = b""
    while declared > 127:
        lead += bytes([declared & 127 | 128])
        declared >>= 7
    return b"\x0a" + lead + bytes([declared]) + value


def bad_files(folder) -> dict[str, tuple[bytes, str]]:
    whole = saved({"features.0.weight": torch.arange(4000.0)}, folder / "whole.pth")
    at = whole.index(torch.arange(4000.0).numpy().tobytes())
    missing = {name: tensor for name, tensor in ZOO_TENSORS.items() if name != "conv3.bn.gamma"}
    return {
        "empty": (b"", "an empty file"),
        "truncated": (DARKNET[:-7], "truncated"),
        "over-long": (DARKNET + bytes(8), "over-long"),
        "html": (b"<!DOCTYPE html><html><body>404", "an HTML page"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4", "a git-lfs pointer"),
        "text": (b"hello, this is no weight file\n", "not a Darknet, MindSpore, PyTorch or safetensors"),
        "not finite": (DARKNET[:60] + struct.pack("<f", np.nan) + DARKNET[64:], "not finite"),
        "flipped byte": (flipped(whole, at + 9), "damaged: the CRC-32"),
        "pickle": (saved({"state_dict": Payload()}, folder / "p.pt"), "holds the pickled object"),
        "bare pickle": (pickle.dumps(Payload(), protocol=2), "holds the pickled object"),
        "huge length": (record(length=1 << 60), "cut off"),
        "unknown type": (record(b"Float9"), "unknown data type 'Float9'"),
        "missing": (write_records(missing), "'conv3.bn.gamma' of tinydarknet"),
        "extra": (
            write_records({**ZOO_TENSORS, "conv17.conv.weight": torch.ones(1)}),
            "'conv17.conv.weight' is not in",
        ),
        "crc": (flipped(mindspore.write(random_state_dict(ZOO_TINY), ZOO_TINY, crc=True), 5000), "CRC-32"),
    }


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    return bad_files(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize(
    "case",
    [
        "empty",
        "truncated",
        "over-long",
        "html",
        "lfs",
        "text",
        "not finite",
        "flipped byte",
        "pickle",
        "bare pickle",
        "huge length",
        "unknown type",
        "missing",
        "extra",
        "crc",
    ],
)
def test_a_bad_file_is_one_line_and_nothing_is_written(run, bad, case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, message = bad[case]
    (tmp_path / "weights").write_bytes(data)
    code, out, err = run("convert", "weights", "--out", "model.safetensors")
    assert code == 1 and out == "" and message in one_line(err)
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    quick = ["transform.train=[]", "transform.eval=[]", "data.max_train_images=64"]
    code, _, err = run("train", "tinydarknet-digits", *quick, "--weights", "weights", "--out", "run")
    assert code == 1 and message in one_line(err)
    assert not (tmp_path / "payload-ran").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--model", "yolov3"], 1, "holds tinydarknet, not yolov3"),
        (["--model", "vgg16"], 2, "not vgg16"),
        (["--num-classes", "10"], 1, "with 1000 classes: then say how many (--num-classes 1000)"),
        (["--num-classes", "0"], 2, "at least one class"),
        (["--classes", "two.txt"], 2, "2 class names, the network has 1000 outputs"),
        (["--classes", "none.txt"], 2, "none.txt"),
        (["--data-name", "cifar"], 2, "did you mean 'cifar10'"),
        (["--to", "onnx"], 2, "onnx"),
        (["--to", "darknet", "--check"], 2, "--check has no meaning with --to"),
        (["--to", "darknet", "--classes", "two.txt"], 2, "--classes has no meaning with --to"),
        (["--out", "none/model.safetensors"], 2, "no such folder"),
        (["--out", "."], 2, "a folder"),
        (["--out", "tiny.weights"], 2, "the source itself"),
    ],
)
def test_a_wrong_option_is_one_line(run, options, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.weights").write_bytes(DARKNET)
    (tmp_path / "two.txt").write_text("a\nb\n")
    out = [] if "--out" in options else ["--out", "model.safetensors"]
    got, text, err = run("convert", "tiny.weights", *options, *out)
    assert got == code and text == "" and message in one_line(err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.weights", "two.txt"]
    assert (tmp_path / "tiny.weights").read_bytes() == DARKNET


def test_sources_that_are_none(run, ours, tmp_path):
    out = tmp_path / "x.safetensors"
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(flipped(ours.read_bytes(), ours.stat().st_size - 100))
    for argv, code, message in (
        ([tmp_path / "none.weights"], 2, "no such weight file"),
        ([tmp_path / "empty"], 2, "no weights of another program"),
        ([ours], 2, "a model file of convzoo already"),
        ([damaged, "--to", "darknet"], 1, "damaged: its SHA-256"),
        ([ours, "--to", "darknet", "--model", "darknet53"], 1, "holds tinydarknet, not darknet53"),
    ):
        got, _, err = run("convert", *argv, "--out", out)
        assert got == code and message in one_line(err) and not out.exists()


@pytest.mark.slow
def test_a_backbone_starts_training_and_is_no_model(run, shared, tmp_path):
    import subprocess
    import sys

    part = tmp_path / "darknet53.conv.74"
    script = shared / "fixtures/darknet/make_weights.py"
    subprocess.run([sys.executable, script, "darknet53.conv.74", part], check=True, capture_output=True)
    code, _, err = run("convert", part, "--out", tmp_path / "x.safetensors")
    assert code == 1 and "a backbone on its own" in one_line(err) and not (tmp_path / "x.safetensors").exists()
    quick = ["data={name: digits}", "model.num_classes=10", "transform={train: [], eval: []}", "train.batch_size=8"]
    quick += ["data.max_train_images=8", "train.epochs=1", "train.freeze=['backbone.*']"]
    code, _, err = run("train", "darknet53-imagenet", *quick, "--weights", part, "--out", tmp_path / "run")
    assert code == 0 and "backbone of 52 convolutions" in err
    state_dict, _, _ = load_model(tmp_path / "run/checkpoints/last.safetensors")
    given = darknet.read(part).state_dict
    kept = {name: tensor for name, tensor in state_dict.items() if name in given}
    assert len(kept) == len(given) and tensors_sha256(kept) == tensors_sha256(given)


@pytest.mark.slow
def test_yolov3_converts_in_bounded_time_and_memory(shared, tmp_path):
    import subprocess
    import sys

    source, out = tmp_path / "yolov3.weights", tmp_path / "yolov3.safetensors"
    script = shared / "fixtures/darknet/make_weights.py"
    subprocess.run([sys.executable, script, "yolov3", source], check=True, capture_output=True)
    measure = (
        "import resource, sys, time, torch, torchvision\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before, started = peak(), time.perf_counter()\n"
        "from convzoo import cli\n"
        "assert cli.main(['convert', sys.argv[1], '--out', sys.argv[2]]) == 0\n"
        "print(peak() - before, time.perf_counter() - started)\n"
    )
    done = subprocess.run([sys.executable, "-c", measure, source, out], capture_output=True, text=True, check=True)
    megabytes, seconds = map(float, done.stdout.splitlines()[-1].split())
    assert megabytes <= 750 and seconds < 6
    _, info, _ = load_model(out)
    assert info.recipe["task"] == "detect" and info.class_names[0] == "person" and len(info.class_names) == 80
