"""`config.py` of the first Tiny-DarkNet edition: read as data in each of the ways it may be written, never run."""

import json
import re
from pathlib import Path

import pytest

from convzoo.config import recipe as recipes
from helpers import one_line

KEYS = """
    'pre_trained': 'False',
    'num_classes': 1000,
    'lr_init': 0.1,
    'batch_size': 128,
    'epoch_size': 500,
    'momentum': 0.9,
    'weight_decay': 1e-4,
    'image_height': 224,
    'image_width': 224,
    'data_path': './ImageNet_Original/train/',
    'val_data_path': './ImageNet_Original/val/',
    'device_target': 'Ascend',
    'keep_checkpoint_max': 10,
    'checkpoint_path': '/train_tinydarknet.ckpt',
    'onnx_filename': 'tinydarknet.onnx',
    'air_filename': 'tinydarknet.air',
    'lr_scheduler': 'exponential',
    'lr_epochs': [70, 140, 210, 280],
    'lr_gamma': 0.3,
    'eta_min': 0.0,
    'T_max': 150,
    'warmup_epochs': 0,
    'is_dynamic_loss_scale': 0,
    'loss_scale': 1024,
    'label_smooth_factor': 0.1,
    'use_label_smooth': True,
"""
CONFIG = f'''# Copyright
"""
network config setting, will be used in main.py
"""
from easydict import EasyDict as edict

imagenet_cfg = edict({{{KEYS}}})
'''
LINES = [line.strip().rstrip(",") for line in KEYS.strip().splitlines()]
WAYS = {
    "edict": CONFIG,
    "a dictionary": CONFIG.replace("edict({", "{").replace("})", "}"),
    "a listing, as the document has it": "\n".join(f"{line}    # what it is" for line in LINES),
    "a listing without quotes": "\n".join(line.replace("'", "", 2) for line in LINES),
    "keywords": f"cfg = dict({', '.join(line.replace(chr(39), '', 2).replace(': ', '=', 1) for line in LINES)})\n",
    "names": "\n".join(line.replace("'", "", 2).replace(": ", " = ", 1) for line in LINES),
    "attributes": "\n".join("config." + line.replace("'", "", 2).replace(": ", " = ", 1) for line in LINES),
}


def convert(run, tmp_path, text: str) -> tuple[int, str, str]:
    (tmp_path / "config.py").write_text(text)
    return run("convert", tmp_path / "config.py", "--out", tmp_path / "mine.yaml", "--json")


@pytest.mark.parametrize("way", WAYS)
def test_the_configuration_becomes_a_recipe(run, tmp_path, way):
    code, out, err = convert(run, tmp_path, WAYS[way])
    assert code == 0, err
    recipe = recipes.load(tmp_path / "mine.yaml")
    assert recipe.model["name"] == "tinydarknet" and recipe.model["leaky_slope"] == 0.2
    assert (recipe.optim.lr, recipe.train.epochs, recipe.train.batch_size) == (0.1, 500, 128)
    assert recipe.schedule.milestones == [70, 140, 210, 280] and recipe.schedule.gamma == 0.3
    assert recipe.train.loss_scale == 1024 and recipe.loss["label_smoothing"] == pytest.approx(0.1 * 1000 / 999)
    assert {"data_path", "pre_trained", "onnx_filename", "device_target"} <= set(json.loads(out)["dropped"])
    assert (
        "from config.py, a configuration of the MindSpore zoo's tinydarknet"
        in (tmp_path / "mine.yaml").read_text().splitlines()[0]
    )


def test_the_document_prints_the_same(shared):
    text = next((shared / "reference/seeds").glob("001*")).read_text()
    printed = dict(re.findall(r"^  '(\w+)': (.+?)\s*#", text, flags=re.MULTILINE))
    assert printed == dict(line.replace("'", "", 2).split(": ", 1) for line in LINES)


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("import os\nos.system('touch ran')\n" + CONFIG, 1, "config.py:2: 'os.system('touch ran')' is code"),
        (CONFIG.replace("0.9,", "__import__('os').system('touch ran'),"), 1, "config.py:13: '__import__('os').system("),
        (CONFIG.replace("edict({", "run({"), 1, "is code, and a configuration is read, never run"),
        (CONFIG.replace("edict({", "edict(**open('ran', 'w'), **{"), 1, "is code"),
        ("def f():\n    open('ran', 'w')\n" + CONFIG, 1, "config.py:1: 'def f():"),
        (CONFIG.replace("0.9,", "[open('ran', 'w')],"), 1, "config.py:13: "),
        ("x = " + "+".join(["1"] * 20000) + "\n" + CONFIG, 1, ""),
        (CONFIG.replace("0.9,", "0.9,\n    'momentum': 0.8,"), 1, "config.py:14: momentum: duplicate key"),
        (CONFIG.replace("0.9,", "'fast',"), 2, "config.py:13: momentum: must be a number, not 'fast'"),
        (CONFIG + "cifar_cfg = edict({'num_classes': 10})\n", 1, "holds 2 configurations, imagenet_cfg, cifar_cfg"),
        ("import os\n", 1, "no configuration in it"),
        ("lr = 0.1\n", 1, "not the configuration of a network of the MindSpore zoo"),
    ],
)
def test_code_is_refused_with_one_line_and_not_run(run, tmp_path, monkeypatch, text, code, message):
    monkeypatch.chdir(tmp_path)
    got, out, err = convert(run, tmp_path, text)
    assert got == code and out == "" and message in one_line(err)
    assert [path.name for path in Path().iterdir()] == ["config.py"]
