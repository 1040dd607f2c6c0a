"""Boxes move with their pixels: a painted rectangle is found where its box says, whatever the operation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from convzoo.boxes import to_original
from convzoo.config import registry
from convzoo.data.transforms.boxes import IN_TRAIN
from convzoo.data.transforms.pipeline import Pipeline, interpolated
from convzoo.types import Boxes, Key, Sample

RED, BLACK = (255, 0, 0), (0, 0, 0)


def boxes(*xyxy, labels=None):
    corners = np.array(xyxy, dtype=float).reshape(-1, 4)
    count = len(corners)
    return Boxes(
        corners, np.array(labels or [0] * count), np.zeros(count, dtype=bool), (corners[:, 2:] - corners[:, :2]).prod(1)
    )


def painted(height, width, *xyxy):
    """A black picture with red rectangles, whole pixels each, and their boxes."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for left, top, right, bottom in xyxy:
        image[0, top:bottom, left:right] = 255
    return Sample(image, boxes(*xyxy), 0, "p.png", (height, width))


def apply(sample, *operations, seed=0, size_px=None, another=None, epoch=0):
    bound = [registry.bind("transform", {"name": name, **keys}) for name, keys in operations]
    return Pipeline(bound, seed)(sample, Key(epoch, 0, size_px), another)


def red_extent(image):
    """The corners of what is red, to half a pixel."""
    red = (image[0].int() - image[1].int()) > 127
    rows, columns = red.any(1).nonzero()[:, 0], red.any(0).nonzero()[:, 0]
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(40, 200),
    width=st.integers(40, 200),
    where=st.integers(0, 10**6),
    size=st.sampled_from([96, 128, (64, 160)]),
)
def test_letterbox_and_stretch_and_flip_move_boxes_with_pixels(height, width, where, size):
    rng = np.random.default_rng(where)
    left, top = int(rng.integers(0, width - 20)), int(rng.integers(0, height - 20))
    box = (left, top, int(rng.integers(left + 15, width)), int(rng.integers(top + 15, height)))
    picture = painted(height, width, box)
    mirrored = ("flip_lr", {"prob": 1.0})
    for operations in (
        [("letterbox", {"size_px": size})],
        [("letterbox", {"size_px": size, "align_corners": True})],
        [("resize", {"size_px": 128, "mode": "stretch"})],
        [mirrored, ("letterbox", {"size_px": size})],
        [("letterbox", {"size_px": size}), mirrored],
    ):
        done = apply(picture, *operations)
        assert np.abs(red_extent(done.image) - done.target.xyxy[0]).max() <= 1.5
        assert done.truth is picture.target and done.original_hw == (height, width)
        if mirrored not in operations:
            back = to_original(torch.from_numpy(done.target.xyxy), done.placement).numpy()
            assert np.allclose(back, picture.target.xyxy)


def test_letterbox_by_hand():
    done = apply(painted(100, 200, (0, 0, 200, 100)), ("letterbox", {"size_px": 64}))
    assert done.image.shape == (3, 64, 64) and done.target.xyxy.tolist() == [[0, 16, 64, 48]]
    assert (
        (done.image[:, :16] == 128).all() and (done.image[:, 48:] == 128).all() and (done.image[0, 16:48] == 255).all()
    )
    assert tuple(done.placement) == (0.32, 0.32, 0, 16)


@pytest.mark.parametrize("hw", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("name", ["letterbox", "random_place"])
def test_pictures_of_extreme_shape(hw, name):
    done = apply(painted(*hw, (0, 0, hw[1], hw[0])), (name, {"size_px": 64}))
    assert done.image.shape == (3, 64, 64) and np.isfinite(done.target.xyxy).all()


def test_the_batch_says_the_size():
    picture = painted(50, 80, (10, 10, 30, 30))
    for name, keys in (("letterbox", {}), ("random_place", {}), ("resize", {"size_px": 64, "mode": "stretch"})):
        assert apply(picture, (name, keys), size_px=96).image.shape == (3, 96, 96)


def test_random_place_moves_boxes_with_pixels_and_cuts_them():
    picture = painted(120, 160, (40, 30, 120, 90))
    cut = shrunk = 0
    for epoch in range(200):
        done = apply(picture, ("random_place", {"size_px": 96}), epoch=epoch)
        (box,) = done.target.xyxy
        assert (box >= 0).all() and (box <= 96).all()
        assert np.abs(red_extent(done.image) - box).max() <= 2
        full = to_original(torch.from_numpy(box[None]), done.placement).numpy()[0]
        cut += not np.allclose(full, picture.target.xyxy[0])
        shrunk += done.placement.scale_x < 0.5
    assert 20 < cut < 180 and 20 < shrunk < 180


def test_random_place_is_a_function_of_seed_and_key():
    picture = painted(120, 160, (40, 30, 120, 90))
    first, again = (apply(picture, ("random_place", {"size_px": 96}), seed=3, epoch=5) for _ in range(2))
    other = apply(picture, ("random_place", {"size_px": 96}), seed=3, epoch=6)
    assert torch.equal(first.image, again.image) and (first.target.xyxy == again.target.xyxy).all()
    assert first.placement != other.placement


def test_a_picture_with_objects_keeps_one_and_one_without_stays_empty():
    corner = painted(400, 400, (0, 0, 6, 6))
    keys = {"size_px": 96, "scale": (1.9, 2.0), "jitter": 0.0}
    assert all(len(apply(corner, ("random_place", keys), epoch=epoch).target) == 1 for epoch in range(50))
    empty = painted(400, 400)
    assert len(apply(empty, ("random_place", keys)).target) == 0


def test_boxes_of_which_too_little_is_left_go():
    picture = painted(100, 100, *[(x, y, x + 10, y + 10) for x in range(0, 100, 20) for y in range(0, 100, 20)])
    counts = []
    for share in (0.0, 0.9):
        keys = {"size_px": 96, "scale": (1.5, 2.0), "min_visible": share}
        counts.append(sum(len(apply(picture, ("random_place", keys), epoch=epoch).target) for epoch in range(30)))
    assert 0 < counts[1] < counts[0] < 30 * 25


def test_mosaic_shows_four_pictures_and_their_boxes():
    picture = painted(120, 160, (40, 30, 120, 90))
    drawn = []

    def another(rng):
        drawn.append(int(rng.integers(100)))
        other = painted(120, 160, (60, 40, 100, 80))
        other.target.labels[:] = 7
        return other

    keys = {"size_px": 128, "mosaic_prob": 1.0, "scale": (0.8, 1.2)}
    for epoch in range(20):
        done = apply(picture, ("random_place", keys), epoch=epoch, another=another)
        assert done.image.shape == (3, 128, 128) and set(done.target.labels.tolist()) <= {0, 7}
        near = torch.zeros(128, 128, dtype=torch.bool)
        red = (done.image[0].int() - done.image[1].int()) > 127
        for left, top, right, bottom in done.target.xyxy.round().astype(int):
            near[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = True
            assert red[top + 2 : bottom - 2, left + 2 : right - 2].all()
        assert (red & ~near).sum() <= 150  # slivers thinner than a box may be are left out
    assert len(drawn) == 60


def test_colours_and_cutout_leave_boxes_alone():
    picture = painted(64, 64, (10, 20, 30, 40))
    for name in set(IN_TRAIN) - {"letterbox", "resize", "random_place", "flip_lr"}:
        keys = {"size_px": 8} if name == "cutout" else {}
        assert (apply(picture, (name, keys)).target.xyxy == picture.target.xyxy).all()


def test_the_zoos_interpolation_is_pillows():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for size, method in (
        ((80, 90), Image.Resampling.BICUBIC),
        ((20, 30), Image.Resampling.NEAREST),
        ((20, 90), Image.Resampling.BILINEAR),
    ):
        ours = interpolated(torch.from_numpy(picture).permute(2, 0, 1), list(size), "by_scale", True)
        theirs = np.asarray(Image.fromarray(picture).resize((size[1], size[0]), method))
        off = np.abs(ours.permute(1, 2, 0).numpy().astype(int) - theirs.astype(int))
        assert off.max() <= 2 and off.mean() < 0.3  # Pillow rounds between its two passes
