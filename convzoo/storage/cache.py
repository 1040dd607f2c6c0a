"""The bounded folder of what was unpacked or fetched: an entry is there whole or not at all.

CONVZOO_CACHE names the folder (~/.cache/convzoo), CONVZOO_CACHE_GB what it may hold (100). Where room is needed, the
entries that were not used for longest go first, none that a living process uses: it holds a lock that ends with it.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from convzoo.errors import ConvzooError, UsageError
from convzoo.logs import log

FOLDER, LIMIT = "CONVZOO_CACHE", "CONVZOO_CACHE_GB"
GB = 10**9
STEP_BYTES = 1 << 28  # in which room is asked for where the whole size is not known
_in_use: dict[Path, TextIO] = {}  # locks of this process's entries, held until it ends


def cache_folder() -> Path:
    """Return the folder, made if need be. Raises ConvzooError where it cannot be."""
    named = os.environ.get(FOLDER)
    above = os.environ.get("XDG_CACHE_HOME")
    if named:
        folder = Path(named)
    elif above:
        folder = Path(above) / "convzoo"
    else:
        try:
            folder = Path.home() / ".cache/convzoo"
        except RuntimeError:  # nobody's home
            folder = Path(tempfile.gettempdir()) / f"convzoo-{os.getuid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConvzooError(f"{folder}: no cache can be there: {error.strerror}; {FOLDER} names another") from None
    return folder.absolute()


def limit_bytes() -> int:
    """Return how much the folder may hold. Raises UsageError."""
    text = os.environ.get(LIMIT, "100")
    if not re.fullmatch(r"\d{1,9}(\.\d+)?", text):
        raise UsageError(f"{LIMIT}={text}: must be a number of gigabytes")
    return int(float(text) * GB)


class Room:
    """What an entry may take of the folder: `take` makes room for more bytes before they are written."""

    def __init__(self, entry: Path, what: str):
        self.entry, self.what = entry, what
        self.bytes = self._reserved = 0

    def take(self, count: int) -> None:
        """Count bytes that will be written. Raises ConvzooError where the folder or the disk cannot hold them."""
        self.bytes += count
        if self.bytes > self._reserved:
            self._reserve(self.bytes + min(STEP_BYTES, limit_bytes() // 16))

    def _reserve(self, count: int) -> None:
        others = {path: size for path, size in _sizes(self.entry.parent).items() if path != self.entry}
        for path in sorted(others, key=_last_use):
            if sum(others.values()) + count <= limit_bytes():
                break
            if _drop(path):
                del others[path]
        rest = limit_bytes() - sum(others.values())
        if self.bytes > rest:
            raise ConvzooError(
                f"{self.what}: {self.bytes / GB:.3f} GB or more, the cache {self.entry.parent} has room for "
                f"{rest / GB:.3f}; {LIMIT}, now {limit_bytes() / GB:g}, raises it, {FOLDER} names another folder"
            )
        free = shutil.disk_usage(self.entry.parent).free
        if self.bytes - self._reserved > free:
            raise ConvzooError(f"{self.what}: no space left for {self.bytes / GB:.3f} GB in {self.entry.parent}")
        self._reserved = min(count, rest)
        _beside(self.entry, ".size").write_text(str(self._reserved))

    def settle(self) -> None:
        """Write down what the entry really takes."""
        _beside(self.entry, ".size").write_text(str(self.bytes))


def kept(name: str, identity: str, what: str, make: Callable[[], bytes]) -> bytes:
    """Return the bytes of something small, made where the cache does not have them whole; arguments as of `entry`."""

    def fill(folder: Path, room: Room) -> None:
        content = make()
        room.take(len(content))
        (folder / "content").write_bytes(content)
        (folder / "sha256").write_text(hashlib.sha256(content).hexdigest())

    for _ in range(2):
        path = entry(name, identity, what, fill, quiet=True)
        try:
            content, digest = (path / "content").read_bytes(), (path / "sha256").read_text()
        except OSError:
            content, digest = b"", ""
        _in_use.pop(path).close()  # there are thousands of these, and nobody needs the file once it is read
        if hashlib.sha256(content).hexdigest() == digest:
            return content
        _drop(path)
    raise ConvzooError(f"{cache_folder()}: does not keep what is written there")


def entry(name: str, identity: str, what: str, fill: Callable[[Path, Room], None], quiet: bool = False) -> Path:
    """Return the folder of something, filled where it is not there yet; processes that want the same one wait.

    Args:
        name: to recognise it by, of what is in the folder's name.
        identity: everything by which it differs from other entries.
        what: it is, in messages.
        fill: writes it into an empty folder, or one that a process left when it died or gave up.
        quiet: say nothing of waiting.
    Raises:
        ConvzooError: as `fill` and `Room` say.
    """
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    path = cache_folder() / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)[-60:]}-{digest}"
    while path not in _in_use or not path.is_dir():
        if path in _in_use:
            _in_use.pop(path).close()
        lock = open(_beside(path, ".lock"), "w")  # noqa: SIM115 (held until the process ends)
        try:
            _wait_for(lock, what, quiet)
            if not path.is_dir():
                room = Room(path, what)
                temporary = _beside(path, ".tmp")
                temporary.mkdir(exist_ok=True)
                fill(temporary, room)
                room.settle()
                os.rename(temporary, path)
            fcntl.flock(lock, fcntl.LOCK_SH)  # not in one step: another process may have dropped it in between
        except BaseException:
            lock.close()
            raise
        _in_use[path] = lock
    os.utime(_beside(path, ".lock"))
    return path


def _wait_for(lock: TextIO, what: str, quiet: bool) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if not quiet:
            log.info(f"{what}: waiting for the process that makes it ready")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _sizes(folder: Path) -> dict[Path, int]:
    """Return the bytes of each entry, those in the making included."""
    sizes = {}
    for file in folder.glob("*.size"):
        with contextlib.suppress(OSError, ValueError):
            sizes[file.with_suffix("")] = int(file.read_text())
    return sizes


def _last_use(path: Path) -> float:
    try:
        return _beside(path, ".lock").stat().st_mtime
    except OSError:
        return 0.0


def _drop(path: Path) -> bool:
    """Remove an entry unless a process uses it."""
    with open(_beside(path, ".lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        trash = _beside(path, ".old")
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, trash)  # so that a process that dies here leaves no half of it
        for folder in (trash, _beside(path, ".tmp")):
            shutil.rmtree(folder, ignore_errors=True)
        _beside(path, ".size").unlink(missing_ok=True)
    return True
