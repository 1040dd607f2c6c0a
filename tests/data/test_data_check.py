"""`data check`, `data stats` and `data save` on data sets with boxes, and the anchors that are found for them."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_boxed_data import coco_tree, document, save_picture, voc_tree, yolo_tree

from convzoo.boxes import letterbox_placement, to_input
from convzoo.config import registry
from convzoo.data.checks.anchors import find_anchors, letterboxed_sizes, mean_best_iou
from convzoo.data.checks.boxes import BoxAccount, box_stats, choose, gather
from convzoo.data.datasets.boxed import BoxedImages
from convzoo.data.datasets.coco import coco
from convzoo.data.datasets.digit_scenes import digit_scenes
from convzoo.errors import DataError
from convzoo.models.yolov3 import ANCHORS_PX
from convzoo.report.draw_boxes import colour_of
from convzoo.types import Boxes, Sample
from helpers import SMALL_CFG, one_line

COCO_ANCHORS = np.reshape(ANCHORS_PX, (-1, 2))


def sample_of(*xyxy, labels=None, crowd=None):
    count = len(xyxy)
    boxes = Boxes(
        np.array(xyxy, float).reshape(-1, 4),
        np.array(labels or [0] * count, np.int64),
        np.array(crowd or [False] * count, bool),
        np.zeros(count),
    )
    return Sample(torch.zeros(3, 30, 40, dtype=torch.uint8), boxes, 0, "dir/a.png", (30, 40))


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((0, 0, 40, 30), "huge"),
        ((-0.4, 0, 40.4, 30.4), "huge"),  # not outside: rounding
        ((-1, 0, 9, 9), "partly_outside"),
        ((30, 0, 41, 9), "partly_outside"),
        ((0, 25, 9, 31), "partly_outside"),
        ((40, 0, 50, 9), "wholly_outside"),
        ((0, -9, 9, 0), "wholly_outside"),
        ((5, 5, 5, 9), "empty"),
        ((50, 5, 50, 9), "empty"),
        ((5, 5, 6, 9), "at_most_a_pixel_thick"),
    ],
)
def test_what_is_remarkable_about_a_box(box, kind):
    account = BoxAccount()
    account.look_at(sample_of((1, 1, 9, 9), box), ["cat"])
    assert {key: count for key, count in account.counts.items() if count} == ({kind: 1} if kind else {})
    if kind:
        corners = " ".join(map(str, box))
        assert account.named[kind] == [f"dir/a.png: object 2 (cat): {corners} in 40x30"]


def test_duplicates_have_the_same_class_and_corners_in_one_picture():
    account, box = BoxAccount(), (1, 1, 9, 9)
    account.look_at(sample_of(box, box, box, (1, 1, 9, 8)), ["cat", "dog"])
    assert account.counts["duplicate"] == 2 and len(account.named["duplicate"]) == 2
    account.look_at(sample_of(box, box, labels=[0, 1]), ["cat", "dog"])
    account.look_at(sample_of(box, box, crowd=[True, False]), ["cat", "dog"])
    account.look_at(sample_of(), ["cat", "dog"])
    assert account.counts["duplicate"] == 2
    assert (account.objects, account.without_objects) == (8, 1)


def test_findings_are_counted_and_only_the_first_are_kept():
    account = BoxAccount()
    for _ in range(3):
        account.look_at(sample_of(*[(-9, -9, 5, i + 1) for i in range(1, 12)]), ["cat"])
    assert account.counts["partly_outside"] == 33 and len(account.named["partly_outside"]) == 20


def faulty_tree(root):
    plain = document()
    plain["annotations"] += [
        {"id": 10, "image_id": 9, "category_id": 18, "bbox": [1, 2, 3, 4.5]},
        {"id": 11, "image_id": 9, "category_id": 18, "bbox": [-5, 2, 9, 9]},
        {"id": 12, "image_id": 4, "category_id": 18, "bbox": [100, 2, 9, 9]},
    ]
    coco_tree(root, plain)
    coco_tree(root, file="annotations/instances_val2017.json", folder="val2017")
    save_picture(root / "val2017/a.png", 40, 31)
    save_picture(root / "val2017/b.png", 40, 30)
    return root


def test_data_check_names_what_is_wrong_and_fails_where_training_would(run, tmp_path):
    root = faulty_tree(tmp_path)
    code, out, err = run("data", "check", "coco", "--data", root)
    assert code == 3 and one_line(err) == "convzoo: 1 pictures have another size than annotated"
    assert "train: 3 images, 0 unreadable, 0 of another size than annotated" in out
    assert "val: 3 images, 0 unreadable, 1 of another size than annotated" in out and "40x31 pixels" in out
    assert "6 objects; 1 images have none" in out
    assert "1 partly outside, 1 wholly outside, 1 empty, 0 at most a pixel thick, 1 duplicate" in out
    assert "b.png: object 4 (dog): -5 2 4 11 in 40x30" in out and "a.png: object 2 (dog): 100 2 109 11" in out
    assert "in both splits: 2" in out
    save_picture(root / "val2017/a.png")
    code, out, err = run("data", "check", "coco", "--data", root)
    assert code == 0 and err == ""
    (root / "train2017/b.png").write_bytes(b"")
    code, out, err = run("data", "check", "coco", "--data", root, "--json")
    found = json.loads(out)
    assert code == 3 and "1 pictures cannot be read" in one_line(err)
    assert "b.png: empty file" in found["train"]["unreadable"][0] and found["val"]["mismatched"] == []
    assert found["train"]["boxes"]["wholly_outside"]["count"] == 1
    assert found["val"]["boxes"]["empty"] == {
        "count": 1,
        "first": [f"{root}/val2017/b.png: object 2 (cat): 0 0 40 0 in 40x30"],
    }
    assert found["val"]["per_class"] == {"cat": 2, "dog": 1}


def test_data_check_of_pictures_none_of_which_can_be_read(run, tmp_path):
    root = yolo_tree(tmp_path)
    for path in root.glob("images/*/*.png"):
        path.write_bytes(b"no")
    code, out, err = run("data", "check", "yolo_txt", "--data", root)
    assert code == 3 and "3 pictures cannot be read" in one_line(err) and "2 unreadable" in out
    assert "of the boxes" not in out
    code, out, err = run("data", "stats", "yolo_txt", "--data", root)  # sizes of YOLO's boxes are those of the pictures
    assert code == 3 and "a.png: not a picture" in one_line(err)


def test_data_stats_counts_objects_and_pictures(run, tmp_path):
    root = faulty_tree(tmp_path)
    code, out, _ = run("data", "stats", "coco", "--data", root, "--json")
    train = json.loads(out)["train"]
    assert code == 0 and train["classes"] == {"cat": {"objects": 2, "images": 2}, "dog": {"objects": 4, "images": 2}}
    assert (train["images"], train["images_without_objects"], train["objects"], train["crowd"]) == (3, 1, 6, 1)
    assert train["objects_per_image"] == {"mean": 2.0, "most": 4} and train["sizes_hw"] == {"30x40": 3}
    assert (train["small"], train["medium"], train["large"]) == (5, 0, 0)
    code, out, _ = run("data", "stats", "coco", "--data", root)
    rows = [line.split() for line in out.splitlines()]
    assert ["dog", "4", "2", "1", "1"] in rows and ["objects", "6", "3"] in rows and ["40x30", "3", "3"] in rows


def test_sizes_are_shared_out_as_pycocotools_does():
    boxes = Boxes(
        np.zeros((5, 4)), np.zeros(5, np.int64), np.array([0, 0, 0, 0, 1], bool), np.array([5, 1023, 1024, 9216, 1.0])
    )
    found = box_stats(
        type(gather(digit_scenes(None, "val"), [0]))(boxes, np.zeros(5, np.int64), np.array([[9, 9]])), ["c"]
    )
    assert (found["small"], found["medium"], found["large"], found["crowd"]) == (2, 1, 1, 1)


def test_the_sheet_shows_every_class_and_is_drawn_on(run, coco_root, tmp_path):
    data = coco(coco_root, "train")
    chosen = choose(data, 12)
    assert len(set(chosen)) == 12 and chosen == sorted(chosen) == choose(data, 12)
    shown = {label for i in chosen for label in data.boxes(i).labels.tolist()}
    first = {label for i in range(12) for label in data.boxes(i).labels.tolist()}
    assert len(shown) > len(first)
    assert choose(data, 1000) == list(range(50))  # the one without objects too
    objects = Boxes(np.zeros((9, 4)), np.array([0, 0, 0, 0, 0, 1, 0, 0, 2]), np.zeros(9, bool), np.zeros(9))
    nine = BoxedImages(
        tmp_path, list("abcdefghi"), ["x", "y", "z"], objects, np.arange(9), stated_hw=np.ones((9, 2), int)
    )
    assert choose(nine, 3) == [0, 5, 8]
    code, _, _ = run("data", "stats", "digit_scenes", "max_train_images=48", "--sheet", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        counts = sheet.convert("RGB").getcolors(1 << 24)
    assert counts is not None
    colours = {colour for _, colour in counts}
    assert code == 0 and {colour_of(label) for label in range(3)} <= colours


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1)])
def test_a_sheet_of_extreme_pictures(run, tmp_path, width, height):
    root = yolo_tree(tmp_path)
    save_picture(root / "images/train/a.png", width, height)
    code, out, _ = run("data", "stats", "yolo_txt", "--data", root, "--sheet", tmp_path / "sheet.png")
    assert code == 0 and f"{width}x{height}" in out and (tmp_path / "sheet.png").is_file()


def test_data_save_writes_pictures_of_one_name_side_by_side(run, tmp_path):
    root = yolo_tree(tmp_path / "data")
    save_picture(root / "images/train/deep/a.png", 17, 9)
    code, out, _ = run("data", "save", "yolo_txt", "--data", root, "--split", "train", "--out", tmp_path / "out")
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert code == 0 and written == ["a-2.png", "a.png", "b.png"] and len(out.splitlines()) == 3
    with Image.open(tmp_path / "out/a-2.png") as picture:
        assert picture.size == (17, 9)


def test_keys_of_a_data_set_and_recipes_on_the_command_line(run, tmp_path):
    root = voc_tree(tmp_path, sets={"train": "a\nb", "val": "c"})
    first = lambda *keys: json.loads(run("data", "check", "voc", *keys, "--data", root, "--json")[1])["train"]["boxes"]
    assert first()["at_most_a_pixel_thick"]["first"][0].endswith("object 2 (dog): 4 5 7 6 in 40x30")
    assert first("one_based=false")["empty"]["first"][0].endswith("object 2 (dog): 5 6 7 6 in 40x30")
    assert first("data.one_based=false", "val_set=train")["empty"]["count"] == 1
    for key, words in [
        ("one_base=false", "command line: data.one_base: unknown key of dataset voc; did you mean 'one_based'?"),
        ("one_based=7", "command line: data.one_based: "),
        ("one_based", "not an override"),
        ("train_set=[", "not a YAML value"),
    ]:
        for verb in (["stats"], ["check"], ["save", "--out", tmp_path / "x"]):
            code, out, err = run("data", *verb, "voc", key, "--data", root)
            assert (code, out) == (2, "") and words in one_line(err)
    recipe = tmp_path / "mine.yaml"
    shipped = yaml.safe_load(run_recipe())
    recipe.write_text(yaml.safe_dump({**shipped, "data": {"name": "voc", "one_based": False, "train_set": "val"}}))
    code, out, _ = run("data", "stats", recipe, "train_set=train", "--data", root, "--json")
    assert code == 0 and json.loads(out)["train"]["images"] == 2
    assert run("data", "stats", "tinydarknet-digits")[1] == run("data", "stats", "digits")[1]
    code, _, err = run("data", "stats", "tinydarknet-digit")
    assert code == 2 and "did you mean 'tinydarknet-digits'?" in one_line(err)


def run_recipe():
    from convzoo.config.recipe import SHIPPED

    return (SHIPPED / "tinydarknet-digits.yaml").read_text()


def test_sizes_are_those_after_letterboxing(coco_root):
    data = coco(coco_root, "val")
    sizes = letterboxed_sizes(gather(data), (416, 416))
    wanted = []
    for i in range(len(data)):
        boxes, (height, width) = data.boxes(i), data.size_hw(i)
        kept = torch.from_numpy(boxes.xyxy[~boxes.crowd].clip(0, [width, height, width, height]))
        xyxy = to_input(kept, letterbox_placement((height, width), (416, 416)))
        wanted.append(xyxy[:, 2:] - xyxy[:, :2])
    assert sizes == pytest.approx(torch.cat(wanted).numpy(), rel=8e-3)  # whole pixels of the shorter side


def test_anchors_of_clusters_that_anybody_can_see():
    rng = np.random.RandomState(1)
    centres = np.array([[10, 12], [60, 20], [200, 220]])
    sizes = np.concatenate(
        [centre * rng.uniform(0.97, 1.03, (count, 2)) for centre, count in zip(centres, (50, 9, 200), strict=True)]
    )
    found = find_anchors(sizes, 3)
    assert found.sizes_px == [(10, 12), (60, 20), (200, 220)] and found.boxes == [50, 9, 200]
    assert found.mean_iou == pytest.approx(mean_best_iou(sizes, centres), abs=1e-9) and found.mean_iou > 0.95
    with pytest.raises(DataError, match="3 anchors cannot be found in 2 different sizes"):
        find_anchors(np.array([[1.0, 2], [1, 2], [3, 4]]), 3)


def test_mean_iou_by_hand():
    sizes, anchors = np.array([[10.0, 10], [20, 5]]), np.array([[10, 10], [10, 5]])
    assert mean_best_iou(sizes, anchors) == pytest.approx((1 + 0.5) / 2)


@pytest.mark.parametrize("split", ["train", "val"])
def test_anchors_of_its_own_boxes_are_better_than_those_of_coco(coco_root, split):
    sizes = letterboxed_sizes(gather(coco(coco_root, split)), (416, 416))
    found = find_anchors(sizes, 9)
    assert found == find_anchors(sizes, 9)
    assert found.mean_iou == pytest.approx(mean_best_iou(sizes, np.array(found.sizes_px)), abs=1e-12)
    assert found.mean_iou > mean_best_iou(sizes, COCO_ANCHORS) > 0.5
    areas = [width * height for width, height in found.sizes_px]
    assert areas == sorted(areas) and sum(found.boxes) == len(sizes)
    few = find_anchors(sizes, 3)
    assert few.mean_iou < found.mean_iou < find_anchors(sizes, 18).mean_iou


def test_more_boxes_than_are_searched_give_nearly_the_same_anchors(monkeypatch):
    sizes = letterboxed_sizes(gather(digit_scenes(None, "train")), (416, 416))
    assert len(sizes) > 1000
    whole = find_anchors(sizes, 9).mean_iou
    monkeypatch.setattr("convzoo.data.checks.anchors.SEARCHED", 500)
    assert find_anchors(sizes, 9).mean_iou == pytest.approx(whole, abs=0.01)


def test_the_anchors_line_goes_into_a_recipe(run):
    scenes = ["digit_scenes", "max_train_images=300"]
    count = len(gather(digit_scenes(None, "train", max_train_images=300)).boxes)
    code, out, _ = run("data", "stats", *scenes, "--anchors", 9, "--size", 320)
    *_, summary, line = out.splitlines()
    assert code == 0 and "letterboxed to 320x320" in summary and f"{count:,} training boxes" in summary
    with torch.device("meta"):
        registry.bind("model", {"name": "yolov3", "num_classes": 10, **yaml.safe_load(line)})()
    code, out, _ = run("data", "stats", *scenes, "--anchors", 9, "--size", 320, "--json")
    found = json.loads(out)["anchors"]
    assert found["anchors_px"] == yaml.safe_load(line)["anchors_px"] and 0.8 < found["mean_iou"] < 1
    for argv, words in (
        (["digit_scenes", "--anchors", "8"], "three for each scale"),
        (["digits", "--anchors", "9"], "has no boxes"),
        (["yolov3-tiny-digits", "--anchors", "9"], "the yolov3_tiny of this recipe has 6 at 2 scales"),
    ):
        code, out, err = run("data", "stats", *argv)
        assert code == 2 and words in one_line(err) and out == ""


def test_a_recipes_network_says_how_many_anchors_for_which_size(run):
    code, out, _ = run("data", "stats", "yolov3-tiny-digits", "max_train_images=100", "--anchors", 6)
    *_, summary, line = out.splitlines()
    assert code == 0 and "letterboxed to 128x128" in summary and "with this recipe's own" in summary
    model = {"name": "yolov3_tiny", "num_classes": 10, **yaml.safe_load(line)}
    with torch.device("meta"):
        heads = registry.bind("model", model)().heads
    assert [len(head.anchors_px) for head in heads] == [3, 3] and heads[0].stride == 16


def test_anchors_for_a_cfg_are_a_line_of_it(run, tmp_path):
    """Of a network that is 64 wide and 96 high the sizes are those of the letterboxed pictures in its own size."""
    (tmp_path / "my.cfg").write_text(SMALL_CFG)
    assert run("convert", tmp_path / "my.cfg", "--out", tmp_path / "my.yaml")[0] == 0
    keys = ["name=digit_scenes", "max_train_images=60"]
    code, out, err = run("data", "stats", tmp_path / "my.yaml", *keys, "--anchors", 2)
    assert code == 0, err
    *_, summary, line = out.splitlines()
    assert "letterboxed to 96x64" in summary and re.fullmatch(r"anchors = \d+,\d+, \d+,\d+", line)
    code, square, _ = run("data", "stats", tmp_path / "my.yaml", *keys, "--anchors", 2, "--size", 64)
    assert code == 0 and square.splitlines()[-1] == line  # the scenes are square: the shorter side decides


def test_the_embedded_scenes_are_looked_at_in_the_same_way(run, tmp_path):
    code, out, _ = run("data", "check", "digit_scenes", "max_train_images=8")
    assert code == 0 and "train: 8 images" in out and "0 partly outside, 0 wholly outside, 0 empty" in out
    code, out, _ = run("data", "save", "digit_scenes", "--out", tmp_path / "x", "--count", "5")
    assert code == 0 and len(out.splitlines()) == 5 == len(list((tmp_path / "x").iterdir()))


def test_train_and_val_with_other_classes_are_refused(run, tmp_path):
    plain = document()
    plain["categories"][0]["name"] = "wolf"
    coco_tree(tmp_path)
    coco_tree(tmp_path, plain, file="annotations/instances_val2017.json", folder="val2017")
    for verb in ("check", "stats"):
        code, _, err = run("data", verb, "coco", "--data", tmp_path)
        assert code == 3 and "missing in val: dog; only in val: wolf" in one_line(err)
    shutil.rmtree(tmp_path / "annotations")
    code, _, err = run("data", "stats", "coco", "--data", tmp_path)
    assert code == 3 and "no annotations/instances_train2017.json" in one_line(err)
