"""Data sets with boxes: COCO, VOC and YOLO files read the same, agree with pycocotools, and every fault is named."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from convzoo.data.datasets import voc as voc_module
from convzoo.data.datasets.boxed import BoxedImages, SizeMismatchError, picture_size
from convzoo.data.datasets.coco import coco
from convzoo.data.datasets.digit_scenes import digit_scenes
from convzoo.data.datasets.voc import voc
from convzoo.data.datasets.yolo_txt import yolo_txt
from convzoo.data.decode import decode_rgb
from convzoo.errors import DataError, UsageError
from convzoo.types import Boxes


def save_picture(path, width=40, height=30, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(sum(path.name.encode())).randint(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)


def document():
    """Two pictures with three objects, and one picture without; nothing is in order."""
    return {
        "images": [
            {"id": 9, "file_name": "b.png", "width": 40, "height": 30},
            {"id": 4, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 7, "file_name": "c.png"},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 18, "bbox": [1, 2, 3, 4.5], "iscrowd": 0, "area": 6.5},
            {"id": 2, "image_id": 4, "category_id": 3, "bbox": [5, 6, 7, 8], "iscrowd": 1},
            {"id": 3, "image_id": 9, "category_id": 3, "bbox": [0, 0, 40, 0]},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


def coco_tree(root, content=None, file="annotations/instances_train2017.json", folder="train2017"):
    for name in "abc":
        save_picture(root / folder / f"{name}.png")
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content or document()))
    return root


def test_coco_by_hand(tmp_path):
    data = coco(coco_tree(tmp_path), "train")
    assert data.class_names == ["cat", "dog"] and data.category_ids == [3, 18]
    assert [data.image_id(i) for i in range(3)] == [4, 7, 9]
    assert [data.path(i)[-5:] for i in range(3)] == ["a.png", "c.png", "b.png"]
    assert data.boxes(0).xyxy.tolist() == [[5, 6, 12, 14]] and data.boxes(0).crowd.tolist() == [True]
    assert data.boxes(0).areas.tolist() == [56] and len(data.boxes(1)) == 0 and data.size_hw(1) == (30, 40)
    last = data.load(2)
    assert last.target.xyxy.tolist() == [[1, 2, 4, 6.5], [0, 0, 40, 0]] and last.target.labels.tolist() == [1, 0]
    assert last.target.areas.tolist() == [6.5, 0] and last.original_hw == (30, 40) and last.image.shape == (3, 30, 40)
    assert data.labels.tolist() == [0, 1, 0] and data.labels.dtype == np.int64


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_reads_as_pycocotools_does(coco_root, split):
    data, theirs = coco(coco_root, split), COCO(coco_root / f"annotations/instances_{split}2017.json")
    assert [data.image_id(i) for i in range(len(data))] == sorted(theirs.getImgIds())
    assert data.category_ids == sorted(theirs.getCatIds()) and len(data.class_names) == 80
    assert data.class_names == [one["name"] for one in theirs.loadCats(data.category_ids)]
    for i in range(len(data)):
        wanted = theirs.loadAnns(theirs.getAnnIds(imgIds=data.image_id(i)))
        boxes = data.boxes(i)
        assert len(boxes) == len(wanted)
        for box, one in zip(boxes.xyxy, wanted, strict=True):
            x, y, w, h = one["bbox"]
            assert box.tolist() == [x, y, x + w, y + h]
        assert boxes.areas.tolist() == [one["area"] for one in wanted]
        assert boxes.crowd.tolist() == [bool(one["iscrowd"]) for one in wanted]
        assert [data.category_ids[label] for label in boxes.labels] == [one["category_id"] for one in wanted]
    assert min(len(data.boxes(i)) for i in range(len(data))) == 0  # pictures without objects are there
    assert data.load(0).image.shape[1:] == data.size_hw(0)


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2014.json", "train2014"),
        ("annotations/train.json", "train"),
        ("annotations/instances_train.json", "train"),
    ],
)
def test_coco_layouts(tmp_path, file, folder):
    assert len(coco(coco_tree(tmp_path, file=file, folder=folder), "train")) == 3
    with pytest.raises(DataError, match=r"no annotations/instances_val2017.json.*data.annotations=NAME"):
        coco(tmp_path, "val")


def test_two_years_of_coco_side_by_side_and_other_names(tmp_path):
    coco_tree(tmp_path, file="annotations/instances_val2014.json", folder="val2014")
    (tmp_path / "val2017").mkdir()
    assert "val2014" in coco(tmp_path, "val").path(0)
    coco_tree(tmp_path, file="mine_train.json", folder="pictures/train")
    data = coco(tmp_path, "train", annotations="mine_{split}.json", images="pictures/{split}", max_train_images=2)
    assert len(data) == 2 and len(data.labels) == sum(len(data.boxes(i)) for i in range(2))
    with pytest.raises(DataError, match=r"no mine_val.json; data.annotations"):
        coco(tmp_path, "val", annotations="mine_{split}.json")


def changed(key, number, **entries):
    """Return a change of the document's entry: None removes a key."""

    def change(plain):
        entry = plain[key][number]
        entry.update(entries)
        for name in [name for name, value in entries.items() if value is None]:
            del entry[name]

    return change


nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plain: plain.pop("images"), "no list 'images'"),
        (lambda plain: plain.pop("annotations"), "no list 'annotations'"),
        (lambda plain: plain.update(categories={}), "no list 'categories'"),
        (lambda plain: plain["images"].clear() or plain["annotations"].clear(), "no pictures"),
        (lambda plain: plain["categories"].clear() or plain["annotations"].clear(), "categories: not a list of class"),
        (lambda plain: plain["images"].append(5), "image number 3: not an object"),
        (changed("images", 0, id=None), "image number 0: no 'id'"),
        (changed("images", 0, id=9.0), "image number 0: id must be a whole number, not 9.0"),
        (changed("images", 0, id="9"), 'whole number, not "9"'),
        (changed("images", 0, id=2**70), "image number 0: id must be a whole number"),
        (changed("images", 0, id=4), "image 4: the id is there twice"),
        (changed("images", 0, file_name=None), "image 9: no 'file_name'"),
        (changed("images", 0, file_name="../b.png"), "image 9: file_name must be a path inside"),
        (changed("images", 0, file_name="/etc/b.png"), "image 9: file_name must be a path inside"),
        (changed("images", 0, file_name="x\\..\\..\\b.png"), "image 9: file_name must be a path inside"),
        (changed("images", 0, file_name="C:\\b.png"), "image 9: file_name must be a path inside"),
        (changed("images", 0, file_name="C:b.png"), "image 9: file_name must be a path inside"),
        (changed("images", 0, file_name=""), "image 9: file_name must be a path inside"),
        (changed("images", 0, file_name="d.png"), "image 9: no picture .*train2017/d.png"),
        (changed("images", 0, file_name="deep/b.png"), "image 9: no picture .*train2017/deep/b.png"),
        (changed("images", 0, width=0), "image 9: height and width must be whole numbers"),
        (changed("images", 0, width=None), "image 9: height and width must be whole numbers"),
        (changed("categories", 1, id=18), "category 18: the id is there twice"),
        (changed("categories", 1, name="dog"), "categories: class 'dog' is there twice"),
        (changed("categories", 1, name=None), "category 3: no 'name'"),
        (changed("categories", 1, name=5), "categories: not a list of class names"),
        (changed("annotations", 0, id=None), "annotation number 0: no 'id'"),
        (changed("annotations", 0, id=2), "annotation 2: the id is there twice"),
        (changed("annotations", 0, image_id=None), "annotation 1: no 'image_id'"),
        (changed("annotations", 0, image_id=99), "annotation 1: unknown image_id 99"),
        (changed("annotations", 0, image_id=[9]), "annotation 1: unknown image_id"),
        (changed("annotations", 0, category_id=None), "annotation 1: no 'category_id'"),
        (changed("annotations", 0, category_id=1), "annotation 1: unknown category_id 1"),
        (changed("annotations", 0, bbox=None), "annotation 1: no 'bbox'"),
        (changed("annotations", 0, bbox=[1, 2, 3]), "annotation 1: bbox must be 4 finite numbers"),
        (changed("annotations", 0, bbox=[1, 2, 3, nan]), r"annotation 1: bbox must be 4 finite numbers, not .*NaN"),
        (changed("annotations", 0, bbox=[1, 2, inf, 4]), "annotation 1: bbox must be 4 finite numbers"),
        (changed("annotations", 0, bbox=[1, 2, 3, 10**400]), "annotation 1: bbox must be 4 finite numbers"),
        (changed("annotations", 0, bbox=[1, 2, "3", 4]), "annotation 1: bbox must be 4 finite numbers"),
        (changed("annotations", 0, bbox=[1, 2, -3, 4]), "annotation 1: bbox has a negative width"),
        (changed("annotations", 0, area=-1), "annotation 1: area must be"),
        (changed("annotations", 0, area=nan), "annotation 1: area must be"),
        (changed("annotations", 0, iscrowd=2), "annotation 1: iscrowd must be 0 or 1"),
    ],
)
def test_faults_of_a_coco_file(tmp_path, change, words):
    plain = document()
    change(plain)
    with pytest.raises(DataError, match=words) as caught:
        coco(coco_tree(tmp_path, plain), "train")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps(document(), indent=1)[:200], r"train2017.json:1\d: column \d+: damaged JSON, perhaps cut short"),
        ("", r"json:1: column 1: damaged JSON"),
        ("[" * 100_000, "json: not the JSON of a data set"),
        ("[]", "no list 'images'"),
    ],
)
def test_a_file_that_is_no_json(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        coco(coco_tree(tmp_path, text), "train")


def test_a_picture_of_another_size_than_annotated_is_refused_when_loaded(tmp_path):
    data = coco(coco_tree(tmp_path), "train")
    save_picture(tmp_path / "train2017/b.png", 30, 40)
    with pytest.raises(SizeMismatchError, match=r"b.png: 30x40 pixels, its annotation says 40x30"):
        data.load(2)
    (tmp_path / "train2017/b.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"b.png: not a picture"):
        data.load(2)


def voc_xml(name="a", objects=(("cat", 1, 2, 40, 30, 0), ("dog", 5, 6, 7, 6, 1)), extension=".png", size=(40, 30)):
    rows = [
        f"<object><name>{kind}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for kind, x1, y1, x2, y2, difficult in objects
    ]
    return (
        f"<annotation><filename>{name}{extension}</filename><size><width>{size[0]}</width><height>{size[1]}</height>"
        f"<depth>3</depth></size>{''.join(rows)}</annotation>"
    )


def voc_tree(root, sets=None, **xmls):
    sets = sets or {"train": "a\nb\n", "val": "c\n", "test": "d\n", "cat_train": "a  1\nb -1\n"}
    for name in "abcd":
        save_picture(root / f"JPEGImages/{name}.png")
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    contents = {"a": voc_xml(), "b": voc_xml("b", ()), "c": voc_xml("c"), "d": voc_xml("d", [("zebra", 1, 1, 2, 2, 0)])}
    for name, text in {**contents, **xmls}.items():
        (root / f"Annotations/{name}.xml").write_text(text)
    for name, text in sets.items():
        (root / f"ImageSets/Main/{name}.txt").write_text(text)
    return root


def test_voc_counts_pixels_from_one_and_the_last_one_in(tmp_path):
    data = voc(voc_tree(tmp_path), "train")
    assert data.class_names == ["cat", "dog", "zebra"] and data.category_ids == [1, 2, 3]
    assert [data.image_id(i) for i in range(len(data))] == [1, 2]
    boxes = data.boxes(0)
    assert boxes.xyxy.tolist() == [[0, 1, 40, 30], [4, 5, 7, 6]] and boxes.areas.tolist() == [40 * 29, 3]
    assert boxes.crowd.tolist() == [False, True] and boxes.labels.tolist() == [0, 1] and len(data.boxes(1)) == 0
    as_they_are = voc(tmp_path, "train", one_based=False, class_names=["dog", "cat"])
    assert as_they_are.boxes(0).xyxy.tolist() == [[1, 2, 40, 30], [5, 6, 7, 6]]
    assert as_they_are.boxes(0).labels.tolist() == [1, 0]
    assert len(voc(tmp_path, "train", max_train_images=1)) == 1
    assert voc(tmp_path, "val", val_set="test").path(0).endswith("d.png")


def test_voc_joins_the_sets_of_two_years(tmp_path):
    kit = tmp_path / "VOCdevkit"
    first = voc_tree(kit / "VOC2007", {"trainval": "a\nb\n", "test": "c\n"}, c=voc_xml("c", [("bird", 1, 1, 9, 9, 0)]))
    second = voc_tree(kit / "VOC2012", {"trainval": "d\na\n"})
    for root in (tmp_path, kit):
        data = voc(root, "train", train_set=["2007/trainval", "VOC2012/trainval"], val_set="2007/test")
        paths = [
            first / "JPEGImages/a.png",
            first / "JPEGImages/b.png",
            second / "JPEGImages/d.png",
            second / "JPEGImages/a.png",
        ]
        assert [Path(data.path(i)) for i in range(len(data))] == paths
        assert data.class_names == ["bird", "cat", "dog", "zebra"]
        assert [data.boxes(i).labels.tolist() for i in range(4)] == [[1, 2], [], [3], [1, 2]]
        assert data.load(2).target.xyxy.tolist() == [[0, 0, 2, 2]]
    held_out = voc(tmp_path, "val", val_set="2007/test")
    assert [held_out.path(0), len(held_out)] == [str(first / "JPEGImages/c.png"), 1]
    assert len(voc(second, "train", train_set="2012/trainval")) == 2
    with pytest.raises(DataError, match=r"no VOC2011/ImageSets/Main in it, or below VOCdevkit \(2011/val is asked for"):
        voc(tmp_path, "val", val_set="2011/val")
    with pytest.raises(DataError, match=r"VOC2012/ImageSets/Main/test.txt: no such list; there is trainval"):
        voc(tmp_path, "val", val_set=["2007/test", "2012/test"])


def test_voc_finds_pictures_by_any_extension_and_below_voc_devkit(tmp_path):
    root = voc_tree(tmp_path / "VOCdevkit/VOC2007", b=voc_xml("b", extension=".jpg"), c=voc_xml("c", extension=""))
    (root / "JPEGImages/b.png").unlink()
    save_picture(root / "JPEGImages/b.JPG", format="PNG")
    save_picture(root / "JPEGImages/b.bmp")
    data = voc(tmp_path, "train")
    assert data.path(0).endswith("a.png") and data.path(1).endswith("b.JPG")
    (root / "Annotations/b.xml").write_text(voc_xml("b", extension=".bmp"))
    assert voc(tmp_path, "train").path(1).endswith("b.bmp")
    assert voc(tmp_path / "VOCdevkit", "val").path(0).endswith("c.png")
    shutil.copytree(root, tmp_path / "VOCdevkit/VOC2012")
    with pytest.raises(DataError, match=r"more than one data set; name .*VOC2007 or .*VOC2012"):
        voc(tmp_path, "train")


def test_voc_reads_each_file_once_for_both_splits_and_again_when_it_changed(tmp_path, monkeypatch):
    read = []
    parse = voc_module.read_annotation
    monkeypatch.setattr(voc_module, "read_annotation", lambda path: read.append(path.name) or parse(path))
    voc_tree(tmp_path)
    for split in ("train", "val"):
        voc(tmp_path, split)
    assert sorted(read) == ["a.xml", "b.xml", "c.xml", "d.xml"]
    (tmp_path / "Annotations/b.xml").write_text(voc_xml("b", [("wolf", 1, 1, 2, 2, 0)]))
    assert "wolf" in voc(tmp_path, "train").class_names


def test_bccd(shared):
    train, val = voc(shared / "data/bccd", "train"), voc(shared / "data/bccd", "val", val_set="test")
    assert (len(train), len(val)) == (205, 72) and train.class_names == val.class_names == ["Platelets", "RBC", "WBC"]
    first = voc(shared / "data/bccd", "val")
    assert first.path(0).endswith("BloodImage_00000.jpg") and first.boxes(0).xyxy[0].tolist() == [259, 176, 491, 376]
    assert first.load(0).target.xyxy.max(0).tolist() <= [640, 480, 640, 480] and first.size_hw(0) == (480, 640)
    # As `grep -c "<name>"` counts over the listed files: 361 + 4155 + 372 in all three sets.
    assert len(train.labels) + len(first.labels) + len(val.labels) == 4888


BOMB = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
BOMB += "<annotation><object><name>&b;</name></object></annotation>"
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]><annotation><filename>&a;</filename></annotation>'
ONE = [("cat", 1, 1, 9, 9, 0)]


@pytest.mark.parametrize(
    ("a", "words"),
    [
        (BOMB, "entities or a DTD"),
        (OUTSIDE, "entities or a DTD"),
        ("<!DOCTYPE annotation>" + voc_xml(), "entities or a DTD"),
        (voc_xml()[:100], "not XML: .*line 1, column"),
        ("", "not XML"),
        (
            '<?xml version="1.0" encoding="klingon"?><annotation/>',
            "not XML in a known encoding|not XML: unknown encoding",
        ),
        (voc_xml(objects=[*ONE, ("", 1, 1, 9, 9, 0)]), "object 2: no name"),
        (voc_xml(objects=[*ONE, ("cat", 1, 1, "", 9, 0)]), r"object 2 \(cat\): no bndbox with xmin, ymin, xmax, ymax"),
        (voc_xml().replace("bndbox", "box"), r"object 1 \(cat\): no bndbox"),
        (voc_xml(objects=[("cat", 1, 1, "x", 9, 0)]), r"object 1 \(cat\): bndbox 1 1 x 9: not 4 numbers"),
        (voc_xml(objects=[("cat", 1, 1, "nan", 9, 0)]), r"object 1 \(cat\): bndbox 1 1 nan 9: not 4 finite numbers"),
        (voc_xml(objects=[("cat", 1, 1, "inf", 9, 0)]), "not 4 finite numbers"),
        (voc_xml(objects=[("cat", 9, 1, 8, 9, 0)]), r"object 1 \(cat\): bndbox 9 1 8 9: inverted"),
        (voc_xml(objects=[("cat", 1, 9, 8, 1, 0)]), "inverted"),
        (voc_xml(objects=[("cat", 1, 1, 8, 9, "maybe")]), "difficult must be 0 or 1, not maybe"),
        (voc_xml(size=(-40, 30)), "size: height and width must be whole numbers above 0"),
        (voc_xml(size=(40, 0)), "size: height and width must be whole numbers above 0"),
    ],
)
def test_faults_of_a_voc_file(tmp_path, a, words):
    with pytest.raises(DataError, match=rf"Annotations/a\.xml: .*({words})") as caught:
        voc(voc_tree(tmp_path, a=a), "train")
    assert "\n" not in str(caught.value)


def test_faults_of_a_voc_tree(tmp_path):
    root = voc_tree(tmp_path)
    lists = root / "ImageSets/Main"
    with pytest.raises(DataError, match=r"Annotations/a.xml: object 2: 'dog' is not in data.class_names"):
        voc(root, "train", class_names=["cat"])
    with pytest.raises(UsageError, match=r"data.class_names: class 'cat' is there twice"):
        voc(root, "train", class_names=["cat", "cat"])
    with pytest.raises(DataError, match=r"training.txt: no such list; there is cat_train, test, train, val"):
        voc(root, "train", train_set="training")
    for text, words in [
        ("a\n\nz\n", r"train.txt:3: no .*z.xml"),
        ("../a\n", "train.txt:1: no"),
        ("a\na", "twice"),
        ("\n", "no pictures"),
    ]:
        (lists / "train.txt").write_text(text)
        with pytest.raises(DataError, match=words):
            voc(root, "train")
    (lists / "train.txt").write_text("a")
    (root / "JPEGImages/a.png").unlink()
    with pytest.raises(DataError, match=r"Annotations/a.xml: no picture .*JPEGImages/a"):
        voc(root, "train")
    shutil.rmtree(root / "JPEGImages")
    with pytest.raises(DataError, match="no folder JPEGImages"):
        voc(root, "train")
    shutil.rmtree(lists)
    with pytest.raises(DataError, match="no ImageSets/Main"):
        voc(root, "train")


def yolo_tree(root, a="0 0.5 0.5 0.5 0.2\n1 0.25 0.25 0.1 0.1\n", names=True, layout="images/{}"):
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        folder = root / layout.format(split)
        save_picture(folder / f"{name}.png")
        label = root / layout.format(split).replace("images", "labels") / f"{name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        if name != "b":
            label.write_text(a if name == "a" else "1 0.5 0.5 1 1")
    if names:
        (root / "classes.txt").write_text("cat\ndog\n")
    return root


@pytest.mark.parametrize("layout", ["images/{}", "{}/images", "images/{}2017"])
def test_yolo_layouts(tmp_path, layout):
    data = yolo_txt(yolo_tree(tmp_path, layout=layout), "train")
    assert data.class_names == ["cat", "dog"] and len(data) == 2 and data.labels.tolist() == [0, 1]
    assert data.boxes(0).xyxy == pytest.approx(np.array([[10, 12, 30, 18], [8, 6, 12, 9]]), abs=1e-9)
    assert data.boxes(0).areas == pytest.approx([120, 12]) and not data.boxes(0).crowd.any()
    assert len(data.boxes(1)) == 0 and len(data.load(1).target) == 0
    assert len(yolo_txt(tmp_path, "val")) == 1


def test_darknets_lists(tmp_path):
    yolo_tree(tmp_path / "sub")
    shutil.copy(tmp_path / "sub/images/train/a.png", tmp_path / "beside.png")
    (tmp_path / "beside.txt").write_text("1 0.5 0.5 0.1 0.1")
    (tmp_path / "obj.names").write_text("cat\ndog\n\n")
    absolute = tmp_path / "sub/images/train/b.png"
    (tmp_path / "train.txt").write_text(f"./sub/images/train/a.png\n{absolute}\nbeside.png\n")
    data = yolo_txt(tmp_path, "train")
    assert [len(data.boxes(i)) for i in range(3)] == [2, 0, 1] and data.load(1).path == str(absolute)
    (tmp_path / "train.txt").write_text("beside.png\n\nsub/images/train/none.png")
    with pytest.raises(DataError, match=r"train.txt:3: no picture sub/images/train/none.png"):
        yolo_txt(tmp_path, "train")


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"classes.txt": "a\nb\n\n"}, ["a", "b"]),
        ({"obj.names": "a\nb", "coco.names": "z"}, ["a", "b"]),
        ({"mine.names": "a\r\nb\r\n"}, ["a", "b"]),
        ({"data.yaml": "names: [no, 1]"}, ["no", "1"]),
        ({"data.yaml": "nc: 2\nnames:\n  1: b\n  0: a\n"}, ["a", "b"]),
        ({"classes.txt": "a\n\nb"}, "classes.txt: not a list of class names"),
        ({"classes.txt": "a\na"}, "classes.txt: class 'a' is there twice"),
        ({"x.names": "a", "y.names": "a"}, "several lists of class names: x.names, y.names"),
        ({"data.yaml": "names: {0: a, 2: b}"}, "names must be numbered 0 to 1"),
        ({"data.yaml": "a: 1\nnames: [a"}, "data.yaml:2: not YAML"),
        ({"data.yaml": "nc: 2"}, "data.yaml: names: not a list"),
        ({}, "no class names"),
    ],
)
def test_class_names_of_yolo(tmp_path, files, wanted):
    yolo_tree(tmp_path, names=False)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    if isinstance(wanted, list):
        assert yolo_txt(tmp_path, "train").class_names == wanted
    else:
        with pytest.raises(DataError, match=wanted):
            yolo_txt(tmp_path, "train")
        if "not YAML" not in wanted:  # data.yaml says where the pictures are, too
            assert yolo_txt(tmp_path, "train", class_names=["x", "y"]).class_names == ["x", "y"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 0.5 0.5 0.1 0.1", "class 2; there are 2 classes, 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "class -1"),
        ("00000000002 0.5 0.5 0.1 0.1", "class 00000000002"),
        ("9" * 9999 + " 0.5 0.5 0.1 0.1", "class 999"),
        ("1.0 0.5 0.5 0.1 0.1", "class 1.0"),
        ("0 20 15 10 5", "must be shares"),
        ("0 0.5 0.5 1.1 0.1", "must be shares"),
        ("0 -0.1 0.5 0.1 0.1", "must be shares"),
        ("0 nan 0.5 0.1 0.1", "must be shares"),
        ("0 0.5 0.5 -0.0005 0.1", "negative width"),
        ("0 0.5 0.5 0.1", "4 values; a line is: class centre_x"),
        ("0 0.5 0.5 0.1 0.1 1.9", "must be shares"),
        ("0 0.5 0.5 x 0.1", "not numbers"),
    ],
)
def test_faults_of_a_label_file(tmp_path, line, words):
    with pytest.raises(DataError, match=rf"labels/train/a\.txt:3: .*{words}"):
        yolo_txt(yolo_tree(tmp_path, f"0 0.5 0.5 1.0005 0\n\n{line}\n"), "train")


def test_faults_of_a_yolo_tree(tmp_path):
    root = yolo_tree(tmp_path)
    (root / "labels/train/a.txt").unlink()
    with pytest.raises(DataError, match=r"no label file for any of 2 pictures of 'train', such as labels/train/a.txt"):
        yolo_txt(root, "train")
    (root / "labels/train/a.txt").write_bytes(b"\xff\xfe0")
    with pytest.raises(DataError, match=r"a.txt: not UTF-8"):
        yolo_txt(root, "train")
    shutil.rmtree(root / "labels/train")
    with pytest.raises(DataError, match="images/train is there, labels/train is not"):
        yolo_txt(root, "train")
    shutil.rmtree(root / "images")
    with pytest.raises(DataError, match="no images/train with labels/train"):
        yolo_txt(root, "train")


@pytest.mark.parametrize("build", [coco, voc, yolo_txt])
def test_a_path_that_is_no_folder_is_wrong_usage(build, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for root, words in (
        (None, "needs a folder, zip or tar with"),
        (tmp_path / "none", "no such folder"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            build(root, "train")
        assert caught.value.options == ("data",)


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png"])
def test_shares_of_a_turned_picture_are_of_what_is_seen(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    root = yolo_tree(tmp_path)
    save_picture(root / "images/train" / name, 50, 20, exif=exif)
    (root / f"labels/train/{name[:-4]}.txt").write_text("0 0.5 0.5 0.5 0.5")
    data = yolo_txt(root, "train")
    assert data.size_hw(2) == (50, 20) and data.boxes(2).xyxy.tolist() == [[5, 12.5, 15, 37.5]]
    sample = data.load(2)
    assert sample.original_hw == (50, 20) and sample.target.xyxy.tolist() == [[5, 12.5, 15, 37.5]]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1)])
def test_pictures_of_extreme_shape(tmp_path, width, height):
    root = yolo_tree(tmp_path)
    save_picture(root / "images/train/a.png", width, height)
    sample = yolo_txt(root, "train").load(0)
    assert sample.image.shape == (3, height, width)
    assert sample.target.xyxy[0] == pytest.approx([width / 4, 0.4 * height, 0.75 * width, 0.6 * height])


def test_the_size_of_a_picture_that_cannot_be_read_is_an_error_that_says_why(tmp_path):
    for content, words in [(b"", "empty file"), (b"text", "not a picture"), (None, "cannot be read")]:
        path = tmp_path / "x.png"
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(DataError, match=rf"x.png: {words}"):
            picture_size(str(path))


@pytest.mark.parametrize("source", ["digit scenes", "bccd"])
def test_the_same_objects_in_three_formats(request, source, tmp_path):
    if source == "bccd":
        real = voc(request.getfixturevalue("shared") / "data/bccd", "val")
    else:
        real = digit_scenes(None, "val")
    count = 12
    plain = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 7 + i, "name": n} for i, n in enumerate(real.class_names)],
    }
    xmls = {}
    for i in range(count):
        boxes, (height, width), stem = real.boxes(i), real.size_hw(i), f"{i:03d}"
        picture = Image.fromarray(real.load(i).image.permute(1, 2, 0).numpy())
        picture.save(tmp_path / f"{stem}.png", compress_level=1)
        for folder in ("images/val", "val", "JPEGImages"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / f"{stem}.png", tmp_path / folder)
        plain["images"].append({"id": i, "file_name": f"{stem}.png", "width": width, "height": height})
        lines, objects = [], []
        for (x1, y1, x2, y2), label in zip(boxes.xyxy.tolist(), boxes.labels.tolist(), strict=True):
            one = {"image_id": i, "category_id": 7 + label, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            plain["annotations"].append({"id": len(plain["annotations"]), **one})
            shares = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
            lines.append(f"{label} " + " ".join(f"{share:.6f}" for share in shares))
            objects.append((real.class_names[label], x1 + 1, y1 + 1, x2, y2, 0))  # whole pixels, counted from 1
        (tmp_path / "labels/val").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"labels/val/{stem}.txt").write_text("\n".join(lines))
        xmls[stem] = voc_xml(stem, objects, size=(width, height))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/val.json").write_text(json.dumps(plain))
    (tmp_path / "classes.txt").write_text("\n".join(real.class_names))
    voc_tree(tmp_path, {"train": "\n".join(xmls), "val": "\n".join(xmls)}, **xmls)
    in_all = coco(tmp_path, "val"), voc(tmp_path, "val"), yolo_txt(tmp_path, "val")
    for i in range(count):
        expected = real.load(i)
        for other, places in zip(in_all, (0, 0, 1e-3), strict=True):  # YOLO's six digits of 640 pixels
            loaded = other.load(i)
            assert torch.equal(loaded.image, expected.image)
            assert loaded.target.xyxy == pytest.approx(expected.target.xyxy, abs=places)
            assert loaded.target.areas == pytest.approx(expected.target.areas, rel=1e-2)
            names = [
                [data.class_names[label] for label in labels]
                for data, labels in ((other, loaded.target.labels), (real, expected.target.labels))
            ]
            assert names[0] == names[1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=40), st.one_of(st.none(), st.integers(1, 9)))
def test_every_picture_keeps_its_own_objects_in_order(image_index, limit):
    count, index = len(image_index), np.array(image_index, np.int64)
    numbers = np.arange(count, dtype=float)
    objects = Boxes(numbers[:, None] + np.zeros(4), np.arange(count), numbers % 2 == 0, numbers)
    files = [f"{i}.png" for i in range(7)]
    data = BoxedImages(
        Path("x"), files, ["c"] * max(1, count), objects, index, limit=limit, stated_hw=np.arange(1, 15).reshape(7, 2)
    )
    assert len(data) == min(7, limit or 7)
    seen = 0
    for i in range(len(data)):
        number = int(data.path(i)[2:-4])
        boxes = pickle.loads(pickle.dumps(data)).boxes(i)
        assert boxes.areas.tolist() == [j for j in range(count) if image_index[j] == number]
        assert boxes.xyxy[:, 2].tolist() == boxes.labels.tolist() == boxes.areas.tolist()
        assert data.size_hw(i) == (2 * number + 1, 2 * number + 2)
        seen += len(boxes)
    assert seen == len(data.labels)


def test_what_a_transform_does_to_boxes_does_not_reach_the_data_set(tmp_path):
    data = coco(coco_tree(tmp_path), "train")
    data.load(0).target.xyxy[:] = -1
    assert data.boxes(0).xyxy.tolist() == [[5, 6, 12, 14]]


def test_a_million_boxes_are_a_few_arrays():
    count = 1_000_000
    objects = Boxes(np.zeros((count, 4)), np.zeros(count, np.int64), np.zeros(count, bool), np.zeros(count))
    data = BoxedImages(Path("x"), ["a", "b"], ["c"], objects, np.arange(count) % 2)
    assert len(pickle.dumps(data)) < 60 * count and len(data.boxes(1)) == count // 2


def test_sizes_from_headers_are_those_of_decoded_pictures(coco_root):
    paths = sorted((coco_root / "val2017").iterdir())[:40]
    assert len(paths) == 40
    for path in paths:
        assert picture_size(str(path)) == decode_rgb(path.read_bytes(), "x").shape[1:]
