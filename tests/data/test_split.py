"""Splits: classes in proportion, copies on one side, lists beside the data, and what `data check` finds across them."""

import json
import shutil

import numpy as np
import own_trees
import pytest
from own_trees import save_picture, save_text
from PIL import Image

from convzoo.data.checks.boxes import BoxAccount
from convzoo.data.datasets.own import own
from convzoo.data.layouts.alike import ALIKE_BITS, alike_groups, alike_pairs, perceptual_hash
from convzoo.data.layouts.recognise import read_labels
from convzoo.data.layouts.split import split_pictures, stratified
from convzoo.errors import DataError
from convzoo.types import Boxes
from helpers import one_line


def save_smooth(path, number):
    """Write a picture that looks the same in any size, as noise does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.random.RandomState(number).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(cells).resize((128, 96), Image.Resampling.BICUBIC).save(path)


def distance(one, other):
    return int(np.bitwise_count(perceptual_hash(str(one)) ^ perceptual_hash(str(other))).sum())


def test_copies_are_alike_and_other_pictures_are_not(shared, tmp_path):
    paths = sorted((shared / "data/tiny-coco/val2017").glob("*.jpg"))[:20]
    for number, path in enumerate(paths[:5]):
        with Image.open(path) as picture:
            picture.resize((picture.width // 2, picture.height // 2)).save(tmp_path / f"{number}.jpg", quality=60)
        assert distance(path, tmp_path / f"{number}.jpg") <= ALIKE_BITS
    hashes = np.stack([perceptual_hash(str(path)) for path in paths])
    assert alike_pairs(hashes[:10], hashes[10:]) == [] and alike_groups(hashes).tolist() == list(range(20))
    with pytest.raises(DataError, match="empty file"):
        (tmp_path / "x.jpg").write_bytes(b"")
        perceptual_hash(str(tmp_path / "x.jpg"))


def test_groups_are_joined_over_several_steps():
    bits = np.zeros((4, 256), np.uint8)
    bits[1, :10], bits[2, :20], bits[3, 200:] = 1, 1, 1
    assert alike_groups(np.packbits(bits, axis=1)).tolist() == [0, 0, 0, 3]


@pytest.mark.parametrize("shares", [(0.8, 0.2), (0.7, 0.2, 0.1)])
def test_every_class_is_shared_out_in_proportion_and_groups_stay_together(shares):
    rng = np.random.RandomState(0)
    counts = rng.poisson([0.05, 0.3, 2.0, 8.0], (600, 4))
    groups = np.arange(600)
    groups[rng.permutation(600)[:90]] = np.repeat(groups[:30], 3)
    names = [f"{i}.jpg" for i in range(600)]
    part = stratified(counts, groups, names, shares)
    for number, share in enumerate(shares):
        of_classes = counts[part == number].sum(0) / counts.sum(0)
        assert of_classes == pytest.approx(share, abs=0.04) and (part == number).mean() == pytest.approx(
            share, abs=0.04
        )
    assert all(len(set(part[groups == group])) == 1 for group in set(groups.tolist()))
    assert (part == stratified(counts, groups, names, shares)).all()


def test_bccd_without_its_lists_keeps_each_class_in_proportion(shared, tmp_path):
    shutil.copytree(shared / "data/bccd", tmp_path / "raw", ignore=shutil.ignore_patterns("ImageSets"))
    train, val = own(tmp_path / "raw", "train"), own(tmp_path / "raw", "val")
    of_train, of_val = (np.bincount(dataset.labels, minlength=3) for dataset in (train, val))
    assert len(train) + len(val) == 364 and train.class_names == ["Platelets", "RBC", "WBC"]
    assert of_val / (of_train + of_val) == pytest.approx(0.2, abs=0.01)


def test_data_split_writes_lists_that_every_verb_takes(run, tmp_path):
    for kind, names in {"cat": "abcdefghij", "dog": "klmnopqrst"}.items():
        for name in names:
            save_smooth(tmp_path / kind / f"{name}.png", ord(name))
    with Image.open(tmp_path / "cat/a.png") as picture:
        picture.resize((64, 48)).save(tmp_path / "dog/copy.png")
    code, out, _ = run("data", "split", tmp_path, "--val", "0.3", "--test", "0.2", "--json")
    found = json.loads(out)
    assert code == 0 and sum(found["images"].values()) == 21
    assert all(abs(row["val"] - 3) <= 1 and abs(row["test"] - 2) <= 1 for row in found["classes"].values())
    lists = {name: (tmp_path / f"splits/{name}.txt").read_text().splitlines() for name in ("train", "val", "test")}
    (side,) = [name for name, files in lists.items() if "dog/copy.png" in files]
    assert "cat/a.png" in lists[side]
    assert [own(tmp_path, "train").path(0), len(own(tmp_path, "val"))] == [
        f"{tmp_path}/{lists['train'][0]}",
        len(lists["val"]),
    ]
    assert len(own(tmp_path, "val", val_set="test")) == len(lists["test"]) and own(tmp_path, "val").split_files is None
    assert "split by lists beside the data" in run("data", "inspect", tmp_path)[1]
    code, _, err = run("data", "split", tmp_path, "--val", "0.3")
    assert code == 2 and "the lists are there already" in one_line(err)
    (tmp_path / "splits/val.txt").write_text(f"{lists['val'][0]}\ndog/none.png\n")
    with pytest.raises(DataError, match=r"val.txt:2: no labelled picture dog/none.png"):
        own(tmp_path, "train")
    (tmp_path / "splits/val.txt").write_text("\n".join([*lists["val"], lists["train"][0]]))
    with pytest.raises(DataError, match=r"is in train.txt too"):
        own(tmp_path, "train")


def test_splits_that_cannot_be(run, tmp_path):
    own_trees.class_folders(tmp_path / "train")
    code, _, err = run("data", "split", tmp_path, "--val", "0.5")
    assert code == 2 and "its layout has splits already: train" in one_line(err)
    own_trees.voc(tmp_path / "two")
    for shares, words in ((["1.5"], "1.5 for validation"), (["0.5", "--test", "0.5"], "leave some for training")):
        code, _, err = run("data", "split", tmp_path / "two", "--val", *shares)
        assert code == 2 and words in one_line(err)
    code, _, err = run("data", "split", tmp_path / "two", "--val", "0.2", "--test", "0.2")
    assert code == 3 and "2 pictures in 2 groups that look alike cannot be shared out" in one_line(err)
    assert not (tmp_path / "two/splits").exists()
    assert sorted(split_pictures(read_labels(tmp_path / "two"), 0.2)) == ["train", "val"]


def test_a_run_keeps_the_lists_of_a_split_that_is_ours(run, tmp_path):
    own_trees.class_folders(tmp_path / "data")
    small = ["model.num_classes=2", "train.epochs=1", "train.batch_size=2", "train.precision=fp32"]
    small += ["transform.train=[{resize: {size_px: 32, mode: stretch}}]", "schedule.warmup_epochs=0"]
    small += ["transform.eval=[{resize: {size_px: 32, mode: stretch}}]"]
    argv = [
        "train",
        "tinydarknet-own",
        *small,
        "--data",
        tmp_path / "data",
        "--out",
        tmp_path / "run",
        "--workers",
        "0",
    ]
    code, _, err = run(*argv)
    assert code == 0 and "nobody split it; 20 % by class are for validation" in err
    lists = [(tmp_path / f"run/splits/{name}.txt").read_text().splitlines() for name in ("train", "val")]
    assert [len(files) for files in lists] == [4, 2] and all(
        file[:4] in ("cat/", "dog/") for files in lists for file in files
    )
    shutil.copytree(tmp_path / "run/splits", tmp_path / "data/splits")  # what it trained on, for ever
    assert [own(tmp_path / "data", "val").path(i) for i in range(2)] == [f"{tmp_path}/data/{file}" for file in lists[1]]
    model = tmp_path / "run/checkpoints/last.safetensors"
    code, out, _ = run("data", "check", tmp_path / "data", "--model", model, "--out", tmp_path / "wrong", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(rows) == 6 and (tmp_path / "wrong/disagreements.png").is_file()
    values = [row["disagreement"] for row in rows]
    assert values == sorted(values, reverse=True) and all(0 <= value <= 1 for value in values)
    assert len((tmp_path / "wrong/disagreements.csv").read_text().splitlines()) == 7


def test_data_check_finds_copies_across_splits_and_classes_with_few_pictures(run, tmp_path):
    files = ["train/cat/a", "train/cat/b", "train/dog/c", "val/cat/d", "val/dog/e"]
    for number, file in enumerate(files):
        save_smooth(tmp_path / f"{file}.png", number)
    with Image.open(tmp_path / "train/cat/a.png") as picture:
        picture.resize((256, 192)).save(tmp_path / "val/dog/again.png")
    found = json.loads(run("data", "check", tmp_path, "--json")[1])
    assert found["alike_in_both"] == [[f"{tmp_path}/train/cat/a.png", f"{tmp_path}/val/dog/again.png"]]
    assert found["train"]["few_pictures"] == {"cat": 2, "dog": 1} and found["in_both"] == []
    out = run("data", "check", tmp_path)[1]
    assert (
        "in both splits: 0, and 1 that look alike" in out and "2 classes on fewer than 10 pictures: cat 2, dog 1" in out
    )


@pytest.mark.parametrize(
    ("box", "kind"),
    [((0, 0, 400, 300), "huge"), ((0, 0, 390, 250), None), ((5, 5, 8, 90), "tiny"), ((5, 5, 9, 9), None)],
)
def test_tiny_and_huge_boxes(box, kind):
    from test_data_check import sample_of

    account, sample = BoxAccount(), sample_of(box)
    sample.original_hw = (300, 400)
    account.look_at(sample, ["cat"])
    assert [name for name, count in account.counts.items() if count] == ([kind] if kind else [])
    assert isinstance(sample.target, Boxes)


def test_a_list_may_hold_any_name(tmp_path):
    save_picture(tmp_path / "one kind/ä b.png")
    save_picture(tmp_path / "other/c.png")
    save_text(tmp_path / "splits/train.txt", "one kind/ä b.png\n")
    save_text(tmp_path / "splits/val.txt", "other/c.png\n")
    with pytest.raises(DataError, match="class 'one kind' in train only"):
        own(tmp_path, "train")
    assert own(tmp_path, "val").path(0).endswith("other/c.png")
