"""Fetch an archive when asked to: verified before it is opened, extracted safely, never half there."""

import fcntl
import hashlib
import http.client
import os
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from convzoo.data.datasets.cifar10 import ARCHIVE_MD5, ARCHIVE_URL, FILES
from convzoo.errors import ConvzooError, DataError, UsageError
from convzoo.files import named_in_errors
from convzoo.logs import bar, log
from convzoo.storage.archives import unpack

TIMEOUT_S, TRIES, FIRST_DELAY_S = 30, 5, 1.0  # of a silence; doubled each time: 15 seconds in all
CHUNK = 1 << 20
MAX_EXTRACTED = 1 << 30


def download_cifar10(root: Path, url: str = ARCHIVE_URL, md5: str = ARCHIVE_MD5) -> Path:
    """Fetch CIFAR-10's binary archive into root and extract it; do nothing where it already lies there.

    Raises:
        ConvzooError: the server cannot be reached, or does not have the file.
        DataError: the file that came is not the archive, or holds what it should not.
    """
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root}: a file; CIFAR-10 is fetched into a folder", ("data",))
    folder = root / "cifar-10-batches-bin"
    if (folder / FILES["val"][0]).is_file():
        log.info(f"CIFAR-10 is already in {folder}")
        return folder
    root.mkdir(parents=True, exist_ok=True)
    archive = root / "cifar-10-binary.tar.gz"
    with open(root / ".downloading", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one fetches, the others find what it fetched
        if not (folder / FILES["val"][0]).is_file():
            fetch(url, archive, md5)
            extract(archive, root)
    return folder


def fetch(url: str, path: Path, md5: str) -> None:
    """Fetch a file and give it its name once its MD5 is right; what came of it is kept for the next try, or start.

    Raises:
        ConvzooError: the server does not have it or does not answer, again and again; there is no room for it.
        DataError: what came is something else.
    """
    temporary = path.with_name(f"{path.name}.part")
    log.info(f"fetching {url}")
    delay_s = FIRST_DELAY_S
    for left in reversed(range(TRIES)):
        try:
            _get_rest(url, temporary)
            break
        except (OSError, ValueError, http.client.HTTPException) as error:
            code = error.code if isinstance(error, urllib.error.HTTPError) else 0
            if code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # all of it came before
                break
            final = 400 <= code < 500
            reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
            if final or not left:
                text = f"{url}: cannot be fetched ({reason}); fetch it by hand and place it at {path}"
                raise ConvzooError(text) from None
            log.warning(f"{url}: {reason}; again in {delay_s:.0f} s")
        time.sleep(delay_s)
        delay_s *= 2
    with open(temporary, "rb") as file:
        head, size = file.read(64).lstrip().lower(), os.fstat(file.fileno()).st_size
        file.seek(0)
        digest = hashlib.file_digest(file, "md5").hexdigest()
    if digest != md5:
        temporary.unlink()
        what = "an HTML page of " if head.startswith((b"<!doctype", b"<html")) else ""
        raise DataError(f"{url}: came as {what}{size:,} bytes with MD5 {digest}, not {md5}; nothing was kept")
    os.replace(temporary, path)


def _get_rest(url: str, path: Path) -> None:
    """Get what is missing of a file. Raises OSError, and ConvzooError where it cannot be written."""
    have = path.stat().st_size if path.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        have = have if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        total = have + int(response.headers.get("Content-Length") or 0)
        with open(path, "ab" if have else "wb") as file, bar(total, have, path.stem) as shown:
            while chunk := response.read1(CHUNK):
                with named_in_errors(path):
                    file.write(chunk)
                    file.flush()
                shown.update(len(chunk))
                have += len(chunk)
    if have < total:
        raise OSError(f"{have:,} of {total:,} bytes came")


def extract(archive: Path, root: Path) -> None:
    """Extract an archive into root, up to a total size, all of it or nothing."""
    total = 0

    def take(count: int) -> None:
        nonlocal total
        total += count
        if total > MAX_EXTRACTED:
            raise DataError(f"{archive}: extracts to more than {MAX_EXTRACTED:,} bytes; nothing was unpacked")

    with tempfile.TemporaryDirectory(prefix=".unpacking", dir=root) as temporary:
        unpack(archive, Path(temporary), take)
        for inside in Path(temporary).iterdir():
            os.rename(inside, root / inside.name)
