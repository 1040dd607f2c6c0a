"""Fetch an archive when asked to: verified before it is opened, extracted safely, never half there."""

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from convzoo.data.datasets.cifar10 import ARCHIVE_MD5, ARCHIVE_URL, FILES
from convzoo.errors import ConvzooError, DataError, UsageError
from convzoo.logs import bar, log
from convzoo.storage import unpack

TIMEOUT_S = 30
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
    fetch(url, archive, md5)
    extract(archive, root)
    return folder


def fetch(url: str, path: Path, md5: str) -> None:
    """Fetch a file to a temporary name and give it its name once its MD5 is right."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    digest = hashlib.md5(usedforsecurity=False)
    log.info(f"fetching {url}")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, open(temporary, "wb") as file:
            total = int(response.headers.get("Content-Length") or 0)
            with bar(total, 0, path.name) as shown:
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    shown.update(len(chunk))
        if digest.hexdigest() != md5:
            size = temporary.stat().st_size
            raise DataError(
                f"{url}: came with {size:,} of {total or size:,} bytes and MD5 {digest.hexdigest()}, not {md5}; "
                "nothing was kept"
            )
        os.replace(temporary, path)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ConvzooError(
            f"{url}: cannot be fetched ({getattr(error, 'reason', error)}); fetch it by hand and place it at {path}"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


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
