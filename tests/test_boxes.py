"""Boxes: formats, overlaps, letterbox geometry."""

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from convzoo import boxes

NONE = torch.zeros(0, 4)
SIDES = st.integers(1, 5000)


def random_boxes(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low, size = torch.rand(2, n, 2, generator=generator, dtype=torch.float64)
    return torch.cat([low * 300, low * 300 + size * 80], 1)


def test_formats_by_hand():
    xyxy = torch.tensor([[10.0, 20, 40, 100]])
    assert boxes.xyxy_to_cxcywh(xyxy).tolist() == [[25, 60, 30, 80]]
    assert boxes.box_area(xyxy).tolist() == [2400]


def test_formats_round_trip():
    original = random_boxes(50).reshape(5, 10, 4)
    torch.testing.assert_close(boxes.cxcywh_to_xyxy(boxes.xyxy_to_cxcywh(original)), original)
    assert boxes.xyxy_to_cxcywh(NONE).shape == boxes.cxcywh_to_xyxy(NONE).shape == (0, 4)


def test_pairwise_iou_by_hand():
    a = torch.tensor([[0.0, 0, 10, 10], [5, 5, 15, 15]])
    b = torch.tensor([[0.0, 0, 10, 10], [0, 0, 5, 5], [10, 0, 20, 10], [100, 100, 101, 101]])
    wanted = [[1, 0.25, 0, 0], [25 / 175, 0, 25 / 175, 0]]
    torch.testing.assert_close(boxes.pairwise_iou(a, b), torch.tensor(wanted))


def test_pairwise_iou_equals_torchvision_and_takes_batches():
    a, b = random_boxes(40), random_boxes(30, seed=1)
    wanted = torchvision.ops.box_iou(a, b)
    torch.testing.assert_close(boxes.pairwise_iou(a, b), wanted)
    torch.testing.assert_close(boxes.pairwise_iou(a.view(4, 10, 4), b), wanted.view(4, 10, 30))


def test_degenerate_and_no_boxes():
    empty, inverted, huge = [3.0, 3, 3, 8], [9.0, 9, 1, 1], [-float("inf"), 0, float("inf"), 8]
    odd = torch.tensor([empty, inverted])
    full = torch.tensor([[0.0, 0, 10, 10]])
    assert boxes.box_area(odd).tolist() == [0, 0]
    assert not boxes.pairwise_iou(odd, torch.cat([odd, full])).any()
    assert boxes.pairwise_iou(torch.tensor([huge]), full).tolist() == [[0]]
    assert boxes.pairwise_iou(NONE, full).shape == (0, 1) and boxes.pairwise_iou(full, NONE).shape == (1, 0)
    assert boxes.centred_iou(torch.tensor([[0.0, 5], [-1, 4]]), torch.tensor([[0.0, 5]])).tolist() == [[0], [0]]
    assert boxes.centred_iou(torch.zeros(0, 2), torch.ones(9, 2)).shape == (0, 9)


def test_centred_iou_by_hand():
    ious = boxes.centred_iou(torch.tensor([[10.0, 20], [4, 4]]), torch.tensor([[20.0, 10], [8, 8]]))
    torch.testing.assert_close(ious, torch.tensor([[100 / 300, 64 / 200], [16 / 200, 16 / 64]]))


def test_clip():
    inside, across, outside = [1.0, 2, 3, 4], [-5.0, -6, 300, 200], [-9.0, 5, -2, 8]
    clipped = boxes.clip_boxes(torch.tensor([inside, across, outside]), (100, 200))
    assert clipped.tolist() == [inside, [0, 0, 200, 100], [0, 5, 0, 8]]
    assert boxes.clip_boxes(NONE, (100, 200)).shape == (0, 4)


@pytest.mark.parametrize(
    "image_size, input_size, resized, placement",
    [
        ((576, 768), (416, 416), (312, 416), (416 / 768, 312 / 576, 0, 52)),  # Darknet's dog
        ((768, 576), (416, 416), (416, 312), (312 / 576, 416 / 768, 52, 0)),
        ((416, 416), (416, 416), (416, 416), (1, 1, 0, 0)),
        ((427, 640), (416, 416), (277, 416), (416 / 640, 277 / 427, 0, 69)),  # 139 free rows, 69 above
        ((100, 100), (64, 96), (64, 64), (0.64, 0.64, 16, 0)),
        ((1, 5000), (416, 416), (1, 416), (416 / 5000, 1, 0, 207)),
        ((1, 1), (416, 416), (416, 416), (416, 416, 0, 0)),
    ],
)
def test_letterbox_by_hand(image_size, input_size, resized, placement):
    assert boxes.letterbox_size(image_size, input_size) == resized
    assert boxes.letterbox_placement(image_size, input_size) == pytest.approx(placement)


@given(SIDES, SIDES, SIDES, SIDES)
def test_letterboxed_picture_lies_within_the_input_and_touches_two_sides(height, width, input_height, input_width):
    resized = boxes.letterbox_size((height, width), (input_height, input_width))
    assert resized[0] == input_height or resized[1] == input_width
    assert 1 <= resized[0] <= input_height and 1 <= resized[1] <= input_width
    placement = boxes.letterbox_placement((height, width), (input_height, input_width))
    picture = torch.tensor([[0.0, 0, width, height]], dtype=torch.float64)
    left, top, right, bottom = boxes.to_input(picture, placement)[0].tolist()
    assert (right - left, bottom - top) == pytest.approx((resized[1], resized[0]))
    assert left == (input_width - resized[1]) // 2 and top == (input_height - resized[0]) // 2
    torch.testing.assert_close(boxes.to_original(boxes.to_input(picture, placement), placement), picture)


def test_placements_of_a_batch():
    placements = [boxes.letterbox_placement((576, 768), (416, 416)), boxes.stretch_placement((50, 200), (64, 96))]
    assert placements[1] == (0.48, 1.28, 0, 0)
    original = random_boxes(6).reshape(2, 3, 4)
    moved = boxes.to_input(original, torch.tensor(placements, dtype=torch.float64))
    for i, placement in enumerate(placements):
        torch.testing.assert_close(moved[i], boxes.to_input(original[i], placement))
    torch.testing.assert_close(boxes.to_original(moved, torch.tensor(placements, dtype=torch.float64)), original)
    assert boxes.to_original(NONE, placements[0]).shape == (0, 4)


@pytest.mark.parametrize("place", [boxes.letterbox_size, boxes.letterbox_placement, boxes.stretch_placement])
def test_sizes_must_be_positive(place):
    with pytest.raises(ValueError, match=r"must be positive \(height, width\), not \(0, 5\) and \(416, 416\)"):
        place((0, 5), (416, 416))
