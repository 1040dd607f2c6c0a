"""URLs: read as local files are, fetched once, tried again, and nothing of the credentials is ever written down."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convzoo import api
from convzoo.data.datasets.coco import coco
from convzoo.data.datasets.image_folder import image_folder
from convzoo.environment import command_line
from convzoo.errors import ConvzooError, DataError, UsageError
from convzoo.logs import redacted
from convzoo.storage import local_folder, local_path, shown, url_of, written
from convzoo.storage.urls import SCHEME, TRIES, Remote
from helpers import QUICK, one_line, same, weights
from object_store import SECRET, Fault

DATA = Path("s3://bucket/my data/tree")  # as the command line and pathlib leave it


def tree(root: Path) -> Path:
    for number, place in enumerate(
        [f"{split}/{name}/ü {i}" for split in ("train", "val") for name in "ab" for i in range(8)]
    ):
        path = root / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return root


def put(store, folder: Path, url: str) -> None:
    store.fs.put(f"{folder}/", f"{url.removeprefix('s3://')}/", recursive=True)
    store.requests.clear()


def gets(store) -> list[str]:
    return [path for method, path in store.requests if method == "GET" and "list-type" not in path]


def pixels(data) -> list:
    return [data.load(i).image.tolist() for i in range(len(data))]


def test_a_path_keeps_its_url():
    for text in ("s3://bucket/a b/c", "https://host/x.zip?a=b", "memory://x", "s3a://bucket"):
        assert url_of(text) == url_of(Path(text)) == text and shown(Path(text)) == text
    assert url_of("a/b") is url_of("/a:/b") is url_of("timm:densenet121.ra_in1k") is url_of("C:/x") is None
    assert local_path("file:///etc/hosts") == local_path("/etc/hosts") == Path("/etc/hosts")
    assert SCHEME.match("hf-hub:timm/x") is None


def test_a_folder_behind_a_url_reads_as_the_local_one_and_is_fetched_once(store, tmp_path):
    local = tree(tmp_path / "tree")
    put(store, local, "s3://bucket/my data/tree")
    for split in ("train", "val"):
        assert pixels(image_folder(DATA, split)) == pixels(image_folder(local, split))
    assert len(gets(store)) == 32
    store.fs.pipe_file("bucket/my data/tree/train/a/ü 0.png", (local / "train/b/ü 1.png").read_bytes())
    store.requests.clear()
    changed = image_folder(DATA, "train")
    assert pixels(changed)[0] == pixels(changed)[9] and len(gets(store)) == 32  # another version, whole again
    store.requests.clear()
    image_folder(DATA, "val")
    assert gets(store) == []


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_an_archive_behind_a_url(store, tmp_path, name):
    local = tree(tmp_path / "tree")
    archive = shutil.make_archive(str(tmp_path / "a"), "zip" if name == "a.zip" else "gztar", local)
    store.fs.put_file(archive, f"bucket/{name}")
    for _ in range(2):
        assert pixels(image_folder(Path(f"s3://bucket/{name}"), "val")) == pixels(image_folder(local, "val"))
    assert len(gets(store)) == 1
    store.fs.pipe_file("bucket/broken.tar", b"nothing")
    with pytest.raises(DataError, match="no zip or tar"):
        coco(Path("s3://bucket/broken.tar"), "train")


@pytest.mark.parametrize(
    "fault",
    [Fault("503", times=3), Fault("cut", lambda method, path: method == "GET", times=3), Fault("stall", seconds=4)],
)
def test_what_passes_is_tried_again(store, fault, caplog):
    content = bytes(range(256)) * 100
    store.fs.pipe_file("bucket/file.bin", content)
    store.faults = [Fault(fault.kind, fault.matches, fault.times, fault.seconds)]
    assert local_path("s3://bucket/file.bin").read_bytes() == content
    assert store.faults[0].times == 0


def test_what_does_not_pass_ends_in_a_line(store, run):
    store.fs.pipe_file("bucket/model.safetensors", b"x" * 1000)
    for kind in ("503", "cut"):
        store.faults = [Fault(kind, lambda method, path: method == "GET", times=99)]
        code, _, err = run("eval", "s3://bucket/model.safetensors")
        message = one_line(err)
        assert code == 1 and f"failed {TRIES} times" in message and "s3://bucket/model.safetensors" in message
    store.faults = []
    code, _, err = run("eval", "s3://bucket/model.safetensors")
    assert code == 1 and "safetensors" in one_line(err)  # what came is no model file


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("s3://bucket/none.safetensors", 2, "nothing is there"),
        ("s3://no-such-bucket/none", 2, "nothing is there"),
        ("gs://bucket/model.safetensors", 5, "gcsfs"),
        ("nonsense://bucket/model.safetensors", 2, "nonsense"),
    ],
)
def test_a_url_with_nothing_behind_it(store, run, path, code, words):
    got, _, err = run("eval", path)
    assert got == code and words in one_line(err) and path in err


def test_a_folder_that_was_fetched_in_part_goes_on(store, tmp_path):
    put(store, tree(tmp_path / "tree"), str(DATA).replace("s3:/", "s3://"))
    store.faults = [Fault("503", lambda method, path: method == "GET" and "val/b/" in path, times=999)]
    with pytest.raises(ConvzooError, match=f"failed {TRIES} times"):
        local_folder(DATA)
    store.faults = []
    fetched = len({path for path in gets(store) if "val/b/" not in path})
    store.requests.clear()
    assert len(image_folder(DATA, "val")) == 16
    assert 8 <= len(gets(store)) <= 32 - fetched + 8 < 32


def test_names_that_lead_out_are_refused(store):
    store.fs.pipe_file("bucket/evil/a/../../../outside.png", b"x")
    with pytest.raises((DataError, UsageError)):
        local_folder(Path("s3://bucket/evil"))


def test_too_much_for_the_cache_is_a_line(store, tmp_path, run, monkeypatch):
    monkeypatch.setenv("CONVZOO_CACHE_GB", "0.000001")
    put(store, tree(tmp_path / "tree"), "s3://bucket/tree")
    code, _, err = run("data", "stats", "image_folder", "--data", "s3://bucket/tree")
    assert (
        code == 1
        and "CONVZOO_CACHE_GB, now 1e-06, raises it, CONVZOO_CACHE names another folder" in one_line(err)
        and gets(store) == []
    )


def test_what_belongs_to_a_file_comes_and_goes_with_it(store):
    with written(Path("s3://bucket/exported/m.xml")) as local:
        local.write_text("network")
        local.with_suffix(".bin").write_text("weights")
    file = local_path("s3://bucket/exported/m.xml")
    assert file.read_text() == "network" and file.with_suffix(".bin").read_text() == "weights"


@pytest.fixture
def model(digits_run, store) -> str:
    store.fs.put_file(str(digits_run / "checkpoints/last.safetensors"), "bucket/models/digits.safetensors")
    store.fs.put_file(str(digits_run / "checkpoints/last.safetensors"), "bucket/models/second.safetensors")
    store.requests.clear()
    return "s3://bucket/models/digits.safetensors"


def test_verbs_read_and_write_urls(model, store, run, tmp_path, digits_run):
    local = digits_run / "checkpoints/last.safetensors"
    code, out, _ = run("eval", model, "--json", "--out", "s3://bucket/report/of")
    assert code == 0 and json.loads(out)["model"] == model
    assert json.loads(out)["top1"] == json.loads(run("eval", local, "--json")[1])["top1"]
    assert len(store.fs.find("bucket/report/of")) > 3
    code, out, _ = run("eval", "s3://bucket/models", "--json")
    assert code == 0 and [json.loads(line)["model"] for line in out.splitlines()] == [
        model,
        model.replace("digits", "second"),
    ]
    code, _, err = run("export", model, "--format", "onnx")
    assert code == 2 and "(--out)" in one_line(err)
    code, out, err = run("export", model, "--format", "onnx", "--out", "s3://bucket/exported/m.onnx")
    assert code == 0 and out.startswith("s3://bucket/exported/m.onnx  onnx opset "), err
    assert json.loads(run("eval", "s3://bucket/exported/m.onnx", "--json")[1])["images"] == 360
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    store.fs.put_file(str(tmp_path / "a.png"), "bucket/pictures/a.png")
    code, out, _ = run("predict", model, "s3://bucket/pictures", "--save", "s3://bucket/drawn", "--json")
    assert code == 0 and json.loads(out)["path"].endswith("a.png") and store.fs.exists("bucket/drawn/a.png")
    assert same(api.load(model).network.state_dict(), weights(digits_run))


def test_what_is_written_for_a_url_is_named_by_it(model, store, run, tmp_path):
    """Never by the temporary path from which it goes up; and nothing lands in a local folder `s3:`."""
    local = tree(tmp_path / "tree")
    for name in ("train", "val"):
        (local / name / "b").rename(local / name / "c")
    pictures = local / "val/a"
    there = "s3://bucket/made"
    cases = [
        (["convert", model, "--to", "darknet", "--out", f"{there}/digits.weights"], f"{there}/digits.weights"),
        (["convert", model, "--to", "darknet", "--json", "--out", f"{there}/d.weights"], f'"out": "{there}/d.weights"'),
        (["data", "save", "digits", "--count", 2, "--out", f"{there}/ü"], f"{there}/ü/0-"),
        (["data", "stats", "digits", "--sheet", f"{there}/sheet.png"], ""),
        (["data", "import", local, "--out", f"{there}/folders"], f"{there}/folders: image_folder with"),
        (["predict", model, pictures, "--dump-inputs", f"{there}/inputs"], f"8 inputs in {there}/inputs"),
        (["predict", model, pictures, "--label-studio", f"{there}/tasks.json"], ""),
    ]
    for command, text in cases:
        code, out, err = run(*command)
        assert code == 0, err
        assert text in out and "/convzoo-" not in out + err and "s3:/b" not in out
    names = {name.removeprefix("bucket/made/") for name in store.fs.find("bucket/made")}
    assert names >= {"digits.weights", "sheet.png", "inputs/index.json", "tasks.json", "tasks.xml"}
    assert len([name for name in names if name.startswith("folders/")]) == 32
    assert len([name for name in names if name.startswith("ü/")]) == 2 and not Path("s3:").exists()
    code, _, err = run("data", "import", local, "--out", f"{there}/folders")
    assert code == 2 and f"{there}/folders: not empty" in one_line(err)
    for command in (["data", "recipe", local, "--out", f"{there}/r.yaml"], ["data", "split", there, "--val", 0.2]):
        code, _, err = run(*command)
        assert code == 2 and there in one_line(err)


def test_training_from_urls_is_training_from_files(store, tmp_path, run, digits_run, model):
    local = tree(tmp_path / "tree")
    put(store, local, "s3://bucket/tree")
    ours = digits_run / "checkpoints/last.safetensors"
    command = "train", "tinydarknet-digits", *QUICK, "data.max_train_images=null", "data.name=image_folder"
    command = *command, "model.num_classes=2", "train.batch_size=8"
    for name, data, start in (("local", local, ours), ("url", "s3://bucket/tree", model)):
        code, _, err = run(*command, "--data", data, "--weights", start, "--out", tmp_path / name)
        assert code == 0, err
    assert same(weights(tmp_path / "local"), weights(tmp_path / "url"))
    assert json.loads((tmp_path / "url/data.json").read_text())["root"] == "s3://bucket/tree"


def test_credentials_are_never_written_down(store, tmp_path, run, caplog):
    """Neither those of fsspec's configuration nor those in a URL."""
    put(store, tree(tmp_path / "tree"), "s3://bucket/tree")
    out = tmp_path / "run"
    settings = [*QUICK, "data.max_train_images=null", "data.name=image_folder", "model.num_classes=2"]
    data = "s3://someUser:somePassword@bucket/tree"
    code, _, err = run("train", "tinydarknet-digits", *settings, "--data", data, "--out", out)
    assert "somePassword" not in err and "***" in err
    store.faults = [Fault("503", lambda method, path: "train/a" in path, times=9)]
    code, _, log = run(
        "train", "tinydarknet-digits", *settings, "train.batch_size=8", "--data", "s3://bucket/tree", "--out", out
    )
    assert code == 0
    texts = [path.read_bytes() for path in out.rglob("*") if path.is_file()] + [log.encode(), err.encode()]
    assert texts and not [text for text in texts if SECRET.encode() in text or b"somePassword" in text]
    assert command_line(["train", "--data", data]) == "convzoo train --data 's3://***@bucket/tree'"
    signed = "https://host/data.zip?X-Amz-Credential=AKIA1&X-Amz-Signature=0123&x=1"
    assert redacted(f"{signed}: failed") == "https://host/data.zip?***&***&x=1: failed"
    assert redacted("sftp://me:hunter2@host/x y@z") == "sftp://***@host/x y@z"
    assert "somePassword" not in Remote("memory://someUser:somePassword@host/x").shown
