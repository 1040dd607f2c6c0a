"""Tar shards: read by range they are the folder they were packed from, in order, in weights and after a stop."""

import io
import itertools
import json
import os
import shutil
import signal
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from annotated import write_coco
from convzoo import cli
from convzoo.config import registry
from convzoo.data.datasets.coco import coco
from convzoo.data.datasets.image_folder import image_folder
from convzoo.data.datasets.shards import shards
from convzoo.data.sampler import TrainBatches
from convzoo.errors import DataError, UsageError
from convzoo.storage import shards as storage
from convzoo.training import loop
from helpers import IN_FLOAT64, QUICK, STILL, difference, momenta, one_line, same, torchrun, weights
from object_store import SECRET, Fault

TWO = ["data.name=image_folder", "data.max_train_images=null", "model.num_classes=2", "train.batch_size=8"]
TRAIN = ["train", "tinydarknet-digits", *QUICK, *TWO]


def png(value: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_tree(root: Path) -> Path:
    """Two classes, 22 training and 10 validation pictures, names and folders beyond ASCII."""
    for number, place in enumerate(
        [f"{split}/{name}/ü {i}.png" for split, n in (("train", 11), ("val", 5)) for name in "ab" for i in range(n)]
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(png(number))
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def packed(tree, tmp_path_factory):
    """The tree in shards of four pictures."""
    out = tmp_path_factory.mktemp("packed") / "shards"
    assert cli.main(["data", "shards", "image_folder", "--data", str(tree), "--out", str(out), "--images", "4"]) == 0
    assert len(list(out.glob("train-*.tar"))) == 6 and len(list(out.glob("val-*.tar"))) == 3
    return out


@pytest.fixture(scope="module")
def from_folder(tree, tmp_path_factory):
    """The weights of a run on the tree itself."""
    out = tmp_path_factory.mktemp("from folder") / "run"
    assert cli.main([*TRAIN, "--data", str(tree), "--out", str(out)]) == 0
    return weights(out)


def contents(data) -> tuple:
    images = [data.load(i).image.tolist() for i in range(len(data))]
    return data.class_names, data.labels.tolist(), images


def trained(run, out: Path, *options: object) -> dict[str, torch.Tensor]:
    code, _, err = run(*TRAIN, *options, "--out", out)
    assert code == 0, err
    return weights(out)


def test_shards_are_the_folder_in_order_and_in_weights(tree, packed, from_folder, run, tmp_path):
    for split in ("train", "val"):
        assert contents(image_folder(packed, split)) == contents(image_folder(tree, split))
        pattern = Path(f"{packed}/{split}-{{000000..000002}}.tar")
        assert len(shards(pattern, split)) == {"train": 12, "val": 10}[split]
    assert same(trained(run, tmp_path / "run", "--data", packed, "--workers", 2), from_folder)
    assert run("data", "check", "image_folder", "--data", packed)[0] == 0


@pytest.mark.parametrize("shuffle", ["full", "shard_window"])
def test_a_stop_changes_nothing(packed, from_folder, run, tmp_path, monkeypatch, shuffle):
    window = ["data.name=shards", "data.shuffle=shard_window", "data.window=6"] if shuffle != "full" else []
    options = [*window, "--data", packed]
    with monkeypatch.context() as patch:
        inner, number = loop.forward_backward, itertools.count(1)

        def step(*args):
            if next(number) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(*args)

        patch.setattr(loop, "forward_backward", step)
        assert run(*TRAIN, *options, "--out", tmp_path / "parts")[0] == 75
    parts = trained(run, tmp_path / "parts", *options)
    whole = trained(run, tmp_path / "whole", *options) if window else from_folder
    assert same(parts, whole) and same(parts, from_folder) == (not window)


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["full", "shard_window"])
def test_two_ranks_train_on_the_batches_of_one_and_of_the_folder(tree, packed, run, tmp_path, shuffle, in_float64):
    """In float64 and with batch norm still; momenta are sums of gradients: they tell which pictures were in a batch."""
    command = ["train", "densenet100-digits", *STILL, *TWO]
    window = ["data.name=shards", "data.shuffle=shard_window", "data.window=6"] if shuffle != "full" else []
    assert run(*command, *window, "--data", packed, "--out", tmp_path / "one")[0] == 0
    for name, data in {"two": packed, **({} if window else {"folder": tree})}.items():
        done = torchrun(*command, *window, "--data", data, "--workers", 1, "--out", tmp_path / name, program=IN_FLOAT64)
        assert done.returncode == 0, done.stderr
    assert difference(momenta(tmp_path / "one"), momenta(tmp_path / "two")) < 1e-9
    assert window or same(momenta(tmp_path / "two"), momenta(tmp_path / "folder"))


def test_shards_behind_a_url_are_read_by_range(tree, packed, from_folder, store, run, tmp_path):
    store.fs.put(f"{packed}/", "bucket/shards/", recursive=True)
    assert len(shards(Path("s3://bucket/shards/{train,val}-{000000..000002}.tar"), "train")) == 12
    assert contents(shards(Path("s3://bucket/shards"), "val")) == contents(image_folder(tree, "val"))
    image_folder(Path("s3://bucket/shards"), "train")
    store.requests.clear()
    assert same(trained(run, tmp_path / "run", "--data", "s3://bucket/shards", "--workers", 2), from_folder)
    reads = Counter(path for method, path in store.requests if method == "GET" and ".tar" in path)
    # Two epochs of two batches of eight: no shard is indexed again, and nothing is read twice.
    assert sum(count for path, count in reads.items() if "train-" in path) == 32
    assert SECRET not in (tmp_path / "run/train.log").read_text()


def test_packing_to_a_url_and_a_store_that_fails(tree, store, run, tmp_path, monkeypatch):
    code, out, _ = run("data", "shards", "image_folder", "--data", tree, "--out", "s3://bucket/new", "--json")
    assert code == 0 and json.loads(out) == {"out": "s3://bucket/new", "shards": {"train": 1, "val": 1}}
    assert run("data", "shards", "digits", "--out", "s3://bucket/new")[0] == 2
    data = shards(Path("s3://bucket/new"), "train")
    store.faults = [Fault("cut"), Fault("503")]
    assert contents(data) == contents(image_folder(tree, "train")) and not any(fault.times for fault in store.faults)
    monkeypatch.setattr("convzoo.storage.urls.TRIES", 2)
    store.faults = [Fault("503", lambda method, path: "new/train" in path and method == "GET", times=1000)]
    command = [*TRAIN, "--data", "s3://bucket/new", "--on-bad-sample", "skip", "--out", tmp_path / "run"]
    for workers in (0, 1):  # not pictures to leave out, but the end of the run
        code, _, err = run(*command, "--workers", workers)
        assert code == 1 and "s3://bucket/new/train-000000.tar: failed 2 times" in one_line(err)


def test_a_shard_is_indexed_once_until_it_changes(packed, caplog, tmp_path, monkeypatch):
    packed = Path(shutil.copytree(packed, tmp_path / "shards"))
    monkeypatch.setenv("CONVZOO_CACHE", str(tmp_path / "cache"))
    indexed = lambda: [record.message for record in caplog.records if "indexing" in record.message]
    caplog.set_level("INFO", "convzoo")
    first = contents(shards(packed, "train"))
    assert len(indexed()) == 6
    assert contents(shards(packed, "train")) == first and len(indexed()) == 6
    content = next((tmp_path / "cache").glob("train-000003*/content"))
    content.write_bytes(content.read_bytes().replace(b"[", b"(", 1))  # a disk that lost a bit
    assert contents(shards(packed, "train")) == first and len(indexed()) == 7
    data = shards(packed, "train")
    write_tar(packed / "train-000003.tar", [("x.png", png(1)), ("x.cls", b"1")])
    with pytest.raises(DataError, match=r"train-000003\.tar: changed since it was indexed"):
        contents(data)
    assert len(shards(packed, "train")) == 22 - 4 + 1 and len(indexed()) == 8


PICTURE = ("a/1.png", png(0))
BROKEN = {
    "no label": ([PICTURE], r"x-000\.tar/a/1\.png: no label"),
    "no picture": ([PICTURE, ("a/1.cls", b"0"), ("a/2.cls", b"0")], r"a/2\.cls: a label without a picture"),
    "two labels": ([PICTURE, ("a/1.cls", b"0"), ("a/1.json", b'{"label": 1}')], r"a/1\.png: two labels, in .cls and"),
    "two pictures": ([PICTURE, ("a/1.jpg", png(1)), ("a/1.cls", b"0")], r"a/1\.jpg: a second picture"),
    "twice": ([PICTURE, PICTURE, ("a/1.cls", b"0")], r"a/1\.png: is in it twice"),
    "out": ([("../1.png", png(0)), ("../1.cls", b"0")], r"\.\./1\.png: leads out"),
    "absolute": ([("/1.png", png(0)), ("/1.cls", b"0")], r"/1\.png: leads out"),
    "no JSON": ([PICTURE, ("a/1.json", b"{")], r"a/1\.json: not JSON"),
    "no class": ([PICTURE, ("a/1.cls", b"")], r"a/1\.cls: no class's number or name: ''"),
    "negative": ([PICTURE, ("a/1.json", b'{"label": -1}')], r"a/1\.json: no class's number or name: '-1'"),
    "three corners": ([PICTURE, ("a/1.json", b'{"boxes": [[1, 2, 3]], "labels": [0]}')], "four finite numbers"),
    "lengths": ([PICTURE, ("a/1.json", b'{"boxes": [], "labels": [0]}')], "two lists of one length"),
    "beyond": ([PICTURE, ("a/1.cls", b"7")], r"class 7 is none of the 2 that there are"),
    "unknown": ([PICTURE, ("a/1.txt", b"cow")], r"class cow is none of the 2 that there are"),
    "empty": ([], "no pictures in its 1 shards"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_shard_is_a_line_with_its_member(tmp_path, run, name):
    members, message = BROKEN[name]
    write_tar(tmp_path / "x-000.tar", members)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=message):
        shards(tmp_path, "val")


def test_a_shard_cut_short_compressed_or_with_a_link(tmp_path):
    whole = write_tar(tmp_path / "x-000.tar", [("a.png", png(0)), ("a.cls", b"0"), ("b.png", png(1)), ("b.cls", b"0")])
    data = whole.read_bytes()
    for length in (0, 300, 700, 1500, 2048, data.rfind(b"b.cls") + 514):
        whole.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"x-000\.tar.*: damaged, or cut short"):
            shards(tmp_path, "val")
    with tarfile.open(whole, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(DataError, match="compressed, and by range only plain tars"):
        shards(tmp_path, "val")
    with tarfile.open(whole, "w") as archive:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"a\.png: is a link"):
        shards(tmp_path, "val")


def test_labels_as_others_write_them(tmp_path):
    members = [
        ("0.b.c.PNG", b"another member"),
        ("0.PNG", png(0)),
        ("0.json", b'{"label": 1, "url": "x"}'),
        ("0.cls", b"1\n"),
        ("0.txt", b"a caption"),
        ("1.jpg", png(1)),
        ("1.cls", b"0"),
        ("1.txt", b"another"),
        ("__key__", b""),
    ]
    write_tar(tmp_path / "imagenet1k-validation-00.tar", members)
    write_tar(tmp_path / "imagenet1k-train-0000.tar", [("7.png", png(3)), ("7.txt", b"cat")])
    val = shards(tmp_path, "val", class_names=["cat", "dog"])
    assert val.labels.tolist() == [0, 1] and val.path(1).endswith("validation-00.tar/0.PNG")
    assert shards(tmp_path, "val").class_names == ["0", "1"] and shards(tmp_path, "train").class_names == ["cat"]
    assert len(shards(tmp_path, "val", class_names="imagenet").class_names) == 1000
    with pytest.raises(DataError, match="no shards for val; there are some for train"):
        shards(tmp_path / "imagenet1k-train-{0000..0000}.tar", "val")
    with pytest.raises(UsageError, match="no such file; 2 of 3 are missing"):
        shards(tmp_path / "imagenet1k-validation-{00..02}.tar", "val")
    with pytest.raises(UsageError, match=r"\{5\.\.2\} is no range"):
        shards(tmp_path / "x-{5..2}.tar", "val")
    with pytest.raises(UsageError, match="no tar shards"):
        shards(tmp_path / "none", "val")


def test_shards_of_no_split_are_not_both(tmp_path, run):
    write_tar(tmp_path / "x-000.tar", [("a.png", png(0)), ("a.cls", b"0")])
    code, _, err = run(*TRAIN, "--data", tmp_path, "--out", tmp_path / "run")
    assert code == 3 and "nor shards with such names" in one_line(err)


def test_boxes_are_those_of_the_annotations(tmp_path, run):
    write_coco(tmp_path / "coco", "train", count=8)
    shutil.copytree(tmp_path / "coco/train2017", tmp_path / "coco/val2017")
    annotations = tmp_path / "coco/annotations"
    shutil.copy(annotations / "instances_train2017.json", annotations / "instances_val2017.json")
    assert run("data", "shards", "coco", "--data", tmp_path / "coco", "--out", tmp_path / "out", "--images", 3)[0] == 0
    for split in ("train", "val"):
        there, here = shards(tmp_path / "out", split), coco(tmp_path / "coco", split)
        assert there.class_names == here.class_names and len(there) == 8
        for i in range(8):
            assert there.size_hw(i) == here.size_hw(i) and torch.equal(there.load(i).image, here.load(i).image)
            for key in ("xyxy", "labels", "crowd", "areas"):
                assert np.array_equal(getattr(there.boxes(i), key), getattr(here.boxes(i), key))
    code, out, err = run("data", "stats", "shards", "--data", tmp_path / "out", "--json")
    assert (
        code == 0
        and json.loads(out)["train"]
        == json.loads(run("data", "stats", "coco", "--data", tmp_path / "coco", "--json")[1])["train"]
    ), err


# --- the order of shard_window


def windowed(packed: Path, window: int = 6, split: str = "train"):
    return registry.bind("dataset", {"name": "shards", "shuffle": "shard_window", "window": window})(packed, split)


def test_a_window_reads_every_sample_once_an_epoch_in_an_order_of_seed_and_epoch(packed):
    order = windowed(packed).places.order
    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert all(sorted(chosen.tolist()) == list(range(22)) for chosen in orders.values())
    assert len({tuple(chosen) for chosen in orders.values()}) == 6
    assert all(np.array_equal(chosen, windowed(packed).places.order(*key)) for key, chosen in orders.items())
    assert shards(packed, "train").places.order(0, 0) is None  # any order, as of other data sets


def test_a_window_is_the_same_for_any_ranks_and_any_start(packed):
    order = windowed(packed).places.order
    batches = lambda start, rank, ranks: [
        [key.index for key in keys] for keys in TrainBatches(22, 4, 0, start, 15, 1, rank, ranks, order=order)
    ]
    whole = batches(0, 0, 1)
    assert len(whole) == 15 and batches(7, 0, 1) == whole[7:]
    for ranks in (2, 4):
        parts = [batches(0, rank, ranks) for rank in range(ranks)]
        assert [sorted(itertools.chain(*step)) for step in zip(*parts, strict=True)] == [
            sorted(batch) for batch in whole
        ]


def test_a_window_moves_no_sample_further_than_its_size_and_opens_shards_in_turn(tmp_path, monkeypatch):
    """Forty shards of ten: at any time those around the place of reading, each opened once an epoch."""
    for number in range(40):
        members = [(f"{number}-{i}.{kind}", data) for i in range(10) for kind, data in (("png", png(i)), ("cls", b"0"))]
        write_tar(tmp_path / f"train-{number:03d}.tar", members)
    data = windowed(tmp_path, window=25)
    order = data.places.order(3, 1)
    shard_of, starts = data.places.shard_of[order], data.places.starts[order]
    turns = np.argsort([np.flatnonzero(shard_of == shard).mean() for shard in range(40)])
    stream = np.lexsort((starts, np.argsort(turns)[shard_of]))  # where each lies in the row of the shards
    assert np.abs(np.argsort(stream) - np.arange(400)).max() < 25 + 10
    most = max(len(set(shard_of[i : i + 8])) for i in range(400 - 8))
    assert most <= (2 * 25 + 8) // 10 + 2
    opened = []
    real = os.open
    monkeypatch.setattr(storage, "OPEN_FILES", 8)
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(str(path)) or real(path, *rest))
    for index in order.tolist():
        data.load(index)
    assert len([path for path in opened if path.startswith(str(tmp_path))]) == 40
    opened.clear()
    for index in np.random.default_rng(0).permutation(400).tolist():
        data.load(index)
    assert len([path for path in opened if path.startswith(str(tmp_path))]) > 200
