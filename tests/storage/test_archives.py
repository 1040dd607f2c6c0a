"""Archives: every layout reads from a zip or tar as from its folder; a wrong one is a line, and nothing of it stays."""

import io
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import stat
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from convzoo.data.datasets.cifar10 import cifar10
from convzoo.data.datasets.coco import coco
from convzoo.data.datasets.image_folder import image_folder
from convzoo.data.datasets.voc import voc
from convzoo.data.datasets.yolo_txt import yolo_txt
from convzoo.errors import ConvzooError, DataError, UsageError
from convzoo.storage import archives, local_folder
from convzoo.storage.archives import unpack
from helpers import QUICK, one_line, same, weights

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "the cache"
    monkeypatch.setenv("CONVZOO_CACHE", str(folder))
    return folder


def save(path: Path, seed: int, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def folder_tree(root: Path) -> Path:
    for number, place in enumerate(["train/cat/1", "train/cat/ü 2", "train/dog/1", "val/cat/1", "val/dog/1"]):
        save(root / f"{place}.png", number)
    return root


def cifar_tree(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        records = np.random.default_rng(number).integers(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    return root


def coco_tree(root: Path) -> Path:
    for split in ("train", "val"):
        save(root / f"{split}2017/a.png", 1)
        boxes = [{"id": 1, "image_id": 9, "category_id": 3, "bbox": [1, 2, 3, 4]}]
        images, categories = [{"id": 9, "file_name": "a.png"}], [{"id": 3, "name": "cat"}]
        file = root / f"annotations/instances_{split}2017.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return root


def voc_tree(root: Path) -> Path:
    base = root / "VOCdevkit/VOC2007"
    for name in ("Annotations", "ImageSets/Main"):
        (base / name).mkdir(parents=True)
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>5</xmax><ymax>7</ymax></bndbox>"
    for split in ("train", "val"):
        save(base / f"JPEGImages/{split}.png", 1)
        xml = f"<annotation><filename>{split}.png</filename><object><name>cat</name>{box}</object></annotation>"
        (base / f"Annotations/{split}.xml").write_text(xml)
        (base / f"ImageSets/Main/{split}.txt").write_text(f"{split}\n")
    return root


def yolo_tree(root: Path) -> Path:
    for split in ("train", "val"):
        save(root / f"images/{split}/a.png", 1)
        (root / f"labels/{split}").mkdir(parents=True)
        (root / f"labels/{split}/a.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    (root / "classes.txt").write_text("cat\n")
    return root


LAYOUTS = {
    image_folder: folder_tree,
    cifar10: cifar_tree,
    coco: coco_tree,
    voc: voc_tree,
    yolo_txt: yolo_tree,
}


def packed(tree: Path, path: Path, enclosed: bool = False) -> Path:
    """Pack a folder's contents, or the folder itself, into a zip or tar by the archive's suffix."""
    inside = tree.parent if enclosed else tree
    files = [file.relative_to(inside) for file in sorted(tree.rglob("*"))]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(inside / file, file)
        return path
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for file in files:
            archive.add(inside / file, str(file), recursive=False)
    return path


def contents(data) -> list:
    samples = [data.load(i) for i in range(len(data))]
    boxes = [data.boxes(i).xyxy.tolist() for i in range(len(data))] if hasattr(data, "boxes") else []
    return [data.class_names, [sample.image.tolist() for sample in samples], data.labels.tolist(), boxes]


@pytest.mark.parametrize("enclosed", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES[:4])
@pytest.mark.parametrize("build", LAYOUTS, ids=lambda build: build.__name__)
def test_every_layout_reads_from_an_archive_as_from_its_folder(tmp_path, build, suffix, enclosed):
    tree = LAYOUTS[build](tmp_path / "my data")
    archive = packed(tree, tmp_path / f"packed ü{suffix}", enclosed)
    for split in ("train", "val"):
        data = build(archive, split)
        assert contents(data) == contents(build(tree, split))
        assert contents(pickle.loads(pickle.dumps(data)))[1] == contents(data)[1]  # as a worker gets it


def test_archives_of_single_splits_and_other_packings(tmp_path):
    tree = folder_tree(tmp_path / "tree")
    for split in ("train", "val"):
        for suffix in SUFFIXES:
            alone = packed(tree / split, tmp_path / f"{split}{suffix}")  # class folders alone
            named = packed(tree / split, tmp_path / f"named-{split}{suffix}", enclosed=True)
            assert contents(image_folder(alone, split))[:3] == contents(image_folder(tree, split))[:3]
            assert contents(image_folder(named, split))[:3] == contents(image_folder(tree, split))[:3]


def test_an_archive_is_unpacked_once_until_it_changes(tmp_path, cache):
    archive = packed(yolo_tree(tmp_path / "tree"), tmp_path / "a.tgz")
    first = local_folder(archive)
    marks = {file: file.stat().st_mtime_ns for file in first.rglob("*")}
    assert local_folder(archive) == first
    assert {file: file.stat().st_mtime_ns for file in first.rglob("*")} == marks
    shutil.rmtree(first)  # somebody cleaned up while we use it
    assert len(yolo_txt(archive, "train")) == 1
    os.utime(archive, ns=(1, 1))
    assert local_folder(archive) != first
    assert not list(cache.glob("*.tmp"))


def test_train_and_eval_take_a_tar_like_the_folder(tmp_path, run):
    rng = np.random.default_rng(0)
    for place in [f"{split}/{name}/{i}" for split in ("train", "val") for name in "ab" for i in range(8)]:
        save(tmp_path / f"tree/{place}.png", int(rng.integers(1 << 30)), (8, 8))
    archive = packed(tmp_path / "tree", tmp_path / "a.tar.gz")
    settings = [*QUICK, "data.max_train_images=null", "data.name=image_folder", "model.num_classes=2"]
    for data in (tmp_path / "tree", archive):
        out = tmp_path / f"run-{data.name}"
        command = "train", "tinydarknet-digits", *settings, "train.batch_size=8", "--workers", 1
        assert run(*command, "--data", data, "--out", out)[0] == 0
    assert same(weights(tmp_path / "run-tree"), weights(tmp_path / "run-a.tar.gz"))
    model = tmp_path / "run-tree/checkpoints/last.safetensors"
    answers = [json.loads(run("eval", model, "--data", data, "--json")[1]) for data in (tmp_path / "tree", archive)]
    assert answers[0]["images"] == 16 and answers[0]["top1"] == answers[1]["top1"]


def zip_of(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def tar_with(path: Path, *members: tarfile.TarInfo, size: int = 0) -> Path:
    with tarfile.open(path, "w") as archive:
        for member in members:
            member.size = member.size or (size if member.isreg() else 0)
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def linked_zip(path: Path) -> Path:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return path


def bomb(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("zeros", "w") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    return path


EVIL = {
    "zip slip": (lambda path: zip_of(path, **{"../outside": b"x"}), r"'../outside' leads out"),
    "windows slip": (lambda path: zip_of(path, **{"a\\..\\..\\outside": b"x"}), "leads out"),
    "drive": (lambda path: zip_of(path, **{"C:/outside": b"x"}), "leads out"),
    "absolute": (lambda path: zip_of(path, **{"/tmp/outside": b"x"}), "leads out"),
    "zip link": (linked_zip, "'link' is a link or a device"),
    "tar slip": (lambda path: tar_with(path, member("a/../../outside")), "leads out"),
    "link out": (lambda path: tar_with(path, member("b", tarfile.SYMTYPE, "../../outside")), "is a link to"),
    "link to root": (lambda path: tar_with(path, member("b", tarfile.SYMTYPE, "/etc/passwd")), "is a link to"),
    "hard link out": (lambda path: tar_with(path, member("b", tarfile.LNKTYPE, "../outside")), "is a link to"),
    "device": (lambda path: tar_with(path, member("b", tarfile.CHRTYPE)), "is a device"),
    "pipe": (lambda path: tar_with(path, member("b", tarfile.FIFOTYPE)), "is a device"),
    "twice": (lambda path: tar_with(path, member("b"), member("./b")), "'b' is in it twice"),
    "a file as folder": (lambda path: tar_with(path, member("b"), member("b/c")), "is in it twice"),
    "long name": (lambda path: tar_with(path, member("b" * 300)), "a name in it is too long"),
    "bomb": (bomb, "unpacks to more than 200 times"),
    "many": (lambda path: tar_with(path, *(member(str(i)) for i in range(40))), "more than 30 members"),
}


@pytest.mark.parametrize("name", EVIL)
def test_what_no_data_set_has_is_refused_and_nothing_stays(tmp_path, cache, monkeypatch, run, name):
    write, message = EVIL[name]
    if name == "many":
        monkeypatch.setattr(archives, "MAX_MEMBERS", 30)
    code, _, err = run("data", "stats", "yolo_txt", "--data", write(tmp_path / "evil"))
    assert code == 3 and message in one_line(err) and "nothing was unpacked" in err and str(tmp_path / "evil") in err
    assert not list(tmp_path.rglob("outside*"))
    assert not [path for path in cache.rglob("*") if path.suffix not in (".lock", ".size", ".tmp")]


def test_a_link_within_a_tar_is_the_file(tmp_path):
    path = tar_with(
        tmp_path / "a.tar",
        member("d/b"),
        member("d/c", tarfile.SYMTYPE, "b"),
        member("c", tarfile.LNKTYPE, "d/b"),
        size=7,
    )
    folder = local_folder(path)
    assert [(folder / name).read_bytes() for name in ("d/b", "d/c", "c")] == [b"x" * 7] * 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_cut_or_changed_archive_is_a_line(tmp_path, cache, run, suffix):
    whole = packed(coco_tree(tmp_path / "tree"), tmp_path / f"whole{suffix}").read_bytes()
    length = len(whole.rstrip(b"\0")) if suffix == ".tar" else len(whole)
    path = tmp_path / f"a{suffix}"
    for cut in (0, 1, 300, length // 2, length - 3, 1024 if suffix == ".tar" else length - 1):
        path.write_bytes(whole[:cut])
        code, _, err = run("data", "stats", "coco", "--data", path)
        assert code == 3 and str(path) in one_line(err), (cut, err)
    for text in (b"<!DOCTYPE html><p>404", b"nothing of the kind " * 100):
        path.write_bytes(text)
        code, _, err = run("data", "stats", "coco", "--data", path)
        assert code == 3 and ("HTML page" if text[:1] == b"<" else "no zip or tar") in one_line(err)
    assert not [file for file in cache.rglob("*") if file.is_file() and file.suffix not in (".lock", ".size")]


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_byte_never_changes_what_is_read(tmp_path, suffix, place, value):
    """It is refused with exit code 3, or lies where nothing of the contents is."""
    tree = tmp_path / "tree"
    if not tree.exists():
        packed(yolo_tree(tree), tmp_path / f"whole{suffix}")
    damaged = bytearray((tmp_path / f"whole{suffix}").read_bytes())
    damaged[int(place * len(damaged))] ^= value
    path, folder = tmp_path / "damaged", tmp_path / "out"
    path.write_bytes(damaged)
    folder.mkdir(exist_ok=True)
    try:
        unpack(path, folder, lambda count: None)
    except DataError as error:
        assert "\n" not in str(error) and not list(folder.iterdir())
        return
    contents = sorted(file.read_bytes() for file in tree.rglob("*") if file.is_file())
    assert sorted(file.read_bytes() for file in folder.rglob("*") if file.is_file()) == contents


def test_a_zip_whose_list_swallows_members_is_refused(tmp_path):
    """A damaged length takes the members behind it for a comment of the first."""
    archive = packed(yolo_tree(tmp_path / "tree"), tmp_path / "whole.zip")
    data = bytearray(archive.read_bytes())
    first = data.index(b"PK\x01\x02")
    data[first + 32 : first + 34] = (len(data) - 22 - first - 46 - data[first + 28]).to_bytes(2, "little")
    (tmp_path / "damaged.zip").write_bytes(data)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="its list of members is damaged; nothing was unpacked"):
        unpack(tmp_path / "damaged.zip", tmp_path / "out", lambda count: None)


def test_a_zip_whose_members_would_begin_before_it_is_refused(tmp_path):
    data = bytearray(packed(yolo_tree(tmp_path / "tree"), tmp_path / "whole.zip").read_bytes())
    data[-6:-2] = (int.from_bytes(data[-6:-2], "little") + 200).to_bytes(4, "little")  # where the list is said to begin
    (tmp_path / "damaged.zip").write_bytes(data)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="damaged.zip: .*Invalid argument; nothing was unpacked"):
        unpack(tmp_path / "damaged.zip", tmp_path / "out", lambda count: None)


def test_a_corrupt_member_of_a_zip_read_in_place_is_named(tmp_path, run):
    archive = packed(folder_tree(tmp_path / "tree"), tmp_path / "a.zip")
    with zipfile.ZipFile(archive) as opened:
        place = opened.getinfo("train/dog/1.png").header_offset
    data = bytearray(archive.read_bytes())
    data[place + 60] ^= 1
    archive.write_bytes(data)
    code, out, _ = run("data", "check", "image_folder", "--data", archive)
    assert code == 3 and "train/dog/1.png" in out


def unpack_in_a_process(archive: str, barrier, answers) -> None:
    barrier.wait(30)
    folder = local_folder(Path(archive))
    answers.put((str(folder), sorted(file.stat().st_ino for file in folder.rglob("*.png"))))


def test_processes_that_unpack_one_archive_get_the_same_folder(tmp_path):
    tree = tmp_path / "tree"
    for i in range(200):
        save(tree / f"train/a/{i}.png", i)
    archive = packed(tree, tmp_path / "a.tar.gz")
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(3), context.Queue()
    processes = [context.Process(target=unpack_in_a_process, args=(str(archive), barrier, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    folders = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
    assert folders[0] == folders[1] == folders[2] and len(folders[0][1]) == 200


def die_while_unpacking(archive: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python's own handling makes it an error
    local_folder(Path(archive))


def test_a_process_that_dies_while_unpacking_leaves_no_half(tmp_path, cache):
    archive = tar_with(tmp_path / "a.tar", member("small"), member("large"), size=1 << 21)
    process = multiprocessing.get_context("fork").Process(target=die_while_unpacking, args=(str(archive),))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGXFSZ and [path for path in cache.glob("*.tmp") if list(path.iterdir())]
    assert sorted(path.name for path in local_folder(archive).iterdir()) == ["large", "small"]
    assert not list(cache.glob("*.tmp"))


def test_the_cache_is_bounded_and_drops_what_was_not_used_for_longest(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("CONVZOO_CACHE_GB", "0.003")
    paths = [tar_with(tmp_path / f"{name}.tar", member(name), size=1_000_000) for name in "abcd"]
    folders = []
    for path in paths:
        process = multiprocessing.get_context("fork").Process(target=local_folder, args=(path,))  # and its lock goes
        process.start()
        process.join(30)
        folders += [folder for folder in cache.iterdir() if folder.is_dir() and folder.name.startswith(path.name)]
        time.sleep(0.01)
    assert [folder.is_dir() for folder in folders] == [False, False, True, True]
    used = [local_folder(path) for path in paths[2:]]
    with pytest.raises(ConvzooError, match=r"a.tar: 0.001 GB or more, the cache .* CONVZOO_CACHE_GB, now .* raises it"):
        local_folder(tar_with(tmp_path / "a.tar", member("a"), size=1_000_001))
    assert all(folder.is_dir() for folder in used)
    monkeypatch.setenv("CONVZOO_CACHE_GB", "much")
    with pytest.raises(UsageError, match="CONVZOO_CACHE_GB=much"):
        local_folder(paths[0])


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path, monkeypatch, run):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONVZOO_CACHE", str(tmp_path / "file/cache"))
    archive = packed(yolo_tree(tmp_path / "tree"), tmp_path / "a.tar")
    code, _, err = run("data", "stats", "yolo_txt", "--data", archive)
    assert code == 1 and "CONVZOO_CACHE names another" in one_line(err)


def test_cifars_own_archive_is_read_as_it_is_published(tmp_path):
    """The real one has the folder, a readme page and batches.meta.txt beside the six files."""
    tree = cifar_tree(tmp_path / "tree")
    (tree / "cifar-10-batches-bin/readme.html").write_text("<html>")
    (tree / "cifar-10-batches-bin/batches.meta.txt").write_text("airplane\n")
    archive = packed(tree, tmp_path / "cifar-10-binary.tar.gz")
    data = cifar10(archive, "train")
    assert len(data) == 20 and len(cifar10(archive, "val")) == 4
    assert torch.equal(data.load(7).image, cifar10(tree, "train").load(7).image)
