"""Labels as they come: every layout is recognised and read alike, and everything wrong in one is named in a line."""

import json
import shutil
from pathlib import Path

import numpy as np
import own_trees
import pytest
from own_trees import BOXED, BOXES, LAYOUTS, WHOLE, rectangle, save_picture, save_text

from convzoo.data.datasets.boxed import BoxedImages
from convzoo.data.datasets.own import own, subset
from convzoo.data.layouts.labels import Reading, turned_box
from convzoo.data.layouts.recognise import read_labels
from convzoo.errors import ConvzooError, DataError, UsageError
from helpers import one_line


def everything(root: Path, **options) -> BoxedImages:
    labels = read_labels(root, options.pop("layout", None), Reading(**options))
    dataset = subset(labels, np.arange(len(labels.files)))
    assert isinstance(dataset, BoxedImages)
    return dataset


@pytest.mark.parametrize("layout", BOXED)
def test_a_layout_with_boxes_is_recognised_and_read(tmp_path, layout):
    LAYOUTS[layout](tmp_path)
    data = everything(tmp_path)
    assert read_labels(tmp_path).layout == layout
    assert data.class_names == ["cat", "dog"]
    assert data.category_ids == ([3, 18] if layout == "coco" else [1, 2])
    assert [Path(data.path(i)).name for i in range(2)] == ["a.png", "b.png"]
    for i, boxes in enumerate(BOXES.values()):
        sample = data.load(i)
        assert [data.class_names[label] for label in sample.target.labels] == [name for name, _ in boxes]
        assert sample.target.xyxy == pytest.approx(np.array([box for _, box in boxes]), abs=1e-4)
        assert not sample.target.crowd.any() and sample.original_hw == (30, 40)


@pytest.mark.parametrize("layout", WHOLE)
def test_a_layout_of_whole_pictures_is_recognised_and_read(tmp_path, layout):
    LAYOUTS[layout](tmp_path)
    labels = read_labels(tmp_path)
    assert (labels.layout, labels.class_names, labels.objects) == (layout, ["cat", "dog"], None)
    names = {
        Path(file).stem: labels.class_names[label] for file, label in zip(labels.files, labels.labels, strict=True)
    }
    assert names == {name: kind for kind, members in own_trees.CLASSES.items() for name in members}
    train, val = own(tmp_path, "train"), own(tmp_path, "val")
    assert (len(train), len(val)) == (4, 2) and train.class_names == val.class_names
    assert train.load(0).image.shape == (3, 30, 40)
    paths = {dataset.path(i) for dataset in (train, val) for i in range(len(dataset))}
    assert len(paths) == 6 and len(train.split_files or []) == 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inspect_says_what_it_is_and_what_trains_on_it(run, tmp_path, layout):
    LAYOUTS[layout](tmp_path)
    code, out, _ = run("data", "inspect", tmp_path)
    recipe = "yolov3-tiny-own" if layout in BOXED else "tinydarknet-own"
    assert code == 0 and "recognised by" in out
    assert f"convzoo train {recipe} model.num_classes=2 --data {tmp_path} --out runs/{tmp_path.name}" in out
    found = json.loads(run("data", "inspect", tmp_path, "--json")[1])
    assert (found["layout"], list(found["classes"]), found["splits"]) == (layout, ["cat", "dog"], None)
    if layout in BOXED:
        assert found["classes"]["cat"] == {"images": 2, "objects": 2} and found["objects"] == 3
    else:
        assert found["classes"]["cat"] == {"images": 3} and found["images"] == 6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_import_writes_one_of_ours_with_the_same_labels(run, tmp_path, layout):
    LAYOUTS[layout](tmp_path / "data")
    code, out, _ = run("data", "import", tmp_path / "data", "--out", tmp_path / "out", "--val", "0")
    assert code == 0 and out.startswith(f"{tmp_path}/out: {'coco' if layout in BOXED else 'image_folder'} with")
    before, after = read_labels(tmp_path / "data"), read_labels(tmp_path / "out")
    assert after.class_names == before.class_names and after.layout == ("coco" if layout in BOXED else "class_folders")
    assert [Path(file).name for file in after.files] == [Path(file).name for file in before.files]
    assert after.labels.tolist() == before.labels.tolist()
    if layout in BOXED:
        one, other = everything(tmp_path / "data"), everything(tmp_path / "out")
        assert all(one.boxes(i).xyxy == pytest.approx(other.boxes(i).xyxy, abs=1e-9) for i in range(2))
        assert one.category_ids == other.category_ids
    code, _, err = run("data", "import", tmp_path / "data", "--out", tmp_path / "out")
    assert code == 2 and "not empty" in one_line(err)


def test_an_import_is_split_and_check_takes_it(run, tmp_path):
    own_trees.class_folders(tmp_path / "data")
    code, out, _ = run("data", "import", tmp_path / "data", "--out", tmp_path / "out", "--val", "0.3")
    assert code == 0 and "4 train, 2 val" in out
    assert run("data", "check", "image_folder", "--data", tmp_path / "out")[0] == 0
    assert run("data", "check", tmp_path / "data")[0] == 0  # a folder of one's own, as it lies


def test_voc_lists_folders_and_file_names(tmp_path):
    own_trees.voc(tmp_path)
    shutil.move(tmp_path / "images/a.png", tmp_path / "images/renamed.png")
    xml = (tmp_path / "annots/a.xml").read_text().replace("a.png", "renamed.png")
    save_text(tmp_path / "annots/a.xml", xml)
    assert [Path(file).name for file in read_labels(tmp_path).files] == ["b.png", "renamed.png"]
    save_text(tmp_path / "ImageSets/Main/train.txt", "a\n")
    save_text(tmp_path / "ImageSets/Main/val.txt", "b\n")
    assert (len(own(tmp_path, "train")), own(tmp_path, "val").path(0)) == (1, f"{tmp_path}/images/b.png")
    save_text(tmp_path / "ImageSets/Main/val.txt", "a\nb\n")
    with pytest.raises(DataError, match=r"val.txt: a is in the list of train too"):
        own(tmp_path, "train")


def test_coco_in_split_folders_as_roboflow_has_it(tmp_path):
    for split in ("train", "valid"):
        own_trees.coco(tmp_path / split)
        shutil.move(tmp_path / split / "labels_my-project.json", tmp_path / split / "_annotations.coco.json")
    train, val = own(tmp_path, "train"), own(tmp_path, "val")
    assert len(train) == len(val) == 2 and "/train/" in train.path(0) and "/valid/" in val.path(0)
    shutil.move(tmp_path / "valid/_annotations.coco.json", tmp_path / "b.json")
    with pytest.raises(DataError, match=r"are both COCO's instances, for no split by name"):
        own(tmp_path, "train")


def test_yolo_by_data_yaml_and_lists(tmp_path):
    for split in ("train", "valid"):
        own_trees.yolo(tmp_path / split)
        (tmp_path / split / "classes.txt").unlink()
    yaml = "path: /somewhere/else\ntrain: ../train/images\nval: valid/images\nnc: 2\nnames: [cat, dog]\n"
    save_text(tmp_path / "data.yaml", yaml)
    assert (len(own(tmp_path, "train")), len(own(tmp_path, "val"))) == (2, 2)
    save_text(tmp_path / "mine.txt", "train/images/a.png\n./valid/images/b.png\n")
    save_text(
        tmp_path / "data.yaml", yaml.replace("../train/images", "mine.txt").replace("valid/images", "valid/images")
    )
    with pytest.raises(DataError, match=r"valid/images/b.png is labelled twice"):
        own(tmp_path, "train")
    save_text(tmp_path / "mine.txt", "train/images/a.png\n")
    save_text(tmp_path / "data.yaml", yaml.replace("../train/images", "mine.txt"))
    with pytest.raises(DataError, match=r"1 of 4 labels have no picture, such as b"):
        own(tmp_path, "train")  # labels/b.txt is nobody's now
    (tmp_path / "train/labels/b.txt").unlink()
    assert len(own(tmp_path, "train")) == 1
    save_text(tmp_path / "data.yaml", yaml.replace("../train/images", "nowhere"))
    with pytest.raises(DataError, match=r"data.yaml: train: no nowhere below"):
        own(tmp_path, "train")


def test_yolo_scores_and_polygons_are_read_counted_and_said(run, tmp_path):
    own_trees.yolo(tmp_path)
    save_text(tmp_path / "labels/a.txt", "1 0.25 0.5 0.5 0.2 0.875\n0 0.1 0.2 0.5 0.2 0.3 0.6\n0 0 0 1 0 1 1 0 1 0.5\n")
    labels = read_labels(tmp_path)
    assert labels.scores[:1].tolist() == [0.875] and np.isnan(labels.scores[1]) and labels.scores[2] == 0.5
    assert labels.objects is not None
    assert labels.objects.xyxy[:3] == pytest.approx(np.array([[0, 0.4, 0.5, 0.6], [0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]]))
    out = run("data", "inspect", tmp_path)[1]
    assert "2 polygons read as their boxes" in out and "2 labels have a score" in out


def test_shapes_of_cvat_and_label_studio(tmp_path):
    own_trees.cvat(tmp_path)
    path = tmp_path / "annotations.xml"
    other = '<polygon label="dog" points="1,2;9,2;5,8"/><polyline label="dog" points="1,2;3,4"/>'
    other += '<box label="dog" xtl="10" ytl="10" xbr="20" ybr="14" rotation="90"/>'
    path.write_text(path.read_text().replace("</image>", f"{other}</image>", 1))
    labels = read_labels(tmp_path)
    assert labels.objects is not None and labels.objects.xyxy[2].tolist() == [1, 2, 9, 8]
    assert labels.objects.xyxy[3] == pytest.approx([13, 7, 17, 17])
    assert {"1 polygons read as their boxes", "1 polyline shapes left out: they are no boxes"} < set(labels.notes)
    shutil.rmtree(tmp_path)
    own_trees.label_studio(tmp_path)
    tasks = json.loads((tmp_path / "project-3.json").read_text())
    turned = rectangle("dog", 20, 10, 30, 14)
    turned["value"]["rotation"] = 90  # about its left upper corner: to the left and down
    corners = {"points": [[10, 10], [50, 10], [20, 30]], "polygonlabels": ["cat"]}
    polygon = {**turned, "type": "polygonlabels", "value": corners}
    tasks[1]["annotations"] = []
    tasks[1]["predictions"] = [{"score": 0.5, "result": [{**turned, "score": 0.25}, polygon]}]
    tasks[0]["annotations"].append({"was_cancelled": True, "result": []})
    (tmp_path / "project-3.json").write_text(json.dumps(tasks))
    labels = read_labels(tmp_path)
    assert labels.objects is not None and labels.objects.xyxy[2] == pytest.approx([16, 10, 20, 20])
    assert labels.objects.xyxy[3] == pytest.approx([4, 3, 20, 9]) and labels.scores[2] == 0.25
    assert turned_box(0, 0, 4, 2, 0, "middle") == [0, 0, 4, 2]


def test_choices_and_tags_are_classes_of_whole_pictures(tmp_path):
    tasks = []
    for number, name in enumerate("abc"):
        save_picture(tmp_path / f"{name}.png")
        result = {
            "type": "choices",
            "from_name": "c",
            "to_name": "i",
            "value": {"choices": [("dog", "cat")[number % 2]]},
        }
        tasks.append({"data": {"image": f"{name}.png"}, "annotations": [{"result": [result]}]})
    save_text(tmp_path / "tasks.json", json.dumps(tasks))
    labels = read_labels(tmp_path)
    assert labels.objects is None and labels.class_names == ["cat", "dog"] and labels.labels.tolist() == [1, 0, 1]
    (tmp_path / "tasks.json").unlink()
    images = "".join(f'<image name="{name}.png" width="40" height="30"><tag label="{name}"/></image>' for name in "ab")
    save_text(tmp_path / "x.xml", f"<annotations>{images}</annotations>")
    labels = read_labels(tmp_path)
    assert labels.objects is None and labels.files == ["a.png", "b.png"]
    assert labels.notes == ["1 pictures that no label file names left out, such as c.png"]


def test_classes_are_renamed_joined_and_ordered(tmp_path):
    own_trees.voc(tmp_path)
    assert everything(tmp_path, rename={"dog": "ape"}).class_names == ["ape", "cat"]
    assert everything(tmp_path, rename={"dog": "cat"}).class_names == ["cat"]
    assert everything(tmp_path, class_names=["dog", "cat"]).class_names == ["dog", "cat"]
    with pytest.raises(UsageError, match=r"data.rename: no class 'dogg'; did you mean 'dog'"):
        everything(tmp_path, rename={"dogg": "cat"})
    with pytest.raises(DataError, match=r"class 'dog' is not in data.class_names"):
        everything(tmp_path, class_names=["cat"])
    with pytest.raises(UsageError, match=r"data.layout: no layout 'voq'; did you mean 'voc'"):
        everything(tmp_path, layout="voq")
    with pytest.raises(DataError, match="no COCO JSON in it"):
        everything(tmp_path, layout="coco")


def test_changed_files_are_read_again_and_same_ones_once(tmp_path):
    own_trees.voc(tmp_path)
    first = read_labels(tmp_path)
    assert read_labels(tmp_path) is first
    path = tmp_path / "annots/b.xml"
    path.write_text(path.read_text().replace("cat", "zebra"))
    assert read_labels(tmp_path).class_names == ["cat", "dog", "zebra"]


def changed(path, old, new):
    """Return a change of a tree: a text in one of its files replaced."""

    def change(root):
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new, 1))

    return change


def both(root):
    own_trees.voc(root)
    own_trees.coco(root)


def labelled_twice(root):
    own_trees.voc(root)
    own_trees.csv_file(root)


def short_lines(root):
    for path in root.glob("**/labels/*.txt"):
        path.write_text("0 0.1 0.1 0.5")


@pytest.mark.parametrize(
    ("tree", "change", "words"),
    [
        (labelled_twice, None, r"two layouts, Pascal VOC XML \(.*\) and CSV of path,label \(labels.csv with"),
        (both, None, r"two layouts, Pascal VOC XML \(.*\) and COCO JSON \(.*\); data.layout=voc or data.layout=coco"),
        (
            "voc",
            lambda root: (root / "images/a.png").unlink(),
            "1 of 2 labels have no picture, such as a.png of",
        ),
        (
            "voc",
            lambda root: (root / "images/a.png").rename(root / "images/A.png"),
            "no picture, such as a.png .*; there is images/A.png, another case",
        ),
        ("coco", lambda root: shutil.rmtree(root / "pics/deep"), "no pictures in it"),
        ("coco", lambda root: (root / "pics/deep/b.png").unlink(), "1 of 2 labels have no picture, such as b.png"),
        ("coco", changed("labels_my-project.json", '"id": 0', '"score": 7, "id": 0'), "annotation 0: score must be"),
        ("yolo", lambda root: (root / "images/b.png").unlink(), "1 of 2 labels have no picture, such as b of labels/b"),
        ("yolo", lambda root: (root / "classes.txt").unlink(), "no class names: no classes.txt"),
        ("yolo", changed("labels/a.txt", "0 0.3", "0 120"), r"a.txt:1: 120.*must be shares .*\(pixels\?\)"),
        ("yolo", changed("labels/a.txt", "0 0.3", "2 0.3"), "a.txt:1: class 2; there are 2 classes"),
        ("cvat", lambda root: (root / "images/b.png").unlink(), "1 of 2 labels have no picture, such as b.png"),
        ("cvat", changed("annotations.xml", 'xtl="4"', 'xtl="4px"'), "image a.png: box cat: xtl must be a number"),
        ("cvat", changed("annotations.xml", 'xtl="4"', 'xtl="24"'), "box cat: 24 6 20 24 is inverted"),
        ("cvat", changed("annotations.xml", "<meta/>", '<track id="0"/>'), "CVAT's XML for videos"),
        (
            "cvat",
            changed("annotations.xml", "<box", '<polygon label="cat" points="1,2;3,4"/><box'),
            "polygon cat: a polygon of 2 points; it takes 3",
        ),
        (
            "label_studio",
            lambda root: (root / "media/a.png").unlink(),
            "no picture, such as 1a2b3c4d-a.png of",
        ),
        (
            "label_studio",
            changed("project-3.json", '"x": 10.0', '"x": 400'),
            "rectanglelabels: 400 is no percent",
        ),
        ("label_studio", changed("project-3.json", '"data": {', '"dat": {'), "task 1: no 'data'; .*not its JSON-MIN"),
        (
            "class_folders",
            lambda root: (root / "cat").rename(root / "Dog"),
            "'Dog' and 'dog' differ in nothing",
        ),
        ("class_folders", lambda root: (root / "cat").rename(root / "dog "), "'dog' and 'dog ' differ in nothing but"),
        ("csv", changed("labels.csv", "path,label", "path,kind"), r"labels.csv:1: no column 'label'"),
        ("csv", changed("labels.csv", "a.png,cat", "a.png,"), r"labels.csv:2: no label in this line"),
        ("csv", changed("labels.csv", "a.png,cat", "z.png,cat"), r"1 of 6 labels have no picture, such as z.png"),
        ("csv", changed("labels.csv", "images/b", "images/a"), r"labels.csv:3: images/a.png is labelled twice"),
        ("yolo", short_lines, r"no labels in any of: .*; labels/\w+.txt begins with '0 0.1 0.1 0.5', no class and box"),
        ("csv", lambda root: (root / "labels.csv").unlink(), "6 pictures and no labels in any of: Pascal VOC XML"),
    ],
)
def test_what_is_wrong_is_one_line_with_exit_code_3(run, tmp_path, tree, change, words):
    (LAYOUTS[tree] if isinstance(tree, str) else tree)(tmp_path)
    if change:
        change(tmp_path)
    code, out, err = run("data", "inspect", tmp_path)
    assert (code, out) == (3, "")
    with pytest.raises(ConvzooError, match=words) as caught:
        read_labels(tmp_path)
    assert one_line(err) == f"convzoo: {caught.value}" and "\n" not in str(caught.value)


def test_a_polygon_of_two_points_in_label_studio(tmp_path):
    own_trees.label_studio(tmp_path)
    path = tmp_path / "project-3.json"
    tasks = json.loads(path.read_text())
    corners = {"points": [[1, 2], [3, 4]], "polygonlabels": ["cat"]}
    tasks[0]["annotations"][0]["result"][0] |= {"type": "polygonlabels", "value": corners}
    path.write_text(json.dumps(tasks))
    with pytest.raises(DataError, match="task 1: polygonlabels: a polygon of 2 points"):
        read_labels(tmp_path)


def test_a_class_in_one_split_only(run, tmp_path):
    own_trees.class_folders(tmp_path / "train")
    save_picture(tmp_path / "val/cat/x.png")
    with pytest.raises(DataError, match="class 'dog' in train only; `convzoo data split`"):
        own(tmp_path, "train")
    assert "split by the layout itself: 6 train, 1 val\n  in train only: dog\n" in run("data", "inspect", tmp_path)[1]
    code, _, err = run("train", "tinydarknet-own", "model.num_classes=2", "--data", tmp_path, "--out", tmp_path / "run")
    assert code == 3 and "in train only" in one_line(err) and not (tmp_path / "run").exists()


def test_no_folder_and_no_pictures(run, tmp_path):
    for folder, code, words in ((tmp_path / "none", 2, "no such folder"), (tmp_path, 3, "no pictures in it")):
        found, out, err = run("data", "inspect", folder)
        assert (found, out) == (code, "") and words in one_line(err)


def test_lists_that_begin_above_the_folder_as_cvat_and_darknet_write_them(tmp_path):
    for name in ("a", "b"):
        own_trees.save_picture(tmp_path / f"obj_train_data/{name}.png")
        own_trees.save_text(tmp_path / f"obj_train_data/{name}.txt", "1 0.5 0.5 0.2 0.2\n")
    own_trees.save_picture(tmp_path / "obj_val_data/c.png")
    own_trees.save_text(tmp_path / "obj.names", "cat\ndog\n")
    own_trees.save_text(tmp_path / "train.txt", "data/obj_train_data/a.png\ndata/obj_train_data/b.png\n")
    own_trees.save_text(tmp_path / "val.txt", "/elsewhere/data/obj_val_data/c.png\n")
    labels = read_labels(tmp_path)
    assert labels.layout == "yolo" and labels.class_names == ["cat", "dog"]
    assert [*zip(labels.files, labels.splits or [], strict=True)] == [
        ("obj_train_data/a.png", "train"),
        ("obj_train_data/b.png", "train"),
        ("obj_val_data/c.png", "val"),
    ]
    own_trees.save_text(tmp_path / "val.txt", "data/obj_val_data/d.png\n")
    with pytest.raises(DataError, match=r"val.txt:1: no picture data/obj_val_data/d.png"):
        read_labels(tmp_path)
