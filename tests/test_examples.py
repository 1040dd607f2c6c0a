"""The scripts in examples/ do what they say, on settings of seconds."""

import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest
import torch
import torchvision
from PIL import Image

import convzoo
from convzoo.data.datasets.digits import digits
from convzoo.deploy.quantize import comparison
from helpers import QUICK, REPO, rows

EXAMPLES = REPO / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def picture(tmp_path):
    sample = digits(None, "val").load(0)
    Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(tmp_path / "digit.png")
    return tmp_path / "digit.png", str(sample.target)


def test_training_on_a_folder(tmp_path, capsys):
    for split, per_class in (("train", 24), ("val", 4)):
        data = digits(None, split)
        for label in (3, 7):
            folder = tmp_path / "pictures" / split / f"digit {label}"
            folder.mkdir(parents=True)
            for i in [i for i, other in enumerate(data.labels) if other == label][:per_class]:
                Image.fromarray(data.load(i).image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    settings = [*QUICK, "train.batch_size=16", "train.epochs=6", "schedule.warmup_epochs=1"]
    main = example("train_on_a_folder").main
    run = main([str(tmp_path / "pictures"), "--out", str(tmp_path / "run"), *settings])
    out = capsys.readouterr().out
    assert rows(run, "epoch")[-1]["epoch"] == 6 and "of 8 pictures" in out and out.count("{'class': 'digit ") == 2
    assert convzoo.load(run / "checkpoints/last.safetensors").class_names == ["digit 3", "digit 7"]
    assert out.count("pictures/val/digit 3/") == 4


def test_converting_and_comparing(tmp_path, capsys):
    name = "densenet121"
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(name, weights=None).state_dict(), tmp_path / "weights.pth")
    out = tmp_path / "out.safetensors"
    difference = example("convert_and_compare").main([name, str(tmp_path / "weights.pth"), "--out", str(out)])
    assert difference < 1e-4 and out.is_file() and "largest relative difference" in capsys.readouterr().out


@pytest.mark.parametrize("faster", [True, False])
def test_shipping_and_answering(digits_run, picture, tmp_path, monkeypatch, faster):
    times = {"float32": 2e-3, "int8": 1e-3 if faster else 3e-3}
    monkeypatch.setattr(comparison, "measure_speed", lambda *_: times)
    model = tmp_path / "model.safetensors"
    model.write_bytes((digits_run / "checkpoints/last.safetensors").read_bytes())
    path, label = picture
    file, name = example("export_and_use").main([str(model), str(path), "--calibration-images", "32"])
    assert file.name == ("model-int8.onnx" if faster else "model.onnx") and name == label


def test_the_file_is_used_without_pytorch(digits_run, picture, tmp_path):
    file = convzoo.load(digits_run / "checkpoints/last.safetensors", device="cpu").export("onnx", tmp_path)
    code = "import sys, export_and_use\nprint(export_and_use.answer(*sys.argv[1:])[0])\n"
    code += "assert not {'torch', 'convzoo'} & set(sys.modules)\n"
    command = [sys.executable, "-c", code, file, picture[0]]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(EXAMPLES)})
    assert done.returncode == 0 and done.stdout.strip() == picture[1], done.stderr
