"""Data sets, sample order and loading: every layout reads the same, every fault is named."""

import hashlib
import http.server
import io
import multiprocessing
import shutil
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from convzoo.build import build_dataset
from convzoo.config import recipe as recipes
from convzoo.data.datasets import cifar10 as cifar
from convzoo.data.datasets import download
from convzoo.data.datasets.cifar10 import cifar10
from convzoo.data.datasets.digits import digits
from convzoo.data.datasets.image_folder import image_folder
from convzoo.data.datasets.in_memory import PackedStrings
from convzoo.data.loader import Transformed, build_loader, checked, label_map
from convzoo.data.sampler import EvalBatches, TrainBatches, batch_arithmetic, check_batch_size
from convzoo.data.transforms.pipeline import Pipeline
from convzoo.errors import DataError, UsageError
from convzoo.inference.evaluate import eval_loader
from convzoo.tasks.classify import Classify
from helpers import one_line

RNG = np.random.RandomState(0)


def picture(value: int, size: int = 12) -> Image.Image:
    return Image.fromarray(RNG.randint(0, 60, (size, size, 3)).astype(np.uint8) + np.uint8(value))


@pytest.fixture
def tree(tmp_path):
    """Two classes, eight training and four validation pictures."""
    root = tmp_path / "tree"
    for split, count in (("train", 4), ("val", 2)):
        for number, name in enumerate(["cat", "dog"]):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                picture(100 * number).save(root / split / name / f"{i}.png")
    return root


def zipped(root, path, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, prefix + str(file.relative_to(root)))
    return path


def pixels(dataset):
    return [dataset.load(i).image for i in range(len(dataset))]


def test_digits_are_split_for_good():
    train, val = digits(None, "train"), digits(None, "val")
    assert (len(train), len(val)) == (1437, 360)
    assert not set(train.numbers) & set(val.numbers)
    assert hashlib.sha256(val.images.tobytes()).hexdigest()[:16] == "442dc941d800da16"
    assert len(digits(None, "train", max_train_images=100)) == 100
    assert len(digits(None, "val", max_train_images=100)) == 360


def test_a_zip_reads_like_the_folder(tree, tmp_path):
    folder = image_folder(tree, "train")
    for prefix in ("", "everything/"):
        archive = image_folder(zipped(tree, tmp_path / f"a{len(prefix)}.zip", prefix), "train")
        assert archive.class_names == folder.class_names == ["cat", "dog"]
        assert archive.labels.tolist() == folder.labels.tolist() == [0] * 4 + [1] * 4
        assert all(torch.equal(a, b) for a, b in zip(pixels(archive), pixels(folder), strict=True))


@pytest.mark.parametrize(
    ("train_name", "val_name"), [("ilsvrc", "validation_preprocess"), ("train", "validation"), ("train", "test")]
)
def test_layouts(tree, train_name, val_name):
    (tree / "train").rename(tree / train_name)
    (tree / "val").rename(tree / val_name)
    assert len(image_folder(tree, "train")) == 8 and len(image_folder(tree, "val")) == 4


def test_class_folders_alone_can_be_evaluated_and_hidden_ones_are_no_class(tree):
    (tree / "val" / ".ipynb_checkpoints").mkdir()
    (tree / "val" / "cat" / "notes.txt").write_text("not a picture, not counted")
    assert image_folder(tree / "val", "val").class_names == ["cat", "dog"]
    assert len(image_folder(tree, "val")) == 4
    recipe = recipes.load("vgg16-digits", ["data={name: image_folder}"])
    with pytest.raises(DataError, match="no folder train"):
        build_dataset(recipe, tree / "val", "train")
    assert len(build_dataset(recipe, tree / "val", "train", alone=True)) == 4
    with pytest.raises(DataError, match="no folder train"):
        image_folder(tree / "val" / "cat", "train")
    shutil.rmtree(tree / "train")
    with pytest.raises(DataError, match="no folder train"):
        image_folder(tree, "train")


def test_faults_of_a_tree(run, tree, tmp_path):
    small = [
        "--data",
        tree,
        "data.name=image_folder",
        "model.num_classes=2",
        "transform.train=[]",
        "transform.eval=[]",
        "train.epochs=1",
        "train.batch_size=4",
        "--out",
        tmp_path / "run",
    ]
    train = ["train", "tinydarknet-digits", *small]

    def message(code: int) -> str:
        got, _, err = run(*train)
        assert got == code, err
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return one_line(err)

    (tree / "train" / "empty").mkdir()
    assert "class folder 'empty' of 'train' has no pictures" in message(3)
    (tree / "train" / "empty").rmdir()
    (tree / "val" / "horse").mkdir()
    picture(3).save(tree / "val" / "horse" / "0.png")
    assert "only in val: horse" in message(3)
    shutil.rmtree(tree / "val" / "horse")
    bad = tree / "train" / "dog" / "1.png"
    whole = bad.read_bytes()
    for content, said in [(whole[: len(whole) // 2], "damaged"), (b"", "empty file"), (b"just text", "not a picture")]:
        bad.write_bytes(content)
        text = message(3)
        assert str(bad) in text and said in text
    code, _, err = run(*train, "--on-bad-sample", "skip")
    assert code == 0 and f"skipped {bad}" in err
    assert "1 unreadable training images were left out" in (tmp_path / "run" / "README.md").read_text()
    shutil.rmtree(tree / "val")
    assert "no folder val" in message(3)
    shutil.rmtree(tree)
    assert "no such file or folder" in message(2)
    tree.mkdir()
    assert "no folder train" in message(3)


def test_data_check_finds_damage_and_duplicates(run, tree):
    shutil.copy(tree / "train/cat/0.png", tree / "train/cat/copy.png")
    shutil.copy(tree / "train/cat/1.png", tree / "val/cat/leak.png")
    code, out, _ = run("data", "check", "image_folder", "--data", tree)
    assert code == 0 and "1 groups of duplicates" in out and "in both splits: 1" in out and "leak.png" in out
    (tree / "val/dog/0.png").write_bytes(b"")
    code, out, err = run("data", "check", "image_folder", "--data", tree)
    assert code == 3 and "val/dog/0.png: empty file" in out and "1 pictures cannot be read" in one_line(err)


def cifar_records(count: int, seed: int) -> bytes:
    rng = np.random.RandomState(seed)
    records = rng.randint(0, 256, (count, cifar.RECORD_BYTES)).astype(np.uint8)
    records[:, 0] = rng.randint(0, 10, count)
    return records.tobytes()


@pytest.fixture
def binary(tmp_path):
    root = tmp_path / "cifar"
    root.mkdir()
    for i in range(1, 6):
        (root / f"data_batch_{i}.bin").write_bytes(cifar_records(20, i))
    (root / "test_batch.bin").write_bytes(cifar_records(10, 0))
    return root


def test_binary_cifar_takes_the_train_batches_only(binary, tmp_path):
    train, val = cifar10(binary, "train"), cifar10(binary, "val")
    assert (len(train), len(val)) == (100, 10) and train.class_names == cifar.CLASS_NAMES
    first = np.frombuffer((binary / "data_batch_1.bin").read_bytes()[: cifar.RECORD_BYTES], np.uint8)
    assert train.load(0).target == first[0]
    assert (train.load(0).image.numpy().ravel() == first[1:]).all()
    pair = tmp_path / "pair"
    (pair / "cifar-10-batches-bin").mkdir(parents=True)
    (pair / "cifar-10-verify-bin").mkdir()
    for file in binary.iterdir():
        shutil.copy(file, pair / ("cifar-10-verify-bin" if "test" in file.name else "cifar-10-batches-bin") / file.name)
    assert (cifar10(pair, "train").images == train.images).all() and (cifar10(pair, "val").labels == val.labels).all()
    (binary / "data_batch_3.bin").write_bytes(cifar_records(20, 3)[:-1])
    with pytest.raises(DataError, match="data_batch_3.bin: 61459 bytes"):
        cifar10(binary, "train")
    (binary / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3.bin: missing"):
        cifar10(binary, "train")


def test_the_whole_cifar_zip(shared):
    train, val = cifar10(shared / "data/cifar10-jpeg.zip", "train"), cifar10(shared / "data/cifar10-jpeg.zip", "val")
    assert (len(train), len(val)) == (50_000, 10_000)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert train.load(12_345).image.shape == (3, 32, 32)
    assert train.path(0).endswith("train/airplane/0001.jpg") or "/airplane/" in train.path(0)


def test_class_folders_that_are_not_cifar(tree):
    with pytest.raises(DataError, match="not CIFAR-10's: cat, dog"):
        cifar10(tree, "train")


def test_packed_strings_give_back_what_was_packed():
    strings = ["", "a/b.jpg", "ü/日本.png", "x" * 300]
    packed = PackedStrings(strings)
    assert list(packed) == strings and len(packed) == 4


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_global_batch_is_the_same_for_any_ranks_and_micro_batches(world_size, accumulate):
    def global_batches(world_size: int, accumulate: int) -> list[set[int]]:
        per_rank = [list(TrainBatches(50, 16, 3, 2, 9, accumulate, rank, world_size)) for rank in range(world_size)]
        steps = len(per_rank[0]) // accumulate
        return [
            {
                key.index
                for batches in per_rank
                for micro in batches[s * accumulate : (s + 1) * accumulate]
                for key in micro
            }
            for s in range(steps)
        ]

    expected = global_batches(1, 1)
    assert global_batches(world_size, accumulate) == expected
    assert len(expected) == 7 and all(len(batch) == 16 for batch in expected)
    epoch = set.union(*global_batches(1, 1)[1:4])
    assert len(epoch) == 48  # steps 3..5 are one epoch: no sample twice


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_evaluation_sees_every_sample_once(world_size, batch):
    seen = [
        key.index for rank in range(world_size) for keys in EvalBatches(53, batch, rank, world_size) for key in keys
    ]
    assert sorted(seen) == list(range(53))
    for rank in range(world_size):
        assert len(list(EvalBatches(53, batch, rank, world_size))) == len(EvalBatches(53, batch, rank, world_size))


def test_batch_arithmetic_is_checked():
    assert "batch 64 = 2 ranks x 2 micro-batches x 16" in batch_arithmetic(1000, 64, 2, 2)
    assert "batch 30 = " in batch_arithmetic(30, 64, 1, 1)  # fewer images than a batch are one batch
    check_batch_size(1000, 64, 2, 2)
    with pytest.raises(UsageError, match="does not divide"):
        check_batch_size(1000, 64, 1, 3)
    with pytest.raises(DataError, match="fewer than"):
        check_batch_size(3, 64, 1, 4)


def test_workers_do_not_change_what_arrives():
    dataset, task = digits(None, "train"), Classify([str(i) for i in range(10)])
    keys = TrainBatches(len(dataset), 32, 0, 0, 6)
    data = Transformed(dataset, Pipeline([], 0))
    alone, together = (list(build_loader(data, task, keys, workers)) for workers in (0, 2))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets) and a.paths == b.paths


def test_workers_stay_from_one_evaluation_to_the_next_and_give_the_same():
    dataset, task = digits(None, "val"), Classify([str(i) for i in range(10)])
    data, pids, passes = Transformed(dataset, Pipeline([], 0)), [], []
    loader = eval_loader(data, task, 100, 2, "cpu", keep_workers=True)
    for _ in range(3):
        passes.append([(batch.images.clone(), batch.ids.tolist()) for batch in loader])
        pids.append({process.pid for process in multiprocessing.active_children()})
    assert pids[0] == pids[1] == pids[2] and len(pids[0]) >= 2
    passes.append([(batch.images, batch.ids.tolist()) for batch in eval_loader(data, task, 100, 0, "cpu")])
    for other in passes[1:]:
        for (a, ids_a), (b, ids_b) in zip(passes[0], other, strict=True):
            assert torch.equal(a, b) and ids_a == ids_b


def test_faults_in_a_worker_arrive_as_one_message(tree):
    (tree / "train/cat/0.png").write_bytes(b"no picture")
    data = Transformed(image_folder(tree, "train"), Pipeline([], 0))
    loader = build_loader(data, Classify(["cat", "dog"]), EvalBatches(8, 4), workers=1)
    with pytest.raises(DataError, match=r"cat/0.png: not a picture") as caught:
        checked(next(iter(loader)), "error")
    assert "\n" not in str(caught.value) and caught.value.options == ("on_bad_sample",)


def test_labels_are_matched_by_name():
    assert label_map(["a", "b"], ["a", "b"], "x") is None
    assert label_map(["c", "a"], ["a", "b", "c"], "x") == [2, 0]
    with pytest.raises(DataError, match="1 of 2 classes that the model does not know: z"):
        label_map(["a", "z"], ["a", "b"], "x")


@pytest.fixture
def server(tmp_path):
    """A real web server on the loopback."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = lambda *args: http.server.SimpleHTTPRequestHandler(*args, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def tar_of(files: dict[str, bytes], **links: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return buffer.getvalue()


def test_download_checks_extracts_and_does_not_fetch_twice(server, tmp_path, binary):
    folder, url = server
    archive = tar_of({f"cifar-10-batches-bin/{file.name}": file.read_bytes() for file in binary.iterdir()})
    (folder / "c.tar.gz").write_bytes(archive)
    md5 = hashlib.md5(archive).hexdigest()
    root = tmp_path / "data"
    download.download_cifar10(root, f"{url}/c.tar.gz", md5)
    assert len(cifar10(root, "train")) == 100 and len(cifar10(root, "val")) == 10
    download.download_cifar10(root, "http://127.0.0.1:9/none", md5)


@pytest.mark.parametrize(
    "archive", [tar_of({"../outside.bin": b"x"}), tar_of({"/etc/outside.bin": b"x"}), tar_of({}, link="/etc/passwd")]
)
def test_an_archive_that_reaches_out_is_refused(server, tmp_path, archive):
    folder, url = server
    (folder / "evil.tar.gz").write_bytes(archive)
    root = tmp_path / "data"
    with pytest.raises(DataError, match="nothing was unpacked"):
        download.download_cifar10(root, f"{url}/evil.tar.gz", hashlib.md5(archive).hexdigest())
    assert not (tmp_path / "outside.bin").exists()
    assert {path.name for path in root.iterdir()} == {"cifar-10-binary.tar.gz", ".downloading"}
