"""URLs through fsspec: `s3://` and every other scheme that is installed, read into the cache and written.

Credentials come by fsspec's own ways alone (its configuration files, FSSPEC_S3, what the store's client reads). A
request that fails is made again for about a minute, then the answer is one line. pathlib makes one slash of the two
after a scheme; `url_of` gives them back, so that a URL may travel as a Path.
"""

import contextlib
import copy
import posixpath
import re
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import EllipsisType
from typing import TypeVar

from convzoo.errors import ConvzooError, DataError, MissingPackageError, UsageError
from convzoo.logs import log, redacted
from convzoo.plain import JsonObject
from convzoo.storage.cache import Room, entry
from convzoo.storage.members import member_parts

T = TypeVar("T")
Files = dict[str, tuple["Remote", JsonObject]]  # by their paths in the folder
SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/{1,3}")
TRIES, FIRST_DELAY_S = 7, 1.0  # doubled each time: 63 seconds in all
PARALLEL = 16
COMPANIONS = {".xml": (".bin",), ".weights": (".cfg", ".names")}  # what belongs to a file beside it
FINAL = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError", "ImportError")
TIMEOUTS = {"connect_timeout": 10, "read_timeout": 30, "retries": {"total_max_attempts": 1}}  # of S3's client


def url_of(path: str | Path) -> str | None:
    """Return the URL that a path or text is, None for a local path."""
    scheme = SCHEME.match(str(path))
    return None if scheme is None else f"{scheme[1]}://{str(path)[scheme.end() :]}"


def shown(path: str | Path) -> str:
    """Return a path or URL for people, without the passwords that a URL may have."""
    return redacted(url_of(path) or str(path))


class Remote:
    """A file or folder behind a URL. Its methods try again, and raise UsageError, ConvzooError, MissingPackageError."""

    def __init__(self, url: str | Path):
        import fsspec
        from fsspec.config import conf

        self.url = url_of(url) or str(url)
        self.shown = redacted(self.url)
        scheme = self.url.partition(":")[0]
        options: JsonObject = {}
        if scheme in ("s3", "s3a"):
            options["config_kwargs"] = {**TIMEOUTS, **conf.get("s3", {}).get("config_kwargs", {})}
        try:
            self._fs, self.path = fsspec.core.url_to_fs(self.url, **options)
            if scheme in ("s3", "s3a"):
                self._fs.retries = 2  # `_tried` has more patience than its few tenths of a second
        except ImportError as error:
            name = "convzoo[remote]" if scheme.startswith("s3") else "what fsspec names"
            raise MissingPackageError(f"{self.shown}: install {name} ({redacted(str(error))})") from None
        except ValueError as error:
            raise UsageError(f"{self.shown}: {redacted(str(error))}") from None

    def child(self, name: str) -> "Remote":
        return self._at(f"{self.path.rstrip('/')}/{name}", f"{self.url.rstrip('/')}/{name}")

    def beside(self, name: str) -> "Remote":
        return self._at(*(f"{place.rstrip('/').rpartition('/')[0]}/{name}" for place in (self.path, self.url)))

    def _at(self, path: str, url: str) -> "Remote":
        other = copy.copy(self)
        other.path, other.url, other.shown = path, url, redacted(url)
        return other

    def info(self) -> JsonObject | None:
        """Return what the store says of it, None where there is nothing."""
        return self._tried(lambda: self._fs.info(self.path), None)

    def files(self) -> dict[str, JsonObject]:
        """Return what the store says of each file below, by its path from here."""
        listed = self._tried(lambda: self._fs.find(self.path, detail=True), {})
        start = len(self.path.rstrip("/")) + 1
        return {name[start:]: info for name, info in sorted(listed.items()) if not name.endswith("/")}

    def entries(self) -> dict[str, JsonObject]:
        """Return what the store says of each file and folder directly in it, by its name; of a file nothing."""
        listed = self._tried(lambda: self._fs.ls(self.path, detail=True), [])
        if [info["type"] for info in listed if info["name"].endswith(self.path)] == ["file"]:
            return {}
        named = ((posixpath.basename(info["name"].rstrip("/")), info) for info in listed)
        return {name: info for name, info in sorted(named, key=lambda pair: pair[0]) if name}

    def read_range(self, start: int, end: int) -> bytes:
        """Return the bytes from start to before end."""

        def get() -> bytes:
            data = self._fs.cat_file(self.path, start=start, end=end)
            if len(data) != end - start:
                raise OSError(f"came with {len(data):,} of {end - start:,} bytes")
            return data

        return self._tried(get)

    def read(self) -> bytes | None:
        """Return the bytes of a small file, None where there is none."""
        return self._tried(lambda: self._fs.cat_file(self.path), None)

    def write(self, data: bytes) -> None:
        self._tried(lambda: self._fs.pipe_file(self.path, data))

    def remove(self) -> None:
        self._tried(lambda: self._fs.rm_file(self.path), None)

    def copy_to(self, other: "Remote") -> None:
        """Copy within the store."""
        self._tried(lambda: self._fs.cp_file(self.path, other.path))

    def download(self, path: Path, size: int | None) -> None:
        """Fetch the file; it has its name once it is whole."""
        temporary = path.with_name(f"{path.name}.part")

        def get() -> None:
            self._fs.get_file(self.path, str(temporary))
            if size is not None and temporary.stat().st_size != size:
                raise OSError(f"came with {temporary.stat().st_size:,} of {size:,} bytes")

        path.parent.mkdir(parents=True, exist_ok=True)
        self._tried(get)
        temporary.rename(path)

    def upload(self, path: Path) -> None:
        """Put a file there and see that it is as long."""

        def put() -> None:
            size = path.stat().st_size
            self._fs.makedirs(posixpath.dirname(self.path), exist_ok=True)
            self._fs.put_file(str(path), self.path)
            self._fs.invalidate_cache()
            if (there := self._fs.info(self.path)["size"]) != size:
                raise OSError(f"{there:,} of {size:,} bytes are there")

        self._tried(put)

    def _reason(self, error: Exception) -> str:
        """Return why it failed, without what the URL has before its @, which the store's own words may repeat."""
        text = redacted(" ".join(str(error).split()) or type(error).__name__)
        secret = re.match(r"[^:]+://([^/@]+)@", self.url)
        return (text.replace(secret[1], "***") if secret else text)[:300]

    def _tried(self, action: Callable[[], T], missing: T | EllipsisType = ...) -> T:
        """Call until it succeeds; `missing` is the answer where there is no such file."""
        delay_s, started = FIRST_DELAY_S, time.monotonic()
        for left in reversed(range(TRIES)):
            try:
                self._fs.invalidate_cache()
                return action()
            except FileNotFoundError:
                if missing is not ...:
                    return missing
                raise UsageError(f"{self.shown}: no such file or bucket") from None
            except ConvzooError:
                raise
            except Exception as error:  # of many libraries; what they have in common is that they may pass
                reason = self._reason(error)
                if isinstance(error, PermissionError) or type(error).__name__ in FINAL:
                    raise ConvzooError(f"{self.shown}: {reason}") from None
                if not left:
                    seconds = time.monotonic() - started
                    raise ConvzooError(f"{self.shown}: failed {TRIES} times in {seconds:.0f} s: {reason}") from None
                log.warning(f"{self.shown}: {reason}; again in {delay_s:.0f} s")
            time.sleep(delay_s)
            delay_s *= 2
        raise AssertionError("the last try returns or raises")


def fetched(url: str | Path, options: tuple[str, ...] = ()) -> Path:
    """Return a file behind a URL, or a folder with everything below it, from the cache; fetched where it changed.

    Args:
        options: whose value the URL is, for the message.
    Raises:
        UsageError: there is nothing.
        DataError: a name in the folder leads out of it.
        ConvzooError: the store does not answer, or the cache has no room.
        MissingPackageError: the scheme's package is not installed.
    """
    remote = Remote(url)
    info = remote.info()
    if info is not None and info["type"] == "file":
        name = posixpath.basename(remote.path.partition("?")[0]) or "file"
        files = {name: (remote, info), **_companions(remote, name)}
        return _fetched(remote, name, files) / name
    files = {name: (remote.child(name), info) for name, info in remote.files().items()}
    if not files:
        raise UsageError(f"{remote.shown}: nothing is there", options)
    return _fetched(remote, posixpath.basename(remote.path.rstrip("/")) or "folder", files)


def _companions(remote: Remote, name: str) -> Files:
    stem, suffix = posixpath.splitext(name)
    files = {}
    for other in COMPANIONS.get(suffix.lower(), ()) if remote.path.endswith(name) else ():
        beside = remote.beside(stem + other)
        if (info := beside.info()) is not None:
            files[stem + other] = (beside, info)
    return files


def _fetched(remote: Remote, name: str, files: Files) -> Path:
    """Return the folder of these files, which the cache has under their versions."""
    wrong = next((name for name in files if not member_parts(name)), None)
    if wrong is not None:
        raise DataError(f"{remote.shown}: '{wrong[:80]}' leads out of the folder")
    sizes = {name: info["size"] for name, (_, info) in files.items()}
    versions = [f"{name} {sizes[name]} {version(info)}" for name, (_, info) in files.items()]

    def fill(folder: Path, room: Room) -> None:
        total = sum(size or 0 for size in sizes.values())
        room.take(total)
        log.info(f"fetching {remote.shown}: {len(files):,} files, {total / 1e6:,.1f} MB")
        missing = [name for name in files if not _is_there(folder / name, sizes[name])]
        pool = ThreadPoolExecutor(PARALLEL)
        try:
            for task in [pool.submit(files[name][0].download, folder / name, sizes[name]) for name in missing]:
                task.result()
        finally:
            pool.shutdown(cancel_futures=True)

    return entry(name, "\n".join([remote.url, *versions]), remote.shown, fill)


def _is_there(path: Path, size: int | None) -> bool:
    return path.is_file() and path.stat().st_size == size


def version(info: JsonObject) -> str:
    """Return what changes when the file does; where the store says nothing, something new each time."""
    for key in ("ETag", "etag", "md5Hash", "content_hash", "VersionId", "mtime", "LastModified", "created"):
        if info.get(key):
            return str(info[key])
    return uuid.uuid4().hex


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give the path to write a file or folder to: a local path is its own, of a URL everything goes up afterwards.

    Raises:
        ConvzooError: the store does not take it.
    """
    if url_of(path) is None:
        yield path
        return
    remote = Remote(path)
    with TemporaryDirectory(prefix="convzoo-") as folder:
        name = posixpath.basename(remote.path.rstrip("/")) or "out"
        yield Path(folder) / name
        for file in sorted(Path(folder).rglob("*")):  # a file may have others beside it, such as OpenVINO's weights
            if file.is_file():
                remote.beside(file.relative_to(folder).as_posix()).upload(file)
