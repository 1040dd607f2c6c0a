"""The training settings of a Darknet `.cfg` as a recipe, and training from Darknet's files by it."""

import json
import struct

import numpy as np
import pytest

from convzoo.config import recipe as recipes
from convzoo.model_file import load_model
from helpers import CONV, SHARED, SMALL_CFG, cfg_text, one_line

CFG = SHARED / "fixtures/darknet/cfg"

TRAINING = """
batch=32
subdivisions=8
momentum=0.95
decay=0.0004
angle=0
saturation=.5
exposure=1.5
hue=.1
mosaic=1
learning_rate=0.002
burn_in=10
max_batches=3200
policy=steps
steps=1600,2400
scales=.2,.2
"""


def weight_bytes(num_floats: int) -> bytes:
    """Return a weight file; all of its floats are positive, so that any of them may be a variance."""
    floats = np.random.default_rng(0).uniform(0.1, 0.5, num_floats).astype("<f4")
    return struct.pack("<iiiq", 0, 2, 5, 640) + floats.tobytes()


def recipe_of(run, tmp_path, text: str, *flags: object) -> tuple[recipes.Recipe, dict]:
    (tmp_path / "my.cfg").write_text(text)
    code, out, err = run("convert", tmp_path / "my.cfg", *flags, "--out", tmp_path / "my.yaml", "--json")
    assert code == 0, err
    return recipes.load(tmp_path / "my.yaml"), json.loads(out)


def test_a_cfg_becomes_a_recipe_of_its_training_settings(run, tmp_path):
    text = (
        SMALL_CFG.replace("channels=3\n", f"channels=3\n{TRAINING}") + "jitter=.2\nrandom=1\nignore_thresh=.6\nmax=90\n"
    )
    recipe, report = recipe_of(run, tmp_path, text)
    assert recipe.task == "detect" and recipe.model["cfg"] == text and recipe.model["num_classes"] == 2
    optim, schedule, train = recipe.optim, recipe.schedule, recipe.train
    assert (optim.lr, optim.momentum, optim.weight_decay) == (0.002, 0.95, 0.0004)
    # 3200 pictures are assumed, as many as max_batches: 100 batches of 32 an epoch
    assert (train.epochs, train.batch_size) == (32, 32)
    assert (schedule.name, schedule.milestones, schedule.gamma) == ("multi_step", [16, 24], 0.2)
    assert (schedule.warmup_epochs, schedule.warmup_power) == (0.1, 4.0)
    assert recipe.transform.train == [
        {"random_place": {"size_px": [96, 64], "jitter": 0.2, "mosaic_prob": 0.5}},
        {"flip_lr": {"prob": 0.5}},
        {"hsv_distort": {"hue": 0.1, "saturation": 2.0, "exposure": 1.5}},
    ]
    assert recipe.loss == {"label_smoothing": 0.0, "ignore_threshold": 0.6}
    assert set(report["dropped"]) == {"[net] subdivisions", "[net] angle", "[yolo] max"}
    assert any("3200 batches are 32 epochs of 3200 pictures" in note for note in report["notes"])
    assert any("sizes are square here" in note for note in report["notes"])
    stretched, _ = recipe_of(run, tmp_path, text, "--resize", "stretch")
    assert stretched.transform.eval == [{"resize": {"size_px": [96, 64], "mode": "stretch", "antialias": False}}]


def test_a_schedule_that_falls_with_a_power(run, tmp_path):
    recipe, _ = recipe_of(
        run,
        tmp_path,
        "[net]\nwidth=32\nheight=32\nchannels=3\nbatch=16\npolicy=poly\npower=3\nmax_batches=320\nmax_crop=48\nangle=7\n"
        "[conv]\nfilters=4\nactivation=linear\n[avg]\n[soft]\n",
    )
    assert (recipe.task, recipe.schedule.name, recipe.schedule.power) == ("classify", "polynomial", 3.0)
    crop = {"size_px": 32, "short_side_px": [32, 48], "degrees": 7.0, "aspect": 1.0}
    assert recipe.transform.train == [{"rotate_scale_crop": crop}, {"flip_lr": {"prob": 0.5}}]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("policy=steps", "policy=sgdr", "my.cfg:18: [net] policy: 'sgdr' has no equivalent"),
        (
            "scales=.2,.2",
            "scales=.2,.3",
            "my.cfg:20: [net] scales: factors that differ, [0.2, 0.3], have no",
        ),
        ("scales=.2,.2", "scales=.2", "my.cfg:20: [net] scales: 2 steps and 1 scales"),
        ("batch=32", "batch=many", "my.cfg:6: [net] batch: 'many' is not a number"),
        ("batch=32", "batch=0", "my.cfg:6: [net] batch: 0 is not a whole number above 0"),
        ("saturation=.5", "saturation=0", "my.cfg:11: [net] saturation: 0 is not above 0"),
    ],
)
def test_settings_without_an_equivalent_are_refused_with_their_line(run, tmp_path, old, new, message):
    text = SMALL_CFG.replace("channels=3\n", f"channels=3\n{TRAINING}").replace(old, new)
    (tmp_path / "my.cfg").write_text(text)
    code, _, err = run("convert", tmp_path / "my.cfg", "--out", tmp_path / "my.yaml")
    assert code == 2 and message in one_line(err) and not (tmp_path / "my.yaml").exists()


@pytest.mark.parametrize("name", sorted(path.stem for path in CFG.glob("*.cfg")))
def test_every_full_cfg_becomes_a_recipe(run, tmp_path, name):
    code, _, err = run("convert", CFG / f"{name}.cfg", "--out", tmp_path / "my.yaml")
    assert code == 0, err
    recipe = recipes.load(tmp_path / "my.yaml")
    expected = {"tiny": "tinydarknet", "darknet53": "darknet53", "yolov3": "yolov3", "yolov3-voc": "yolov3"}
    assert recipe.model["name"] == expected.get(name, "yolov3_tiny" if name == "yolov3-tiny" else "darknet")
    assert recipe.train.epochs > 50 or name == "vgg-16"


CLASSIFIER = cfg_text(
    "net width=8 height=8 channels=3 batch=64 max_batches=46 learning_rate=.1",
    f"{CONV} filters=16 stride=2",
    f"{CONV} filters=24",
    "conv filters=10 activation=linear",
    "avg",
    "soft",
)


def test_training_starts_from_a_backbone_as_far_as_the_file_goes(run, tmp_path):
    recipe_of(run, tmp_path, CLASSIFIER)
    backbone, cfg = tmp_path / "my.conv.1", tmp_path / "backbone.cfg"
    cfg.write_text(CLASSIFIER[: CLASSIFIER.index("[conv]\nfilters=10")])
    backbone.write_bytes(weight_bytes(16 * (4 + 27) + 24 * (4 + 16 * 9)))
    code, _, err = run("convert", backbone, "--cfg", cfg, "--out", tmp_path / "x.safetensors")
    assert code == 1 and "a backbone, for training a whole network from" in one_line(err)
    same = ["data.name=digits", "transform.train=[]", "transform.eval=[]", "optim.lr=1.0e-9", "train.precision=fp32"]
    same += ["train.epochs=1", "data.max_train_images=64"]
    code, _, err = run("train", tmp_path / "my.yaml", *same, "--weights", backbone, "--out", tmp_path / "run")
    assert code == 0 and "2 of 3 layers with weights from" in err, err
    tensors = load_model(tmp_path / "run/checkpoints/last.safetensors")[0]
    floats = np.frombuffer(backbone.read_bytes()[20:], "<f4")
    assert tensors["layers.0.conv.weight"].flatten().numpy() == pytest.approx(floats[64 : 64 + 432], abs=1e-6)
    backbone.write_bytes(weight_bytes(700))
    code, _, err = run("train", tmp_path / "my.yaml", *same, "--weights", backbone, "--out", tmp_path / "other")
    assert code == 1 and "weights of another .cfg are converted with it first" in one_line(err)


def test_training_starts_from_a_converted_network_of_other_classes(run, tmp_path):
    weights, cfg, ours = tmp_path / "other.weights", tmp_path / "other.cfg", tmp_path / "other.safetensors"
    cfg.write_text(CLASSIFIER.replace("filters=10", "filters=7"))
    weights.write_bytes(weight_bytes(16 * (4 + 27) + 24 * (4 + 16 * 9) + 7 * 25))
    assert run("convert", weights, "--cfg", cfg, "--out", ours)[0] == 0
    recipe_of(run, tmp_path, CLASSIFIER)
    same = ["data.name=digits", "transform.train=[]", "transform.eval=[]", "train.epochs=1", "data.max_train_images=64"]
    code, _, err = run("train", tmp_path / "my.yaml", *same, "--weights", ours, "--out", tmp_path / "run")
    assert code == 0 and "new head layers.2.conv.bias, layers.2.conv.weight for 10 classes" in err, err
