"""A packed data set: the same samples in the same order, or refused where it is not what is asked for."""

import json
import os
import shutil
import time

import numpy as np
import own_trees
import pytest
import torch

from convzoo import build
from convzoo.config import recipe as recipes
from convzoo.data.datasets.coco import coco
from convzoo.data.datasets.image_folder import image_folder
from convzoo.data.kept import kept
from convzoo.data.loader import Transformed
from convzoo.data.packed import PackedBoxes, open_packed, pack
from convzoo.data.transforms.pipeline import keyed_rng
from convzoo.errors import DataError
from convzoo.types import Key, Sample
from helpers import one_line, same, weights

FOLDERS = {"name": "image_folder"}
NETWORK = [
    "data={name: image_folder}",
    "model={name: tinydarknet, num_classes: 2}",
    "transform.train=[{resize: {size_px: 24}}, {center_crop: {size_px: 24}}, {flip_lr: {prob: 0.5}}]",
    "transform.eval=[{resize: {size_px: 24}}, {center_crop: {size_px: 24}}]",
    "train.epochs=1",
    "train.batch_size=4",
    "train.precision=fp32",
]


@pytest.fixture
def tree(tmp_path):
    return own_trees.two_splits(tmp_path / "tree", lambda i: (30 + 5 * i, 40 - 2 * i))


@pytest.fixture
def packed(run, tree, tmp_path):
    code, out, err = run("data", "pack", tree, "--size", 24, "--out", tmp_path / "tree.pack")
    assert code == 0 and out.startswith(f"{tmp_path}/tree.pack: 12 pictures, "), err
    return tmp_path / "tree.pack"


def test_the_same_samples_in_the_same_order_and_pixels_as_resize_gives(tree, packed):
    recipe = recipes.load("tinydarknet-digits", NETWORK)
    for split, which in (("train", "train"), ("val", "eval")):
        files, file = (build.build_dataset(recipe, root, split) for root in (tree, packed))
        a, b = (Transformed(dataset, build.build_pipeline(recipe, which)) for dataset in (files, file))
        assert len(a) == len(b) and files.class_names == file.class_names
        assert files.labels.tolist() == file.labels.tolist()
        for index in range(len(a)):
            for epoch in (0, 3):
                x, y = a[Key(epoch, index)], b[Key(epoch, index)]
                assert isinstance(x, Sample) and isinstance(y, Sample)
                assert torch.equal(x.image, y.image) and x.target == y.target and x.path == y.path
                assert x.original_hw == y.original_hw


def test_a_run_and_an_evaluation_are_the_same(run, tree, packed, tmp_path):
    command = ["train", "tinydarknet-digits", *NETWORK]
    for name, data, more in (("files", tree, []), ("packed", packed, ["--workers", 2, "--cache", "memory"])):
        assert run(*command, "--data", data, "--out", tmp_path / name, *more)[0] == 0
    assert same(weights(tmp_path / "files"), weights(tmp_path / "packed"))
    model = tmp_path / "files/checkpoints/last.safetensors"
    results = [json.loads(run("eval", model, "--data", data, "--json")[1]) for data in (tree, packed)]
    for result in results:
        del result["seconds"], result["images_per_s"]
    assert results[0] == results[1] and results[0]["images"] == 4
    code, _, err = run(*command, "--data", packed, "--out", tmp_path / "files")  # other pixels, in general
    assert code == 2 and "packed at None pixels, not 24" in one_line(err)


def test_a_part_of_the_training_pictures_is_the_same_part(tree, packed):
    limit = {**FOLDERS, "max_train_images": 3}
    files, file = image_folder(tree, "train", max_train_images=3), open_packed(packed, "train", limit)
    assert [file.path(i) for i in range(3)] == [files.path(i) for i in range(len(files))]
    assert kept(file, "training") is file


def test_boxes_are_those_of_the_originals_and_pictures_say_how_they_were_scaled(own_coco, tmp_path):
    files, out = coco(own_coco, "val"), tmp_path / "coco.pack"
    pack({"val": files}, {"source": str(own_coco), "data": {"name": "coco"}}, 20, out)
    file = open_packed(out, "val", {"name": "coco"})
    assert isinstance(file, PackedBoxes) and file.category_ids == files.category_ids
    assert np.array_equal(file.labels, files.labels)
    for index in range(len(files)):
        a, b = files.load(index), file.load(index)
        assert np.array_equal(b.truth.xyxy, a.target.xyxy) and np.array_equal(file.boxes(index).areas, a.target.areas)
        assert file.size_hw(index) == a.original_hw == b.original_hw and file.image_id(index) == files.image_id(index)
        scale = np.array([b.image.shape[2] / a.original_hw[1], b.image.shape[1] / a.original_hw[0]])
        assert min(b.image.shape[1:]) == min(20, *a.original_hw) and b.placement[:2] == tuple(scale)
        np.testing.assert_allclose(b.target.xyxy, a.target.xyxy * np.tile(scale, 2))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_one_line(run, packed, tmp_path, share):
    content = packed.read_bytes()
    packed.write_bytes(content[: max(20, int(share * len(content)))])
    code, out, err = run("train", "tinydarknet-digits", *NETWORK, "--data", packed, "--out", tmp_path / "run")
    assert code == 3 and out == "" and "cut short" in one_line(err) and "pack or copy it again" in err


def test_a_damaged_index_and_damaged_pixels_are_noticed(packed):
    content = bytearray(packed.read_bytes())
    content[20] ^= 1
    packed.write_bytes(content)
    with pytest.raises(DataError, match="pixels of .*cat/0.jpg are damaged"):
        open_packed(packed, "train", FOLDERS).load(0)
    content[-200] ^= 1
    packed.write_bytes(content)
    with pytest.raises(DataError, match="index is damaged"):
        open_packed(packed, "train", FOLDERS)


def test_one_of_other_settings_is_refused(run, packed, tree, tmp_path):
    command = ["train", "tinydarknet-digits", *NETWORK, "--data", packed, "--out", tmp_path / "run"]
    code, _, err = run(*command, "transform.eval=[{resize: {size_px: 32}}, {center_crop: {size_px: 28}}]")
    assert code == 3 and "packed at 24 pixels, and the recipe asks for 32" in one_line(err)
    code, _, err = run(*command, "data={name: own}")
    assert code == 3 and "packed with data.name=image_folder, the recipe has own" in one_line(err)
    assert run("data", "pack", tree, "--size", 24, "--split", "val", "--out", tmp_path / "val.pack")[0] == 0
    code, _, err = run(*command[:-3], tmp_path / "val.pack", "--out", tmp_path / "run")
    assert code == 3 and "no split 'train' in it; it has val" in one_line(err)
    large = recipes.load("tinydarknet-digits", [*NETWORK, "transform.eval=[{resize: {size_px: 32}}]"])
    assert run("data", "pack", tree, "--size", 99, "--out", tmp_path / "whole.pack")[0] == 0  # nothing was shrunk
    assert len(build.build_dataset(large, tmp_path / "whole.pack", "val")) == 4


def test_one_older_than_its_source_is_refused_and_one_without_its_source_is_read(packed, tree):
    later = time.time() + 10
    os.utime(tree / "val/dog/1.jpg", (later, later))
    with pytest.raises(DataError, match=r"older than its source .*tree, where pictures have changed"):
        open_packed(packed, "val", FOLDERS)
    tree.rename(tree.with_name("elsewhere"))
    file = open_packed(packed, "val", FOLDERS)
    assert [file.load(index).target for index in range(4)] == [0, 0, 1, 1]


def test_what_cannot_be_packed(run, tree, tmp_path):
    code, _, err = run("data", "pack", tree, "--size", 24, "--out", tmp_path)
    assert code == 2 and "a folder; name the file" in one_line(err)
    shutil.copytree(tree / "val", tmp_path / "alone/val")
    code, _, err = run("data", "pack", tmp_path / "alone", "--size", 24, "--out", tmp_path / "x.pack")
    assert code == 3 and one_line(err).endswith("no folder train or ilsvrc in it, but val (--split)")
    (tree / "train/cat/1.jpg").write_bytes(b"no picture")
    code, _, err = run("data", "pack", tree, "--size", 24, "--out", tmp_path / "x.pack")
    assert code == 3 and "cat/1.jpg: not a picture" in one_line(err) and not list(tmp_path.glob("x.pack*"))
    code, _, err = run("data", "pack", tmp_path / "none", "--size", 24, "--out", tmp_path / "x.pack")
    assert code == 2 and "none" in one_line(err)


def test_a_recipe_names_what_it_is_packed_for(run, tree, packed, tmp_path):
    text = recipes.load("tinydarknet-digits", NETWORK).to_yaml()
    (tmp_path / "mine.yaml").write_text(text)
    again = tmp_path / "again.pack"
    assert run("data", "pack", tmp_path / "mine.yaml", "--data", tree, "--size", 24, "--out", again)[0] == 0
    rng = keyed_rng(0, 1, 0, 0)
    for index in rng.permutation(8).tolist()[:3]:
        a, b = (open_packed(path, "train", FOLDERS).load(index) for path in (packed, again))
        assert torch.equal(a.image, b.image)
