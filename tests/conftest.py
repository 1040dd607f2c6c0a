"""Fixtures of all tests: the reference data, and the command line run in-process."""

import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import pytest
import torch
from fsspec.config import conf

from annotated import write_coco
from convzoo import cli
from convzoo.config import registry
from convzoo.convert import darknet
from convzoo.report import plots
from convzoo.storage import urls
from helpers import FIXTURES, QUICK, SHARED, THREADS

if TYPE_CHECKING:
    from object_store import ObjectStore


@pytest.fixture(autouse=True, scope="session")
def _threads():
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    os.environ["CONVZOO_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def _plain_layout():
    """Fit no margins to texts, which takes a third of a short run's time; `report/test_draw.py` draws as users do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plots.STYLE, "figure.constrained_layout.use", False)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"reference data not found at {SHARED} (set CONVZOO_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def own_mindspore(tmp_path_factory) -> Path:
    """What MindSpore itself computed for `fixtures/write_mindspore.py`, unpacked."""
    folder = tmp_path_factory.mktemp("mindspore")
    with zipfile.ZipFile(FIXTURES / "mindspore.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session", params=["fixtures", "shared"])
def mindspore_outputs(request) -> Path:
    """The same of our own small fixtures, and of the reference data with the zoo's own programs."""
    if request.param == "fixtures":
        return request.getfixturevalue("own_mindspore")
    return request.getfixturevalue("shared") / "fixtures/mindspore"


@pytest.fixture(scope="session")
def own_coco(tmp_path_factory) -> Path:
    """Fifty pictures a split in COCO's layout, made here."""
    root = tmp_path_factory.mktemp("coco")
    for split in ("train", "val"):
        write_coco(root, split)
    return root


@pytest.fixture(scope="session", params=["made", "shared"])
def coco_root(request) -> Path:
    """The same, and as many real ones of the reference data."""
    if request.param == "made":
        return request.getfixturevalue("own_coco")
    return request.getfixturevalue("shared") / "data/tiny-coco"


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """A file as Darknet's own tiny.weights, header and all, of random numbers."""
    model = {"name": "tinydarknet"}
    generator = torch.Generator().manual_seed(0)
    state_dict = registry.bind("model", model)().state_dict()
    state_dict = {name: torch.rand(t.shape, generator=generator) if t.dim() else t for name, t in state_dict.items()}
    path = tmp_path_factory.mktemp("darknet") / "tiny.weights"
    path.write_bytes(darknet.write(state_dict, model, seen=204_800_000, version=(0, 1, 0)))
    return path


@pytest.fixture(scope="session")
def _object_store() -> Iterator["ObjectStore"]:
    import object_store  # here: slow to import, and few tests ask for it

    store, stop = object_store.serve()
    yield store
    stop()


@pytest.fixture
def store(_object_store, monkeypatch, tmp_path) -> "ObjectStore":
    """An S3 server on the loopback, which fsspec is told of by its own configuration, with an empty bucket `bucket`.

    Nothing is in the cache, and what is tried again is so at once.
    """
    monkeypatch.setitem(conf, "s3", _object_store.options)
    monkeypatch.setattr(urls, "FIRST_DELAY_S", 0.01)
    monkeypatch.setenv("CONVZOO_CACHE", str(tmp_path / "cache of urls"))
    _object_store.faults = []
    _object_store.fs = fsspec.filesystem("s3", use_listings_cache=False)
    if _object_store.fs.exists("bucket"):
        _object_store.fs.rm("bucket", recursive=True)
    _object_store.fs.mkdir("bucket")
    _object_store.requests.clear()
    return _object_store


@pytest.fixture
def run(capsys):
    """Run a command line; return its exit code, stdout and stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(part) for part in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """A finished run of tinydarknet on small digits, good enough to be right about most of them."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert (
        cli.main(
            ["train", "tinydarknet-digits", *QUICK, "data.max_train_images=null", "train.epochs=3", "--out", str(out)]
        )
        == 0
    )
    return out


@pytest.fixture
def in_float64():
    """Compute in float64, where rounding is too small to move a ReLU or a maximum to the other side."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium whose camera shows a moving test picture."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium here: apt-get install chromium")
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox", *camera])
        yield browser
        browser.close()
