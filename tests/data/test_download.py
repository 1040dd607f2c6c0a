"""Downloads that go wrong: a server of pages, halves and silences on the loopback, and processes that want one file."""

import contextlib
import hashlib
import http.server
import io
import multiprocessing
import os
import resource
import tarfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from convzoo.data.datasets import download
from convzoo.data.datasets.cifar10 import FILES
from convzoo.errors import ConvzooError, DataError


def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in (*FILES["train"], *FILES["val"]):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            content = os.urandom(3073)  # one picture, which does not pack
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@dataclass
class Site:
    """A server of one file. `faults` are what happens to the next requests: "404", "503", "page", "half", "silence"."""

    content: bytes = field(default_factory=archive)
    faults: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    delay_s: float = 0.0
    url: str = ""
    silence: threading.Event = field(default_factory=threading.Event)

    @property
    def md5(self) -> str:
        return hashlib.md5(self.content).hexdigest()


@pytest.fixture
def site():
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            fault = site.faults.pop(0) if site.faults else ""
            site.ranges.append(self.headers.get("Range"))
            if fault in ("404", "503"):
                self.send_error(int(fault))
                return
            start = int((site.ranges[-1] or "bytes=0-")[6:-1])
            if start >= len(site.content):
                self.send_error(416)
                return
            content = b"<html>please log in</html>" if fault == "page" else site.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            time.sleep(site.delay_s)
            self.wfile.write(content[: len(content) // 2] if fault in ("half", "silence") else content)
            if fault == "silence":
                self.wfile.flush()
                site.silence.wait(10)

        def handle(self):
            with contextlib.suppress(OSError):  # the client gave up
                super().handle()

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        site.url = f"http://127.0.0.1:{httpd.server_port}/cifar.tar.gz"
        yield site
        site.silence.set()
        httpd.shutdown()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(download, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(download, "TIMEOUT_S", 2)


def files(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


@pytest.mark.parametrize("faults", [["half"], ["silence"], ["503", "half", "silence", "half"]])
def test_a_download_that_breaks_off_goes_on_where_it_was(site, tmp_path, faults):
    site.faults = list(faults)
    folder = download.download_cifar10(tmp_path, site.url, site.md5)
    assert len(list(folder.iterdir())) == 6 and files(tmp_path) >= {"cifar-10-binary.tar.gz", folder.name}
    assert len(site.ranges) == len(faults) + 1 and site.ranges[-1] not in (None, "bytes=0-")


@pytest.mark.parametrize(
    ("faults", "error", "message", "tries"),
    [
        (
            ["404"],
            ConvzooError,
            r"cannot be fetched \(Not Found\); fetch it by hand and place it at .*binary.tar.gz",
            1,
        ),
        (["503"] * 9, ConvzooError, r"cannot be fetched \(Service Unavailable\)", download.TRIES),
        (["silence"] * 9, ConvzooError, r"cannot be fetched \(timed out\)", download.TRIES),
        (["half"] * 9, ConvzooError, r"cannot be fetched \([\d,]+ of [\d,]+ bytes came\)", download.TRIES),
        (["page"], DataError, "came as an HTML page of 26 bytes with MD5 .*; nothing was kept", 1),
        (["wrong"], DataError, "came as 5 bytes with MD5 [0-9a-f]{32}, not [0-9a-f]{32}; nothing was kept", 1),
    ],
)
def test_a_download_that_goes_wrong_ends_in_a_line(site, tmp_path, monkeypatch, faults, error, message, tries):
    site.faults, md5 = list(faults), site.md5
    if "silence" in faults:
        monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    if faults == ["wrong"]:
        site.content = b"wrong"
    with pytest.raises(error, match=message):
        download.download_cifar10(tmp_path, site.url, md5)
    assert len(site.ranges) == tries
    assert files(tmp_path) - {".downloading"} <= {"cifar-10-binary.tar.gz.part"} and not (
        error is DataError and (tmp_path / "cifar-10-binary.tar.gz.part").exists()
    )


def test_nobody_there_and_no_room(site, tmp_path):
    with pytest.raises(ConvzooError, match=r"cannot be fetched .*refused.*place it at .*cifar-10-binary.tar.gz"):
        download.download_cifar10(tmp_path, "http://127.0.0.1:9/cifar.tar.gz")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ConvzooError, match=r"tar.gz.part: cannot be written: no space left"):
            download.download_cifar10(tmp_path, site.url, site.md5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert download.download_cifar10(tmp_path, site.url, site.md5).is_dir()


def fetch_in_a_process(root: str, url: str, md5: str) -> None:
    os._exit(0 if (download.download_cifar10(Path(root), url, md5) / "test_batch.bin").is_file() else 1)


def test_processes_that_want_one_file_fetch_it_once(site, tmp_path):
    site.delay_s = 0.3
    fork = multiprocessing.get_context("fork")
    arguments = str(tmp_path), site.url, site.md5
    processes = [fork.Process(target=fetch_in_a_process, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0] and len(site.ranges) == 1


def test_what_a_killed_download_left_is_gone_on_with_unless_it_is_another_files(site, tmp_path):
    for count in (1000, len(site.content)):
        root = tmp_path / str(count)
        root.mkdir()
        (root / "cifar-10-binary.tar.gz.part").write_bytes(site.content[:count])
        download.download_cifar10(root, site.url, site.md5)
        assert site.ranges.pop() == f"bytes={count}-" and not site.ranges
    other = tmp_path / "other"
    other.mkdir()
    (other / "cifar-10-binary.tar.gz.part").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="nothing was kept"):
        download.download_cifar10(other, site.url, site.md5)
    assert download.download_cifar10(other, site.url, site.md5).is_dir()
