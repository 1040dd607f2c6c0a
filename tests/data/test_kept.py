"""Pictures kept in memory: the same samples in the same order, read once, and refused where there is no room."""

import shutil

import numpy as np
import own_trees
import pytest
import torch
from PIL import Image

from convzoo.data.datasets.coco import coco
from convzoo.data.datasets.digits import digits
from convzoo.data.datasets.image_folder import image_folder
from convzoo.data.kept import check_room, kept
from convzoo.data.loader import Transformed, build_loader
from convzoo.data.sampler import TrainBatches
from convzoo.data.transforms.image import flip_lr, pad_crop
from convzoo.data.transforms.pipeline import Pipeline, keyed_rng, reused_rng
from convzoo.errors import DataError, UsageError
from convzoo.tasks.classify import Classify
from convzoo.types import Sample
from helpers import one_line, rows, same, weights

NETWORK = [
    "data={name: image_folder}",
    "model={name: tinydarknet, num_classes: 2}",
    "transform.train=[{pad_crop: {padding_px: 2}}, {flip_lr: {prob: 0.5}}]",
    "transform.eval=[]",
    "train.epochs=2",
    "train.eval_every_epochs=1",
    "train.batch_size=4",
    "train.precision=fp32",
]


@pytest.fixture
def tree(tmp_path):
    return own_trees.two_splits(tmp_path / "tree", lambda i: (12, 12))


def pad_crop_pipeline():
    return Pipeline([lambda sample, rng: pad_crop(sample, rng, padding_px=2), flip_lr], seed=3)


def test_the_same_samples_in_the_same_order_with_and_without_workers(tree):
    plain, task = image_folder(tree, "train"), Classify(["cat", "dog"])
    keys = TrainBatches(len(plain), 4, 0, 0, 6)
    from_files = list(build_loader(Transformed(plain, pad_crop_pipeline()), task, keys, 0))
    data = Transformed(kept(image_folder(tree, "train"), "training"), pad_crop_pipeline())
    shutil.rmtree(tree)  # nothing is read again
    for workers in (0, 2):
        for a, b in zip(from_files, build_loader(data, task, keys, workers), strict=True):
            assert torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)
            assert (a.paths, a.ids.tolist(), a.original_hw.tolist()) == (
                b.paths,
                b.ids.tolist(),
                b.original_hw.tolist(),
            )


def test_boxes_and_what_evaluation_asks_of_a_detectors_data(own_coco):
    plain = coco(own_coco, "val")
    data = kept(coco(own_coco, "val"), "validation")
    assert len(data) == len(plain) and data.category_ids == plain.category_ids
    for index in range(len(plain)):
        a, b = plain.load(index), data.load(index)
        assert torch.equal(a.image, b.image) and np.array_equal(a.target.xyxy, b.target.xyxy)
        assert data.image_id(index) == plain.image_id(index)


def test_pictures_of_any_size_and_one_that_cannot_be_read(tree):
    rng = np.random.default_rng(1)
    for i, (height, width) in enumerate([(5, 90), (300, 200), (1, 1)]):
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(tree / f"train/cat/size{i}.png")
    (tree / "train/dog/0.jpg").write_bytes(b"no picture")
    plain = image_folder(tree, "train")
    data = kept(image_folder(tree, "train"), "training")
    for index in range(len(plain)):
        if "dog/0" in plain.path(index):
            with pytest.raises(DataError, match=r"dog/0.jpg: not a picture"):
                data.load(index)
        else:
            assert torch.equal(plain.load(index).image, data.load(index).image)


def test_what_lies_in_memory_stays_as_it_is():
    dataset = digits(None, "train")
    assert kept(dataset, "training") is dataset


def test_more_than_is_free_is_refused_in_one_line(run, tree, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2**40))  # every rank of a machine gets its share
    with pytest.raises(UsageError, match=r"8 training pictures take about 0 MiB decoded, and 0 MiB .* are free"):
        check_room(image_folder(tree, "train"), "training")
    with pytest.raises(UsageError, match="are free here"):
        kept(image_folder(tree, "train"), "training")
    command = ["train", "tinydarknet-digits", *NETWORK, "--data", tree, "--out", tmp_path / "run", "--cache", "memory"]
    code, out, err = run(*command)
    assert code == 2 and out == "" and one_line(err).endswith("read them from their files (--cache)")
    assert not (tmp_path / "run").exists()


def test_a_run_is_the_same_and_may_go_on_with_or_without(run, tree, tmp_path):
    command = ["train", "tinydarknet-digits", *NETWORK, "--data", tree]
    assert run(*command, "--out", tmp_path / "files")[0] == 0
    code, _, err = run(*command, "--out", tmp_path / "memory", "--cache", "memory")
    assert code == 0 and "8 training pictures are kept in memory" in err and "4 validation pictures" in err
    code, _, err = run(*command, "data.cache=memory", "--out", tmp_path / "recipe")
    assert code == 0 and "8 training pictures are kept in memory" in err
    assert run(*command, "--out", tmp_path / "workers", "--workers", 2)[0] == 0  # which stay for the second evaluation
    for name in ("memory", "recipe", "workers"):
        assert same(weights(tmp_path / "files"), weights(tmp_path / name))
        top1 = [[row["top1"] for row in rows(tmp_path / run_of, "epoch")] for run_of in ("files", name)]
        assert top1[0] == top1[1]
        assert [row["loss"] for row in rows(tmp_path / "files", "step")] == [
            row["loss"] for row in rows(tmp_path / name, "step")
        ]
    code, _, err = run(*command, "--out", tmp_path / "recipe")  # a finished run, printed: no other recipe
    assert code == 0 and "nothing to do" in err
    assert run("eval", tmp_path / "recipe/checkpoints/last.safetensors", "--data", tree)[0] == 0


def test_another_kind_of_cache_is_refused_with_its_place(run, tree):
    code, _, err = run("train", "tinydarknet-digits", *NETWORK, "data.cache=disk", "--data", tree)
    assert code == 2 and "data.cache: 'disk': memory, or nothing" in one_line(err)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_a_reused_generator_draws_what_a_new_one_does(seed):
    for index in (0, 1, 12345):
        for epoch in (0, 7):
            new, reused = keyed_rng(seed, 1, epoch, index), reused_rng(seed, 1, epoch, index)
            assert new.integers(9, size=3).tolist() == reused.integers(9, size=3).tolist()
            assert new.random() == reused.random() and new.integers(5) == reused.integers(5)
            assert new.permutation(4).tolist() == reused.permutation(4).tolist() and new.normal() == reused.normal()


@pytest.mark.parametrize("padding_px", [0, 3, 40])
def test_pad_crop_is_a_window_of_the_padded_picture(padding_px):
    image = torch.randint(1, 255, (3, 12, 10), dtype=torch.uint8)
    padded = torch.nn.functional.pad(image, [padding_px] * 4)
    for index in range(60):
        top, left = keyed_rng(0, 1, 0, index).integers(2 * padding_px + 1, size=2)
        cut = pad_crop(Sample(image, 0, 0, "", (12, 10)), keyed_rng(0, 1, 0, index), padding_px=padding_px).image
        assert torch.equal(cut, padded[:, top : top + 12, left : left + 10])
