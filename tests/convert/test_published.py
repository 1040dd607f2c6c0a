"""Weights by name: the table, torchvision's, timm's and Darknet's files through their caches, torch.hub and load."""

import functools
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

import convzoo
from convzoo.config import recipe as recipes
from convzoo.config import registry
from convzoo.convert import published
from convzoo.data.imagenet import darknet_wnids
from convzoo.errors import ConvzooError, UsageError
from convzoo.model_file import ModelInfo, load_model, save_model, tensors_sha256
from helpers import REPO, one_line

DENSENET = "torchvision:DenseNet121_Weights.IMAGENET1K_V1"
NETWORKS = ["darknet53", "densenet100", "densenet121", "tinydarknet", "vgg16", "yolov3"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """Nothing here may reach the network: every request would go to a port where nobody listens."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(scope="module")
def densenet() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return torchvision.models.densenet121().state_dict()


def in_torch_cache(tmp_path: Path, name: str) -> Path:
    path = tmp_path / "torch/hub/checkpoints" / name
    path.parent.mkdir(parents=True)
    return path


def from_hub(name: str, **options) -> convzoo.Model:
    """Load through torch.hub, from this repository."""
    model = torch.hub.load(str(REPO), name, source="local", device="cpu", **options)
    assert isinstance(model, convzoo.Model)
    return model


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ours") / "digits.safetensors"
    recipe = recipes.load("tinydarknet-digits")
    torch.manual_seed(0)
    state_dict = registry.bind("model", recipe.model)().state_dict()
    save_model(path, state_dict, ModelInfo(recipe=recipe.plain(), class_names=[str(digit) for digit in range(10)]))
    return path


def test_the_table_agrees_with_torchvision():
    for name in published.names("torchvision"):
        entry = published.find(name)
        weights = torchvision.models.get_weight(name.removeprefix("torchvision:"))
        metrics = weights.meta["_metrics"]["ImageNet-1K"]
        assert entry and entry.sha256 and entry.reported
        assert entry.source == weights.url and f"-{entry.sha256}.pth" in weights.url
        assert entry.reported.values == pytest.approx({"top1": metrics["acc@1"] / 100, "top5": metrics["acc@5"] / 100})


def test_the_table_agrees_with_timm():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    for name in published.names("timm"):
        entry = published.find(name)
        cfg = timm.get_pretrained_cfg(name.removeprefix("timm:"))
        assert entry and entry.source == f"https://huggingface.co/{cfg.hf_hub_id}"
        assert entry.licence.lower() == cfg.license
        size_px, short_px = cfg.input_size[-1], int(cfg.input_size[-1] / cfg.crop_pct)
        for part in (f"short side {short_px}", cfg.interpolation, f"centre crop {size_px}", "ImageNet mean and std"):
            assert part in entry.preprocessing


def test_every_network_with_published_weights_is_in_the_table(run):
    assert {entry.model for entry in published.TABLE} == {*NETWORKS, "yolov3_tiny"} - {"densenet100"}
    assert len(set(published.names())) == len(published.TABLE)
    code, text, _ = run("list", "--weights")
    assert code == 0 and all(name in text.splitlines() for name in published.names())
    code, text, _ = run("list", "--weights", "--json")
    listed = json.loads(text)
    assert [entry["name"] for entry in listed] == published.names()
    tiny = listed[0]
    assert tiny["measured"]["values"]["top1"] * 200 == pytest.approx(137) and tiny["licence"].startswith(
        "public domain"
    )


def test_the_hash_of_tiny_weights(shared):
    digest = hashlib.sha256((shared / "data/weights/tiny.weights").read_bytes()).hexdigest()
    entry = published.of_file(digest)
    assert entry and entry.name == "darknet:tiny.weights" and published.of_file("0" * 64) is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (DENSENET, "comes from the network, which is used only when asked for: add --download"),
        ("timm:densenet121.ra_in1k", "add --download"),
        ("darknet:tiny.weights", "add --download"),
    ],
)
def test_the_network_is_used_only_when_asked_for(run, source, message, tmp_path):
    code, _, err = run("convert", source, "--out", tmp_path / "x.safetensors")
    assert code == 2 and message in one_line(err)
    code, _, err = run("train", "tinydarknet-digits", "--weights", source, "--out", tmp_path / "run")
    assert code == 2 and message in one_line(err)
    with pytest.raises(UsageError, match="used only when asked for$"):
        convzoo.load(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "torchvision:DenseNet121_Weights.IMAGENET1K_V2",
            "did you mean 'torchvision:DenseNet121_Weights.IMAGENET1K_V1'",
        ),
        ("torchvision:ResNet50_Weights.IMAGENET1K_V1", "no weights of that name for a network that is here"),
        ("timm:densenet121.ra_in1", "did you mean 'densenet121.ra_in1k'"),
        ("darknet:tiny", "no weights of that name"),
    ],
)
def test_names_that_are_none(run, source, message, tmp_path):
    if source.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed")
    code, _, err = run("convert", source, "--download", "--out", tmp_path / "x.safetensors")
    assert code == 2 and message in one_line(err)


@pytest.mark.parametrize("source", [DENSENET, "darknet:tiny.weights"])
def test_a_network_that_does_not_answer_is_one_line(run, source, tmp_path):
    code, _, err = run("convert", source, "--download", "--out", tmp_path / "x.safetensors")
    assert code == 1 and f"{source}: cannot be fetched: " in one_line(err)
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.slow
def test_hugging_face_that_does_not_answer_is_one_line(run, monkeypatch, tmp_path):
    pytest.importorskip("timm", reason="timm is not installed")
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    code, _, err = run("convert", "timm:densenet121.ra_in1k", "--download", "--out", tmp_path / "x.safetensors")
    assert code == 1 and "timm:densenet121.ra_in1k: cannot be fetched: " in one_line(err) and "Retry" not in err


def test_torchvisions_weights_carry_their_preprocessing(run, densenet, tmp_path):
    torch.save(densenet, in_torch_cache(tmp_path, "densenet121-a639ec97.pth"))
    out = tmp_path / "densenet.safetensors"
    code, text, _ = run("convert", DENSENET, "--download", "--check", "--out", out, "--json")
    assert code == 0 and json.loads(text)["check"][0]["difference"] <= 1e-4
    state_dict, info, _ = load_model(out)
    assert all(torch.equal(state_dict[name], tensor) for name, tensor in densenet.items())
    resize = {"size_px": 256, "mode": "short_side", "interpolation": "bilinear", "antialias": True}
    assert info.preprocessing["eval"] == [{"resize": resize}, {"center_crop": {"size_px": 224}}]
    assert info.preprocessing["mean"] == [0.485, 0.456, 0.406] and len(set(info.class_names)) == 1000
    assert info.provenance["converted_from"] == DENSENET and "BSD-3-Clause" in (info.licence or "")
    assert info.provenance["sha256"] == tensors_sha256(state_dict)


def test_training_starts_from_torchvisions_weights(run, densenet, tmp_path):
    torch.save(densenet, in_torch_cache(tmp_path, "densenet121-a639ec97.pth"))
    for split in ("train", "val"):
        for name, colour in (("cat", "red"), ("dog", "blue")):
            folder = tmp_path / "tree" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (64, 64), colour).save(folder / "1.png")
    quick = ["model.num_classes=2", "transform.train=[]", "transform.eval=[]", "train.batch_size=2", "train.epochs=1"]
    quick += ["train.freeze=['features.*']", "--data", tmp_path / "tree"]
    code, _, err = run(
        "train", "densenet121-imagenet", *quick, "--weights", DENSENET, "--download", "--out", tmp_path / "run"
    )
    assert code == 0 and "new head classifier.weight, classifier.bias for 2 classes" in err
    recorded = recipes.load(tmp_path / "run/recipe.yaml").train.weights_sha256
    assert recorded == tensors_sha256(densenet)
    state_dict, _, _ = load_model(tmp_path / "run/checkpoints/last.safetensors")
    assert all(torch.equal(state_dict[name], t) for name, t in densenet.items() if name.startswith("features."))


def test_timms_weights_carry_their_preprocessing(densenet, monkeypatch, tmp_path):
    pytest.importorskip("timm", reason="timm is not installed")
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    folder = tmp_path / "hf/models--timm--densenet121.ra_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("c0ffee")
    (folder / "snapshots/c0ffee").mkdir(parents=True)
    save_file(densenet, folder / "snapshots/c0ffee/model.safetensors")
    model = convzoo.load("densenet121", weights="timm:densenet121.ra_in1k", download=True, device="cpu")
    resize = {"size_px": 256, "mode": "short_side", "interpolation": "bicubic", "antialias": True}
    assert model.recipe.transform.eval == [{"resize": resize}, {"center_crop": {"size_px": 224}}]
    assert len(model.class_names) == 1000 and model.class_names[0] == "n01440764"
    theirs = torchvision.models.densenet121()
    theirs.load_state_dict(densenet)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = theirs.eval()(images)
    assert float((model(images) - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def test_darknets_weights_are_kept_by_torch_hub(run, tiny_weights, tmp_path):
    shutil.copy(tiny_weights, in_torch_cache(tmp_path, "tiny.weights"))
    out = tmp_path / "tiny.safetensors"
    assert run("convert", "darknet:tiny.weights", "--download", "--out", out)[0] == 0
    _, info, _ = load_model(out)
    assert info.provenance["converted_from"] == "darknet:tiny.weights"
    (tmp_path / "torch/hub/checkpoints/tiny.weights").write_bytes(b"<html>not found</html>")
    code, _, err = run("convert", "darknet:tiny.weights", "--download", "--out", out)
    assert code == 1 and "HTML page" in one_line(err)


def test_torch_hub_gives_a_ready_model(ours):
    model = from_hub("tinydarknet", weights=ours)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wanted = convzoo.load(ours, device="cpu").network(images)
    assert torch.equal(model(images), wanted) and model.class_names[9] == "9"
    assert model.evaluate()["images"] == 360
    for name in set(NETWORKS) - {"tinydarknet"}:
        with pytest.raises(ConvzooError, match=f"holds tinydarknet, not {name}"):
            from_hub(name, weights=ours)


def test_the_published_weights_know_the_dog(shared):
    model = convzoo.load(shared / "data/weights/tiny.weights", device="cpu")
    (answer,) = model.predict(shared / "fixtures/darknet/decoded/dog.jpg")
    # dogsled, malamute, Eskimo dog
    assert set(answer.names[:3]) == {"n03218198", "n02110063", "n02109961"}
    assert answer.titles and answer.titles[0] == "dogsled"


def test_load_takes_foreign_files(tiny_weights, ours, tmp_path):
    file, names = tiny_weights, tmp_path / "names.txt"
    names.write_text("\n".join(f"thing {number}" for number in range(1000)))
    model = convzoo.load("tinydarknet", weights=file, classes=names, device="cpu")
    assert model.class_names == names.read_text().splitlines() and model.network.training is False
    assert convzoo.load(file, device="cpu").class_names == list(darknet_wnids())
    with pytest.raises(ConvzooError, match="holds tinydarknet, not yolov3"):
        convzoo.load("yolov3", weights=file)
    with pytest.raises(UsageError, match="unknown model 'resnet50'"):
        convzoo.load("resnet50", weights=ours)
    with pytest.raises(UsageError, match="a network without weights"):
        convzoo.load("vgg16")
    with pytest.raises(UsageError, match="no such model file"):
        convzoo.load("densenet121", weights=tmp_path / "none.ckpt")


@pytest.mark.parametrize("name", NETWORKS)
def test_an_untrained_network_is_its_recipes_with_other_classes(name):
    torch.manual_seed(3)
    model = from_hub(name, pretrained=False, num_classes=7)
    torch.manual_seed(3)
    wanted = registry.bind("model", model.recipe.model)()
    assert all(torch.equal(a, b) for a, b in zip(model.network.parameters(), wanted.parameters(), strict=True))
    assert model.recipe.model["num_classes"] == 7 and model.class_names == [str(number) for number in range(7)]
    assert model.recipe.name.startswith(f"{name}-") and model.network.training is False
    if name != "yolov3":
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_an_untrained_network_may_have_class_names_and_no_weights(ours, tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    model = convzoo.load("tinydarknet", pretrained=False, num_classes=2, classes=tmp_path / "names.txt", device="cpu")
    assert model.class_names == ["cat", "dog"] and model.metrics == {}
    assert convzoo.load("tinydarknet", pretrained=False, device="cpu").recipe.model["num_classes"] == 1000
    load = functools.partial(convzoo.load, pretrained=False)
    for wrong, message in (
        (lambda: load("tinydarknet", weights=ours), "pretrained=False has no weights"),
        (lambda: load("tinydarkent"), "unknown model 'tinydarkent'"),
        (lambda: load("tinydarknet", num_classes=3, classes=tmp_path / "names.txt"), "2 class names"),
    ):
        with pytest.raises(UsageError, match=message):
            wrong()
    with pytest.raises(ConvzooError, match="tinydarknet with 10 classes, not 7"):
        convzoo.load(ours, num_classes=7)


def test_a_model_in_memory_evaluates_under_overrides(ours):
    model = convzoo.load(ours, device="cpu")
    plain = model.evaluate()
    assert model.evaluate(overrides=["transform.eval=[]"]) != plain
    steep = model.evaluate(overrides=["model.leaky_slope=0.9"])
    assert steep["images"] == 360 and steep != plain
