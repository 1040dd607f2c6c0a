"""YOLOv3-tiny: the published weights' raw maps and boxes, and the same network as its own .cfg describes."""

import json

import numpy as np
import pytest
import torch

from convzoo.boxes import UNMOVED, xyxy_to_cxcywh
from convzoo.config import registry
from convzoo.convert import darknet as darknet_weights
from convzoo.convert import readers
from convzoo.convert.darknet_network import load_weights
from convzoo.errors import UsageError
from convzoo.models import yolov3_tiny
from convzoo.models.darknet_network import darknet
from convzoo.tasks.heads import decode_heads
from convzoo.tasks.postprocess import postprocess

AS_PUBLISHED = (((10, 14), (23, 27), (37, 58)), yolov3_tiny.ANCHORS_PX[1])  # masks 0,1,2 for the finer head


@pytest.fixture(scope="module")
def dog(shared) -> tuple[torch.Tensor, ...]:
    """Return the raw maps, finest first, of the published weights for the letterboxed dog."""
    converted = readers.read(shared / "data/weights/yolov3-tiny.weights")
    assert converted.model == {"name": "yolov3_tiny", "num_classes": 80} and converted.task == "detect"
    assert converted.header["bytes_left"] == 0 and not converted.missing
    picture = np.load(shared / "fixtures/darknet/yolov3-416/preprocessed_dog.npy").reshape(1, 3, 416, 416)
    with torch.inference_mode():
        return readers.network(converted)(torch.from_numpy(picture))


def test_raw_maps_of_the_published_weights_are_darknets(dog, shared):
    with np.load(shared / "fixtures/darknet/yolov3-tiny/dog_heads.npz") as theirs:
        expected = [theirs["layer22_convolutional"], theirs["layer15_convolutional"]]
    for ours, other in zip(dog, expected, strict=True):
        assert np.abs(ours[0].numpy() - other).max() <= 2e-5 * np.abs(other).max()


@pytest.mark.parametrize(
    ("name", "anchors_px", "count"), [("mask123", yolov3_tiny.ANCHORS_PX, 4), ("mask012", AS_PUBLISHED, 6)]
)
def test_the_dogs_boxes_are_darknets(dog, shared, name, anchors_px, count):
    expected = json.loads((shared / f"fixtures/darknet/yolov3-tiny/dog_{name}.json").read_text())
    boxes_xyxy, scores = decode_heads(dog, yolov3_tiny.heads(anchors_px))
    size = (416, 416)  # the listed boxes are shares of the input
    (detections,) = postprocess(
        boxes_xyxy,
        scores,
        torch.tensor([UNMOVED]),
        torch.tensor([size]),
        score_threshold=expected["threshold"],
        iou_threshold=expected["nms_iou"],
        multi_label=True,
        box_rule="darknet",
    )
    boxes = xyxy_to_cxcywh(detections.boxes_xyxy) / 416
    rows = torch.cat([detections.labels[:, None], detections.scores[:, None], boxes], 1)
    theirs = torch.tensor(sorted(expected["after_nms"], key=lambda row: -row[1]))
    assert len(rows) == count
    torch.testing.assert_close(rows, theirs, rtol=0, atol=1e-4)


def test_average_precision_of_the_published_weights_is_darknets(run, shared, tmp_path):
    """Darknet itself, with the masks as trained: AP 21.36, AP50 43.15 (as published: 14.15, 27.41)."""
    model = tmp_path / "yolov3-tiny.safetensors"
    assert run("convert", shared / "data/weights/yolov3-tiny.weights", "--out", model)[0] == 0
    code, out, err = run("eval", model, "--data", shared / "data/coco-mini", "--workers", 0, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["images"] == 128
    assert abs(result["AP"] - 0.2136) <= 0.003 and abs(result["AP50"] - 0.4315) <= 0.003


def test_it_is_the_network_of_its_cfg(shared):
    """A weight file of it fits the .cfg, and both compute the same: the order of modules is that of the layers."""
    text = (shared / "fixtures/darknet/cfg/yolov3-tiny.cfg").read_text()
    torch.manual_seed(0)
    ours = yolov3_tiny.yolov3_tiny().eval()
    weights = darknet_weights.write(ours.state_dict(), {"name": "yolov3_tiny", "num_classes": 80})
    with torch.device("meta"):
        described = darknet(cfg=text).eval()
    described.load_state_dict(load_weights(text, weights, "written"), assign=True)
    images = torch.rand(2, 3, 96, 160)
    with torch.inference_mode():
        fine, coarse = ours(images)
        assert all(torch.equal(a, b) for a, b in zip(described(images), (coarse, fine), strict=True))
    assert [head.stride for head in described.heads] == [32, 16]
    assert described.heads[0].anchors_px == ours.heads[1].anchors_px  # the finer differ: see ANCHORS_PX


def test_bad_anchors_and_widths():
    for keys, message in (
        ({"anchors_px": [[[1, 2]] * 3] * 3}, "two rows, finest first"),
        ({"anchors_px": [[[1, 2]] * 3, [[1, 2]] * 2]}, "three .width, height."),
        ({"anchors_px": [[[1, 2]] * 3, [[1, 2], [3, 4], [0, 2]]]}, "above 0"),
        ({"width": 0.1}, "multiple of 1/16"),
    ):
        with pytest.raises(UsageError, match=message):
            registry.bind("model", {"name": "yolov3_tiny", **keys})()
