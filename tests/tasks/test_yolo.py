"""YOLOv3's decoding, targets and loss, and what other heads change."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from convzoo.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from convzoo.models import yolov3
from convzoo.models.yolov3 import ANCHORS_PX, STRIDES
from convzoo.tasks.heads import decode_heads
from convzoo.tasks.yolo import LevelTargets, assign_targets, ignore_masks, yolo_loss
from convzoo.types import Head

ANCHORS = torch.tensor(ANCHORS_PX, dtype=torch.float32)
# A small case, not square: 2 levels of 2 anchors, 3 classes, an input of 32x48.
SMALL = (Head(8, ((8, 4), (4, 8))), Head(16, ((24, 12), (12, 24))))
ASSIGN = {"heads": SMALL, "image_size": (32, 48), "num_classes": 3}


def small_heads(images: int = 2, seed: int = 0, **options) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, 16, 32 // s, 48 // s, generator=generator, **options) for s in (8, 16)]


def assign(cxcywh: list, labels: list | None = None, images: list | None = None, **options) -> list[LevelTargets]:
    """Assign boxes of the small case; label 0 of image 0 if not said."""
    count = len(cxcywh)
    boxes = cxcywh_to_xyxy(torch.tensor(cxcywh, dtype=torch.float32).reshape(count, 4))
    indices = [torch.tensor(given or [0] * count, dtype=torch.int64) for given in (labels, images)]
    return assign_targets(boxes, *indices, **{**ASSIGN, **options})


def places(targets: list[LevelTargets]) -> list[set[tuple]]:
    """Return for each level the set of (image, anchor, row, column)."""
    return [set(zip(*(part.tolist() for part in target[:4]), strict=True)) for target in targets]


def nothing_ignored(heads: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.zeros(len(head), 2, *head.shape[2:], dtype=torch.bool) for head in heads]


def test_decode_equals_the_formulas_one_by_one():
    heads = small_heads()
    boxes_xyxy, scores = decode_heads(heads, SMALL)
    assert boxes_xyxy.shape == (2, 2 * 24 + 2 * 6, 4) and scores.shape == (2, 60, 3)
    sigmoid = lambda t: 1 / (1 + math.exp(-t))
    for image in range(2):
        n = 0
        for head, (stride, anchors, *_) in zip(heads, SMALL, strict=True):
            for a, (anchor_w, anchor_h) in enumerate(anchors):
                for row in range(head.shape[2]):
                    for column in range(head.shape[3]):
                        tx, ty, tw, th, obj, *classes = head[image, 8 * a : 8 * a + 8, row, column].tolist()
                        x, y = (sigmoid(tx) + column) * stride, (sigmoid(ty) + row) * stride
                        w, h = anchor_w * math.exp(tw), anchor_h * math.exp(th)
                        wanted = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                        assert boxes_xyxy[image, n].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-4)
                        wanted = [sigmoid(obj) * sigmoid(c) for c in classes]
                        assert scores[image, n].tolist() == pytest.approx(wanted, rel=1e-5)
                        n += 1


def test_decode_computes_half_precision_in_float32():
    heads = [head.bfloat16() for head in small_heads()]
    widened = decode_heads([head.float() for head in heads], SMALL)
    for ours, wanted in zip(decode_heads(heads, SMALL), widened, strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, wanted)
    assert decode_heads(small_heads(dtype=torch.float64), SMALL)[0].dtype == torch.float64


@pytest.mark.parametrize(
    "channels, message",
    [
        ((15, 15), "not 15 for 2, 15 for 2"),
        ((10, 10), "K >= 1"),
        ((16, 14), "16 for 2, 14 for 2"),
        ((16,), "1 maps of 2 heads"),
    ],
)
def test_decode_refuses_heads_that_do_not_fit(channels, message):
    heads = [torch.zeros(1, n, 4, 6) for n in channels]
    with pytest.raises(ValueError, match=message):
        decode_heads(heads, SMALL)


def test_decode_equals_the_mindspore_program(mindspore_outputs):
    folder = mindspore_outputs / "yolov3"
    for output, level in ((0, 2), (1, 1)):
        raw = torch.from_numpy(np.load(folder / f"output_raw_{output}.npy"))
        detect = torch.from_numpy(np.load(folder / f"output_detect_{output}.npy")).permute(0, 3, 1, 2, 4).flatten(1, 3)
        boxes_xyxy, scores = decode_heads([raw], yolov3.heads()[level : level + 1])
        side_px = raw.shape[-1] * STRIDES[level]
        torch.testing.assert_close(xyxy_to_cxcywh(boxes_xyxy) / side_px, detect[..., :4], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(scores, detect[..., 4:5] * detect[..., 5:], rtol=1e-5, atol=1e-6)


def test_assignment_by_hand():
    fine, coarse = assign([[13, 21, 8, 5], [40, 17, 10, 20]], labels=[2, 1], images=[1, 0])
    assert places([fine, coarse]) == [{(1, 0, 2, 1)}, {(0, 1, 1, 2)}]
    torch.testing.assert_close(fine.offsets_xy, torch.tensor([[5 / 8, 5 / 8]]))
    torch.testing.assert_close(fine.log_wh, torch.tensor([[0, math.log(5 / 4)]]))
    torch.testing.assert_close(fine.weights, torch.tensor([2 - 40 / (32 * 48)]))
    assert fine.class_probs.tolist() == [[0, 0, 1]] and coarse.class_probs.tolist() == [[0, 1, 0]]
    torch.testing.assert_close(coarse.offsets_xy, torch.tensor([[8 / 16, 1 / 16]]))
    torch.testing.assert_close(coarse.log_wh, torch.tensor([[10 / 12, 20 / 24]]).log())


def test_targets_decode_to_the_boxes_they_came_from():
    generator = torch.Generator().manual_seed(3)
    cxcywh = torch.rand(20, 4, generator=generator) * torch.tensor([48.0, 32, 30, 30]) + torch.tensor([0.0, 0, 1, 1])
    images = torch.arange(20)  # one box an image
    targets = assign_targets(cxcywh_to_xyxy(cxcywh), torch.zeros(20, dtype=torch.int64), images, **ASSIGN)
    heads = [torch.full((20, 16, 32 // s, 48 // s), -9.0) for s in (8, 16)]
    for head, target in zip(heads, targets, strict=True):
        values = torch.cat([target.offsets_xy.logit(), target.log_wh], 1)
        head.unflatten(1, (2, 8))[target.image, target.anchor, :4, target.row, target.column] = values
        head.unflatten(1, (2, 8))[target.image, target.anchor, 4, target.row, target.column] = 9.0
    boxes_xyxy, scores = decode_heads(heads, SMALL)
    torch.testing.assert_close(
        xyxy_to_cxcywh(boxes_xyxy[images, scores.amax(2).argmax(1)]), cxcywh, rtol=1e-4, atol=1e-3
    )


def test_several_boxes_in_one_cell_each_get_a_prediction():
    # All in fine cell (row 2, column 1), all best fitted by the fine 8x4 anchor; the middle one fits it exactly.
    near = [[13, 21, 8, 5], [13, 21, 8, 4], [13, 21, 7, 4]]
    targets = assign(near, labels=[0, 1, 2])
    held = targets[0].class_probs[targets[0].anchor == 0].argmax(1)
    assert held.tolist() == [1]
    assert sum(len(target.image) for target in targets) == 3 and sum(map(len, places(targets))) == 3
    backwards = assign(near[::-1], labels=[2, 1, 0])
    assert places(backwards) == places(targets)
    label_at = lambda levels: [
        dict(zip(t.anchor.tolist(), t.class_probs.argmax(1).tolist(), strict=True)) for t in levels
    ]
    assert label_at(backwards) == label_at(targets)
    # The same cell of another image is no conflict.
    assert places(assign(near[:2], images=[0, 1]))[0] == {(0, 0, 2, 1), (1, 0, 2, 1)}
    # Equal boxes: the first gets the best anchor; a fifth finds all four anchors of its cells taken.
    equal = assign([near[1]] * 5, labels=[0, 1, 2, 0, 1])
    assert equal[0].class_probs[equal[0].anchor == 0].argmax(1).tolist() == [0]
    assert [len(target.image) for target in equal] == [2, 2]


def test_centres_at_and_beyond_the_edges_and_boxes_without_area():
    fine, _ = assign([[48, 32, 8, 4], [-1, 5, 8, 4], [20, 20, 0, 5], [20, 20, 5, -1]])
    assert places([fine]) == [{(0, 0, 3, 5), (0, 0, 0, 0)}]
    assert sorted(fine.offsets_xy.tolist()) == [[0, 5 / 8], [1, 1]]


def test_no_boxes():
    heads = [head.requires_grad_() for head in small_heads()]
    targets = assign([])
    assert [len(part) for target in targets for part in target] == [0] * 16
    ignored = ignore_masks(heads, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), heads=SMALL)
    assert not any(mask.any() for mask in ignored) and ignored[0].shape == (2, 2, 4, 6)
    terms = yolo_loss(heads, targets, ignored)
    wanted = sum(F.softplus(head.unflatten(1, (2, 8))[:, :, 4]).sum() for head in heads)
    torch.testing.assert_close(terms["loss"], wanted / 2)
    assert not any(terms[name] for name in ("loss_xy", "loss_wh", "loss_class"))
    terms["loss"].backward()
    for head in heads:
        assert head.grad is not None
        gradient = head.grad.unflatten(1, (2, 8))
        assert gradient[:, :, 4].all() and not gradient[:, :, [0, 1, 2, 3, 5, 6, 7]].any()


def test_label_smoothing():
    fine, _ = assign([[13, 21, 8, 4]], labels=[1], label_smoothing=0.1)
    torch.testing.assert_close(fine.class_probs, torch.tensor([[0.05, 0.9, 0.05]]))
    fine, _ = assign([[13, 21, 8, 4]], label_smoothing=0.1, num_classes=1)
    torch.testing.assert_close(fine.class_probs, torch.tensor([[0.9]]))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"cxcywh": [[float("nan"), 5, 4, 4]]}, "not finite"),
        ({"cxcywh": [[5, 5, 4, 4]], "labels": [3]}, r"labels must be in 0\.\.2, not 3\.\.3"),
        ({"cxcywh": [], "image_size": (32, 40)}, r"32x40 pixels is not divided by strides \(8, 16\)"),
    ],
)
def test_refused_truth(change, message):
    with pytest.raises(ValueError, match=message):
        assign(**change)


def test_ignored_are_overlaps_with_any_box_of_the_same_image():
    heads = [torch.zeros(2, 16, 4, 6), torch.zeros(2, 16, 2, 3)]
    # Zero logits: each prediction is its anchor in the middle of its cell.
    boxes = cxcywh_to_xyxy(torch.tensor([[12.0, 20, 8, 4], [24, 8, 12 * 1.25, 24], [20, 20, 8, 5.8]]))
    ignored = ignore_masks(heads, boxes, torch.tensor([0, 0, 1]), heads=SMALL)
    assert ignored[0].nonzero().tolist() == [[0, 0, 2, 1]]
    assert ignored[1].nonzero().tolist() == [[0, 1, 0, 1]]  # 1 / 1.25 = 0.8
    lower = ignore_masks(heads, boxes, torch.tensor([0, 0, 1]), heads=SMALL, iou_threshold=0.6)
    assert lower[0].nonzero().tolist() == [[0, 0, 2, 1], [1, 0, 2, 2]]  # 4 / 5.8 = 0.69


def test_loss_by_hand_and_its_gradient_is_darknets():
    heads = [head.double().requires_grad_() for head in small_heads(images=1)]
    targets = assign([[13, 21, 8, 5]], labels=[2], label_smoothing=0.1)
    ignored = nothing_ignored(heads)
    ignored[0][0, 0, 2, 1] = True  # answers for the box: penalised all the same
    ignored[0][0, 1, 0, 0] = True
    terms = yolo_loss(heads, targets, ignored)
    t = heads[0].detach().unflatten(1, (2, 8))[0, 0, :, 2, 1]
    weight, bce = 2 - 40 / (32 * 48), lambda logit, truth: F.softplus(logit) - truth * logit
    xy = weight * (bce(t[0], 0.625) + bce(t[1], 0.625))
    wh = weight * 0.5 * (t[2] ** 2 + (t[3] - math.log(5 / 4)) ** 2)
    class_ = bce(t[5], 0.05) + bce(t[6], 0.05) + bce(t[7], 0.9)
    background = sum(F.softplus(head.detach().unflatten(1, (2, 8))[:, :, 4]).sum() for head in heads)
    objectness = background - t[4] - F.softplus(heads[0][0, 12, 0, 0].detach())
    for name, wanted in zip(("xy", "wh", "objectness", "class"), (xy, wh, objectness, class_), strict=True):
        torch.testing.assert_close(terms[f"loss_{name}"].detach(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(terms["loss"].detach(), xy + wh + objectness + class_, rtol=1e-6, atol=1e-6)

    terms["loss"].backward()
    gradients = [head.grad.unflatten(1, (2, 8)) for head in heads if head.grad is not None]
    assert len(gradients) == len(heads)
    # -delta of Darknet's yolo_layer, with smoothed classes
    coordinates = [weight * (t[:2].sigmoid() - 0.625), weight * (t[2:4] - torch.tensor([0, math.log(5 / 4)]))]
    wanted = torch.cat([*coordinates, t[4:5].sigmoid() - 1, t[5:].sigmoid() - torch.tensor([0.05, 0.05, 0.9])])
    torch.testing.assert_close(gradients[0][0, 0, :, 2, 1], wanted, rtol=1e-6, atol=1e-6)
    gradients[0][0, 0, :, 2, 1] = 0
    assert gradients[0][0, 1, 4, 0, 0] == 0
    for gradient in gradients:
        assert not gradient[:, :, [0, 1, 2, 3, 5, 6, 7]].any()
    assert int(gradients[0][:, :, 4].count_nonzero()) == 48 - 2 and gradients[1][:, :, 4].all()


def test_loss_of_images_is_the_mean_of_each_alone():
    heads = small_heads()
    boxes = [[13, 21, 8, 5], [40, 17, 10, 20], [7, 7, 20, 20]]
    both = yolo_loss(heads, assign(boxes, [0, 1, 2], [0, 1, 1]), nothing_ignored(heads))
    one, other = [head[:1] for head in heads], [head[1:] for head in heads]
    first = yolo_loss(one, assign(boxes[:1], [0]), nothing_ignored(one))
    second = yolo_loss(other, assign(boxes[1:], [1, 2]), nothing_ignored(other))
    for name, value in both.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2)


def test_loss_refuses_heads_of_other_classes():
    heads = small_heads()
    with pytest.raises(ValueError, match=r"16 channels, not 2\*\(5\+K\), K = 4"):
        yolo_loss(heads, assign([], num_classes=4), nothing_ignored(heads))


def load_levels(outputs) -> list[dict[str, torch.Tensor]]:
    """Return the MindSpore program's raw heads, targets and boxes of each scale, finest first."""
    folder = outputs / "yolov3_loss"
    names = ("scale_2_s.npz", "scale_1_m.npz", "scale_0_l.npz")
    return [{key: torch.from_numpy(value) for key, value in np.load(folder / name).items()} for name in names]


def test_loss_equals_the_mindspore_program_given_its_targets_and_mask(mindspore_outputs):
    wanted = json.loads((mindspore_outputs / "yolov3_loss/loss.json").read_text())
    maps, targets, ignored = [], [], []
    for level, arrays in enumerate(load_levels(mindspore_outputs)):
        side_px = arrays["raw"].shape[-1] * STRIDES[level]
        y_true = arrays["y_true"]
        image, row, column, anchor = (y_true[..., 4] > 0).nonzero(as_tuple=True)
        truth = y_true[image, row, column, anchor]
        offsets = truth[:, :2] * (side_px // STRIDES[level]) - torch.stack([column, row], 1)
        log_wh, weights = (truth[:, 2:4] * side_px / ANCHORS[level, anchor]).log(), 2 - truth[:, 2] * truth[:, 3]
        targets.append(LevelTargets(image, anchor, row, column, offsets, log_wh, weights, truth[:, 5:]))
        maps.append(arrays["raw"])
        listed = arrays["gt"][..., 2] > 0  # the mask of a scale knows the boxes of that scale alone
        boxes = cxcywh_to_xyxy(arrays["gt"][listed] * side_px)
        ignored += ignore_masks(maps[-1:], boxes, listed.nonzero()[:, 0], heads=yolov3.heads()[level : level + 1])
        terms = yolo_loss(maps[-1:], targets[-1:], ignored[-1:])
        ours = [float(terms[name]) for name in ("loss", "loss_xy", "loss_wh", "loss_objectness", "loss_class")]
        assert ours == pytest.approx(
            [wanted["sml"[level]][name] for name in ("loss", "xy", "wh", "conf", "cls")], rel=1e-6
        )
    assert float(yolo_loss(maps, targets, ignored)["loss"]) == pytest.approx(wanted["total"], rel=1e-6)


def test_assignment_equals_the_mindspore_program_for_floored_centres(mindspore_outputs):
    boxes = torch.from_numpy(np.load(mindspore_outputs / "yolov3_loss/boxes.npy"))
    levels = load_levels(mindspore_outputs)
    side_px, num_classes = levels[0]["raw"].shape[-1] * STRIDES[0], levels[0]["y_true"].shape[-1] - 5
    listed = boxes[..., 2] > 0
    image, rows = listed.nonzero()[:, 0], boxes[listed]
    floored = xyxy_to_cxcywh(rows[:, :4])
    floored[:, :2] = floored[:, :2].floor()
    options = {"image_size": (side_px, side_px), "heads": yolov3.heads(), "num_classes": num_classes}
    targets = assign_targets(cxcywh_to_xyxy(floored), rows[:, 4].long(), image, **options)
    on_the_line = 0
    for target, arrays, stride in zip(targets, levels, STRIDES, strict=True):
        y_true = arrays["y_true"]
        assert len(target.image) == int(y_true[..., 4].sum())
        for i, (b, a, row, column) in enumerate(zip(*(part.tolist() for part in target[:4]), strict=True)):
            if y_true[b, row, column, a, 4] == 0:
                # A centre exactly on a cell's border, which that program's float32 puts into the cell before.
                row, column = (
                    row - (target.offsets_xy[i, 1] < 1e-6).int(),
                    column - (target.offsets_xy[i, 0] < 1e-6).int(),
                )
                on_the_line += 1
            theirs = y_true[b, row, column, a].double()
            assert theirs[4] == 1 and torch.equal(theirs[5:], target.class_probs[i])
            sizes = target.log_wh[i].exp() * ANCHORS[STRIDES.index(stride), a]
            torch.testing.assert_close(sizes, theirs[2:4] * side_px, rtol=1e-5, atol=1e-5)
    assert on_the_line <= 2


# The fine head of the small case holds the coarse one's first anchor, and that one has three, as in yolov3-tiny.
SHARING = (Head(16, ((24, 12), (12, 24), (30, 30))), Head(8, ((4, 8), (24, 12))))


def test_every_head_that_holds_the_anchor_learns_the_box_in_any_order():
    box = [20, 14, 23, 13]
    for heads in (SHARING, SHARING[::-1]):
        targets = dict(zip(heads, assign([box], labels=[1], heads=heads), strict=True))
        coarse, fine = (targets[head] for head in SHARING)
        assert places([coarse, fine]) == [{(0, 0, 0, 1)}, {(0, 1, 1, 2)}]
        assert coarse.class_probs.tolist() == fine.class_probs.tolist() == [[0, 1, 0]]
        torch.testing.assert_close(coarse.offsets_xy, torch.tensor([[4 / 16, 14 / 16]]))
        torch.testing.assert_close(fine.offsets_xy, torch.tensor([[4 / 8, 6 / 8]]))
        assert torch.equal(coarse.log_wh, fine.log_wh) and torch.equal(coarse.weights, fine.weights)
    # An anchor that no head holds is no candidate: 8x4 is learned by what is nearest of the rest.
    assert [len(target.image) for target in assign([[20, 14, 8, 4]], heads=SHARING)] == [0, 1]


@pytest.mark.parametrize("heads", [SHARING, SHARING[::-1]])
def test_boxes_that_share_an_anchor_lose_nothing_to_each_other_but_a_second_place(heads):
    # One coarse cell, two fine ones: the better fit has the coarse prediction, both have a fine one.
    pair = [[20, 4, 24, 12], [28, 12, 22, 12]]
    for boxes, better in ((pair, 0), (pair[::-1], 1)):
        coarse, fine = sorted(assign(boxes, labels=[0, 1], heads=heads), key=lambda target: len(target.image))
        assert coarse.class_probs.argmax(1).tolist() == [better] and coarse.anchor.tolist() == [0]
        assert sorted(fine.class_probs.argmax(1).tolist()) == [0, 1] and fine.anchor.tolist() == [1, 1]
    # One cell in both: a place each, none for a second head.
    targets = assign([[20, 4, 24, 12], [21, 5, 22, 12]], labels=[0, 1], heads=heads)
    assert sorted(label for t in targets for label in t.class_probs.argmax(1).tolist()) == [0, 1]
    generator = torch.Generator().manual_seed(1)
    crowd = torch.rand(12, 4, generator=generator) * torch.tensor([48.0, 32, 25, 25]) + torch.tensor([0.0, 0, 3, 3])
    images = [0, 1] * 6
    targets = assign(crowd.tolist(), images=images, heads=heads)
    assert all(len(set_) == len(target.image) for set_, target in zip(places(targets), targets, strict=True))
    assert len({round(float(weight), 5) for target in targets for weight in target.weights}) == 12  # none is lost


@pytest.mark.parametrize("scale", [1.0, 1.05, 1.2, 2.0])
def test_a_stretched_centre_is_learned_where_it_decodes_to_the_box(scale):
    heads = tuple(head._replace(scale_x_y=scale) for head in SMALL)
    boxes = [[13, 21, 8, 5], [40, 17, 10, 20], [16, 24, 9, 5], [24, 16, 8, 4]]  # the last two on borders of cells
    targets = assign(boxes, images=[0, 1, 2, 3], heads=heads)
    plain = assign(boxes, images=[0, 1, 2, 3])
    for target, other in zip(targets, plain, strict=True):
        torch.testing.assert_close(scale * target.offsets_xy - (scale - 1) / 2, other.offsets_xy)
        assert scale > 1 or torch.equal(target.offsets_xy, other.offsets_xy)
    maps = [map_.double().requires_grad_() for map_ in small_heads(images=4)]
    ignored = nothing_ignored(maps)
    optimizer = torch.optim.LBFGS(maps, max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = yolo_loss(maps, targets, ignored)["loss"]
        loss.backward()
        return loss

    optimizer.step(closure)
    boxes_xyxy, scores = decode_heads(maps, heads)
    best = scores.amax(2).argmax(1)
    learned = xyxy_to_cxcywh(boxes_xyxy[torch.arange(4), best])
    inner = slice(None) if scale > 1 else slice(0, 2)  # a plain sigmoid reaches a border only far out
    torch.testing.assert_close(learned[inner].float(), torch.tensor(boxes)[inner].float(), rtol=0, atol=0.02)


def test_gradients_of_the_loss_through_shared_anchors_and_stretched_centres_are_its_differences():
    heads = (SHARING[0]._replace(scale_x_y=1.1), SHARING[1]._replace(scale_x_y=1.05))
    generator = torch.Generator().manual_seed(2)
    maps = [
        torch.randn(1, len(head.anchors_px) * 8, 32 // head.stride, 48 // head.stride, generator=generator).double()
        for head in heads
    ]
    boxes = cxcywh_to_xyxy(torch.tensor([[20.0, 14, 23, 13], [40, 8, 5, 9]]).double())
    index = torch.zeros(2, dtype=torch.int64)
    targets = assign_targets(boxes, index + 1, index, **{**ASSIGN, "heads": heads})
    assert [len(target.image) for target in targets] == [1, 2]
    ignored = ignore_masks(maps, boxes, index, heads=heads, iou_threshold=0.3)
    assert [tuple(mask.shape) for mask in ignored] == [(1, 3, 2, 3), (1, 2, 4, 6)]
    maps = [map_.requires_grad_() for map_ in maps]
    assert torch.autograd.gradcheck(lambda *maps: yolo_loss(maps, targets, ignored)["loss"], maps)
