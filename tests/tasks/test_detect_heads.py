"""Detection by other networks than YOLOv3: heads of unequal anchors, in any order, and what cannot be learned."""

import json

import pytest
import torch

from convzoo.build import build_task
from convzoo.config import recipe as recipes
from convzoo.errors import UsageError
from convzoo.tasks.detect import Detect
from convzoo.types import Batch, BoxTargets, Head
from helpers import CONV, cfg_text, one_line, rows

# Strides 8 and 16, the coarser head first, with three anchors and two; one of them is in both.
ANCHORS = "anchors=13,17,16,22,20,28,40,50 classes=10 num=4"
CFG = cfg_text(
    "net width=64 height=64 channels=3",
    *(f"{CONV} filters={filters} stride=2" for filters in (16, 32, 64, 64)),
    "convolutional filters=45 size=1 activation=linear",
    f"yolo mask=1,2,3 {ANCHORS} scale_x_y=1.05",
    "route layers=2",
    "convolutional filters=30 size=1 activation=linear",
    f"yolo mask=0,1 {ANCHORS} scale_x_y=1.1",
)
REGION = CFG[: CFG.index("[yolo]")] + "[region]\nanchors=1,1, 1,2, 2,1\nclasses=10\nnum=3\nsoftmax=1\n"
NEW_COORDS = CFG.replace("scale_x_y=1.1", "scale_x_y=2.0\nnew_coords=1")


def model(cfg: str) -> str:
    return f"model={json.dumps({'name': 'darknet', 'cfg': cfg, 'num_classes': 10})}"


def test_heads_of_unequal_anchors_in_the_order_of_the_file_are_learned(run, tmp_path):
    overrides = ["data.max_train_images=128", "train.epochs=5"]
    code, _, err = run("train", "yolov3-digits", model(CFG), *overrides, "--out", tmp_path / "run")
    assert code == 0, err
    losses = [row["loss"] for row in rows(tmp_path / "run", "step")]
    assert len(losses) == 40 and sum(losses[-8:]) < 0.7 * sum(losses[:8])
    task = build_task(recipes.load("yolov3-digits", [model(CFG)]), list("0123456789"))
    assert isinstance(task, Detect) and task.size_step == 16
    assert task.heads == (
        Head(16, ((16, 22), (20, 28), (40, 50)), 1.05),
        Head(8, ((13, 17), (16, 22)), 1.1),
    )
    assert task.output_shapes((64, 96), "raw") == {"head16": (45, 4, 6), "head8": (30, 8, 12)}
    assert task.output_shapes((64, 96), "decoded") == {"boxes_xyxy": (264, 4), "scores": (264, 10)}


def test_two_maps_of_one_stride_have_two_names():
    heads = Head(8, ((4, 4),)), Head(16, ((9, 9), (12, 12))), Head(8, ((6, 6),))
    shapes = Detect(["x"], heads).output_shapes((32, 32))
    assert shapes == {"head8": (6, 4, 4), "head16": (12, 2, 2), "head8_2": (6, 4, 4)}


@pytest.mark.parametrize(
    ("cfg", "words"), [(REGION, "its heads are [region];"), (NEW_COORDS, "[yolo] with new_coords")]
)
def test_what_the_loss_is_not_for_is_refused_before_a_run_begins(run, tmp_path, cfg, words):
    code, _, err = run("train", "yolov3-digits", model(cfg), "--out", tmp_path / "run")
    assert code == 2 and words in one_line(err) and not (tmp_path / "run").exists()
    task = build_task(recipes.load("yolov3-digits", [model(cfg)]), list("0123456789"))
    shapes = task.output_shapes((64, 64), "raw").values()
    maps = [torch.zeros(1, *shape) for shape in shapes]
    nothing = BoxTargets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    one = torch.zeros(1, dtype=torch.int64)
    batch = Batch(torch.zeros(1, 3, 64, 64), nothing, one, [""], one[None], one[None], one == 0, [None])
    with pytest.raises(UsageError, match="only those of .yolo. without new_coords can be trained"):
        task.loss(maps, batch)
    assert task.decode(maps)[0].shape[2] == 4  # everything but training works


def test_suppression_of_the_recipe_reaches_the_task(run, tmp_path):
    overrides = [model(CFG), "postprocess.nms_kind=diounms", "postprocess.nms_beta=0.9"]
    options = build_task(recipes.load("yolov3-digits", overrides), list("0123456789")).options
    assert options["nms_kind"] == "diounms" and options["nms_beta"] == 0.9
    for override, words in (("nms_kind=softnms", "nms_kind"), ("nms_beta=0", "nms_beta")):
        code, _, err = run("train", "yolov3-digits", f"postprocess.{override}", "--out", tmp_path / "run")
        assert code == 2 and f"postprocess.{words}" in one_line(err)
