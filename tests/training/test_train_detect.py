"""Detectors through the same loop: continued runs are the same, sizes are everybody's, real pictures are learned."""

import json

import pytest
import torch
from PIL import Image
from test_train import stop_after

from convzoo import logs
from convzoo.config import recipe as recipes
from convzoo.convert import mindspore
from convzoo.convert.mindspore_ckpt import write_records
from convzoo.convert.state_dict import meta_network
from convzoo.data.sampler import TrainBatches
from convzoo.model_file import ModelInfo, save_model
from convzoo.training.pretrained import load_pretrained
from convzoo.training.setup import RunOptions, TrainState
from convzoo.types import Key, Sample
from helpers import difference, momenta, one_line, rows, same, weights

# A run of seconds, with everything on: sizes by turns, mosaic, colours.
SMALL = [
    "model.width=0.03125",
    "data.max_train_images=24",
    "data.canvas_px=64",
    "data.digit_px=[14, 30]",
    "data.most_digits=3",
    "transform.train=[{random_place: {mosaic_prob: 0.5}}, {hsv_distort: {}}]",
    "transform.eval=[{letterbox: {size_px: 64}}]",
    "transform.multi_scale_px=[64, 96]",
    "train.epochs=2",
    "train.batch_size=8",
    "train.eval_every_epochs=1",
    "train.precision=fp32",
]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    from convzoo import cli

    out = tmp_path_factory.mktemp("runs") / "detector"
    assert cli.main(["train", "yolov3-digits", *SMALL, "--out", str(out)]) == 0
    return out


def test_what_a_detectors_run_leaves(small_run):
    last = rows(small_run, "epoch")[-1]
    assert {"loss_xy", "loss_wh", "loss_objectness", "loss_class", "AP", "AP50", "images"} <= set(last)
    parts = sum(last[name] for name in ("loss_xy", "loss_wh", "loss_objectness", "loss_class"))
    assert last["loss"] == pytest.approx(parts, rel=1e-5) and last["images"] == last["images_expected"] == 120
    for name in (
        "detections.json",
        "truth.json",
        "coco.txt",
        "per_class.csv",
        "confusion.png",
        "precision_recall.png",
        "metrics.json",
    ):
        assert (small_run / "eval" / name).stat().st_size > 0
    readme = (small_run / "README.md").read_text()
    assert "AP50" in readme and "top-1" not in readme
    for line in readme.splitlines():
        if line.startswith("!["):
            assert (small_run / line.partition("(")[2].rstrip(")")).is_file(), line
    account = json.loads((small_run / "data.json").read_text())
    assert sum(account["train_objects_per_class"].values()) > 24


def test_eval_repeats_what_training_measured(run, small_run):
    model = small_run / "checkpoints/last.safetensors"
    code, out, _ = run("eval", model, "--json", "--batch-size", 7)
    assert code == 0
    measured, last = json.loads(out), rows(small_run, "epoch")[-1]
    assert {key: measured[key] for key in ("AP", "AP50", "AR100")} == {
        key: last[key] for key in ("AP", "AP50", "AR100")
    }
    code, out, _ = run("eval", model)
    assert (
        code == 0 and "120 of 120 images" in out and out.count("Average Precision") == out.count("Average Recall") == 6
    )


def test_an_interrupted_detector_equals_an_uninterrupted_one(run, small_run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert run("train", "yolov3-digits", *SMALL, "--out", tmp_path / "parts")[0] == 75
    assert run("train", "yolov3-digits", *SMALL, "--out", tmp_path / "parts")[0] == 0
    assert same(weights(small_run), weights(tmp_path / "parts"))


def test_micro_batches_add_up_to_the_batch(run, tmp_path):
    still = [*SMALL, "train.freeze=['*norm*']", "optim.lr=1.0e-7", "train.eval_every_epochs=2"]
    for parts in (1, 2):
        assert run("train", "yolov3-digits", *still, "--accumulate", parts, "--out", tmp_path / str(parts))[0] == 0
    assert difference(momenta(tmp_path / "1"), momenta(tmp_path / "2")) < 1e-4


def test_sizes_are_a_function_of_seed_and_step_and_the_same_on_all_ranks():
    sizes = list(range(320, 609, 32))

    def keys(start=0, end=400, seed=0, every=1, **ranks):
        return [
            batch[0].size_px
            for batch in TrainBatches(64, 8, seed, start, end, sizes_px=sizes, size_every_steps=every, **ranks)
        ]

    whole = keys()
    assert set(whole) == set(sizes) and keys(start=150) == whole[150:]
    assert all(keys(rank=rank, world_size=4) == whole for rank in range(4))
    assert keys(accumulate=2) == [size for size in whole for _ in range(2)]
    assert keys(seed=1) != whole
    tens = keys(every=10)
    assert all(len(set(tens[i : i + 10])) == 1 for i in range(0, 400, 10)) and len(set(tens)) > 5
    assert all(len({key.size_px for key in batch}) == 1 for batch in TrainBatches(64, 8, 0, 0, 5, sizes_px=sizes))


def test_classes_that_the_model_does_not_know_are_no_silent_zero(run, small_run, own_coco):
    code, out, err = run("eval", small_run / "checkpoints/last.safetensors", "data={name: coco}", "--data", own_coco)
    assert code == 3 and out == "" and "classes that the model does not know" in one_line(err)


def test_validation_data_with_the_classes_in_another_order_are_the_same_classes(tmp_path):
    for name, split, classes in (("one", "train", "cat\ndog\n"), ("two", "val", "dog\ncat\n")):
        for folder in ("images", "labels"):
            (tmp_path / name / folder / split).mkdir(parents=True)
        (tmp_path / name / "classes.txt").write_text(classes)
        Image.new("RGB", (64, 64)).save(tmp_path / name / "images" / split / "1.png")
        (tmp_path / name / "labels" / split / "1.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    small = ["data={name: yolo_txt}", "model.num_classes=2", "model.width=0.03125", "train.batch_size=1"]
    options = RunOptions(data=tmp_path / "one", val_data=tmp_path / "two")
    state = TrainState(recipes.load("yolov3-digits", small), options, torch.device("cpu"))
    assert state.class_names == ["cat", "dog"] and state.val_data is not None
    samples = [data[Key(0, 0)] for data in (state.train_data, state.val_data)]
    assert [sample.target.labels.tolist() for sample in samples if isinstance(sample, Sample)] == [[0], [1]]


def test_a_wrong_number_of_classes_is_named(run, tmp_path):
    code, _, err = run("train", "yolov3-tiny-digits", "model.num_classes=4", "--out", tmp_path / "run")
    assert code == 3 and "set model.num_classes=10" in one_line(err) and not (tmp_path / "run").exists()


def test_a_backbone_that_computes_something_else_is_said(capsys, tmp_path):
    """The zoo's has ReLU and pads below and right; a converted DarkNet-53 of timm's has another slope."""
    zoo = {"name": "yolov3", "num_classes": 10, **mindspore.ZOO["yolov3"]}
    names = mindspore.zoo_names(zoo)
    shapes = {name: tensor.shape for name, tensor in meta_network(zoo).state_dict().items()}
    parts = {names[name]: torch.ones(shapes[name]) for name in names if name.startswith("backbone.")}
    (tmp_path / "backbone.ckpt").write_bytes(write_records(parts))
    timm = {"name": "darknet53", "num_classes": 1, "leaky_slope": 0.01}
    darknet = {
        name: torch.zeros(like.shape, dtype=like.dtype) for name, like in meta_network(timm).state_dict().items()
    }
    recipe = recipes.load("yolov3-digits").plain()
    info = ModelInfo(recipe={**recipe, "task": "classify", "model": timm, "postprocess": {}}, class_names=["one"])
    save_model(tmp_path / "timm.safetensors", darknet, info)
    logs.setup()

    def warnings(name: str, *overrides: str) -> list[str]:
        mine = recipes.load("yolov3-digits", ["model={name: yolov3, num_classes: 10}", *overrides])
        model = meta_network(mine.model).to_empty(device="cpu")
        capsys.readouterr()
        load_pretrained(model, mine, tmp_path / name, [str(i) for i in range(10)])
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].startswith("backbone of 52 convolutions from ")
        return [line.partition(" its backbone was trained with ")[2] for line in lines[1:]]

    act, padding = (
        "backbone_act relu, this recipe has leaky 0.1",
        "down_padding bottom_right, this recipe has symmetric",
    )
    assert warnings("backbone.ckpt") == [act, padding]
    assert warnings("backbone.ckpt", "model.backbone_act=relu") == [padding]
    assert warnings("backbone.ckpt", "model.backbone_act=relu", "model.down_padding=bottom_right") == []
    assert warnings("timm.safetensors") == ["backbone_act leaky 0.01, this recipe has leaky 0.1"]


@pytest.mark.slow
def test_ten_real_pictures_are_learned(run, shared, tmp_path):
    """A quarter of the width at 256 pixels on ten pictures of COCO, trained and measured on the same."""
    folder = tmp_path / "ten"
    (folder / "annotations").mkdir(parents=True)
    whole = json.loads((shared / "data/tiny-coco/annotations/instances_train2017.json").read_text())
    counts = {image["id"]: 0 for image in whole["images"]}
    for one in whole["annotations"]:
        counts[one["image_id"]] += 1
    chosen = sorted(key for key in counts if 1 <= counts[key] <= 12)[:10]
    ten = {
        "images": [image for image in whole["images"] if image["id"] in chosen],
        "annotations": [one for one in whole["annotations"] if one["image_id"] in chosen],
        "categories": whole["categories"],
    }
    for split in ("train", "val"):
        (folder / f"annotations/instances_{split}2017.json").write_text(json.dumps(ten))
        (folder / f"{split}2017").symlink_to(shared / "data/tiny-coco/train2017")
    assert len(ten["images"]) == 10
    torch.set_num_threads(2)
    try:
        code, out, err = run(
            *("train", "yolov3-coco", "model.width=0.25", "transform.multi_scale_px=[]"),
            "transform.eval=[{letterbox: {size_px: 256}}]",
            "transform.train=[{letterbox: {size_px: 256}}, {flip_lr: {prob: 0.5}}]",
            *("optim.lr=0.01", "optim.weight_decay=0.0005", "train.clip_grad_norm=20.0"),
            "schedule={name: cosine_annealing, warmup_epochs: 10}",
            *("train.epochs=250", "train.batch_size=10", "train.precision=fp32", "train.eval_every_epochs=50"),
            *("--data", folder, "--out", tmp_path / "run"),
        )
    finally:
        torch.set_num_threads(1)
    assert code == 0, err
    code, out, _ = run("eval", tmp_path / "run/checkpoints/last.safetensors", "--data", folder, "--json")
    assert code == 0 and json.loads(out)["AP50"] >= 0.9, out
