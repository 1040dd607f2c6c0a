"""Tar shards: plain tars side by side, locally or behind a URL, whose members are read by range.

A shard is read through once; what was made of its members then is kept in the cache, under its size and version.
"""

import contextlib
import functools
import io
import itertools
import json
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

from convzoo.errors import DataError, UsageError
from convzoo.plain import JsonObject, JsonValue
from convzoo.storage.archives import DAMAGED, SPLITS, TarHeader, check_end_mark
from convzoo.storage.cache import kept
from convzoo.storage.members import member_parts
from convzoo.storage.urls import PARALLEL, Remote, shown, url_of, version

BRACES, RANGE = re.compile(r"\{([^{}]*)\}"), re.compile(r"(\d+)\.\.(\d+)")
NAME = re.compile(r"(?:.*[-_.])?\d{2,}\.tar")  # NAME-000000.tar, what the layout is recognised by
BLOCK = 8 << 20  # bytes that are fetched at once while a shard is read through
OPEN_FILES = 32  # of local shards
MAX_SHARDS = 1_000_000
_descriptors: OrderedDict[tuple[str, str], int] = (
    OrderedDict()
)  # of open files by place and version, the last used last


class Member(NamedTuple):
    """A file in a shard: its name, the byte at which it begins, and its bytes."""

    name: str
    start: int
    size: int


class Shard:
    """A tar.

    Attributes:
        place: its path or URL; shown: the same without passwords.
        size: in bytes.
        version: what changes when its content does.
    """

    def __init__(self, place: str, size: int, version: str):
        self.place, self.size, self.version = place, size, version
        self.shown = shown(place)
        self._is_remote = url_of(place) is not None

    def read(self, start: int, count: int) -> bytes:
        """Return bytes of it. Raises DataError where a local one changed, ConvzooError as `Remote`."""
        if self._is_remote:
            return _remote(self.place, os.getpid()).read_range(start, start + count)
        try:
            descriptor = self._descriptor()
            data = os.pread(descriptor, count, start)
            version = _version(os.fstat(descriptor))
        except OSError as error:
            raise DataError(f"{self.shown}: cannot be read: {error.strerror}") from None
        if version != self.version or len(data) != count:
            raise DataError(f"{self.shown}: changed since it was indexed")
        return data

    def members(self) -> Iterator[tuple[Member, Callable[[], bytes]]]:
        """Yield each file with what reads it, while it is its turn.

        Raises:
            DataError: compressed, damaged or cut short; a name that leads out or is there twice, a link, a device.
        """
        names: set[str] = set()
        last = ""
        with self._opened() as stream:
            try:
                with tarfile.open(fileobj=stream, mode="r:", tarinfo=TarHeader) as archive:
                    while (info := archive.next()) is not None:
                        archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all
                        last = f"/{info.name[:80]}"
                        if not info.isdir():
                            name = self._checked(info, names)
                            yield Member(name, info.offset_data, info.size), functools.partial(_content, archive, info)
                    check_end_mark(archive)
            except DAMAGED as error:
                raise DataError(f"{self.shown}{last}: damaged, or cut short: {self._reason(error)}") from None

    def _checked(self, info: tarfile.TarInfo, names: set[str]) -> str:
        """Return a file's name, which is new and stays inside. Raises DataError."""
        parts = member_parts(info.name)
        problem = None
        if not parts:
            problem = "leads out of the shard"
        elif not info.isreg() or info.issparse():
            problem = "is a link, a device or sparse; shards hold plain files"
        elif "/".join(parts) in names:
            problem = "is in it twice"
        if problem or parts is None:
            raise DataError(f"{self.shown}/{info.name[:80]}: {problem}")
        names.add("/".join(parts))
        return "/".join(parts)

    def _opened(self) -> IO[bytes]:
        if self._is_remote:
            return io.BufferedReader(_Blocks(self), BLOCK)
        try:
            return open(self.place, "rb")
        except OSError as error:
            raise DataError(f"{self.shown}: cannot be read: {error.strerror}") from None

    def _descriptor(self) -> int:
        """Return the open file; few stay open. Raises OSError."""
        key = self.place, self.version
        if key in _descriptors:
            _descriptors.move_to_end(key)
        else:
            while len(_descriptors) >= OPEN_FILES:
                os.close(_descriptors.popitem(last=False)[1])
            _descriptors[key] = os.open(self.place, os.O_RDONLY)
        return _descriptors[key]

    def _reason(self, error: BaseException) -> str:
        if self.size > 2 and self.read(0, 2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5"):
            return "it is compressed, and by range only plain tars can be read"
        return " ".join(str(error).split()) or type(error).__name__


class _Blocks(io.RawIOBase):
    """A shard behind a URL as a file."""

    def __init__(self, shard: Shard):
        self._shard, self._position = shard, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._shard.size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:  # Any: whatever takes bytes, which has no type before Python 3.12
        view = memoryview(buffer).cast("B")
        count = min(len(view), max(0, self._shard.size - self._position))
        view[:count] = self._shard.read(self._position, count) if count else b""
        self._position += count
        return count


def find_shards(root: Path) -> list[Shard]:
    """Return the shards that a pattern such as train-{000000..000007}.tar means, or that lie in a folder.

    In a folder they are files NAME-000000.tar, in it or in folders below that are named after splits; where folders lie
    beside them they are no shards, but something else.

    Raises:
        UsageError: a file of a pattern is not there.
        ConvzooError: the store does not answer.
    """
    text = url_of(root) or str(root)
    if BRACES.search(text):
        return _named(_expanded(text)) if text.endswith(".tar") else []
    if text.startswith(("http://", "https://")):
        return []  # a page has no list of what lies there
    remote = Remote(text) if url_of(text) else None
    inside = _entries(root, remote)
    shards = _alone(inside)
    if not shards:
        for name in sorted(name for name, entry in inside.items() if entry is None and name in SPLITS):
            below = _entries(root / name, None if remote is None else remote.child(name))
            shards += _alone(below)
    return shards


def beside(shard: Shard, name: str) -> bytes | None:
    """Return the small file of that name in a shard's folder, None where there is none."""
    if url_of(shard.place):
        return _remote(shard.place, os.getpid()).beside(name).read()
    path = Path(shard.place).with_name(name)
    return path.read_bytes() if path.is_file() else None


def indexed(shards: list[Shard], make: Callable[[Shard], JsonValue], kind: str) -> Iterator[JsonValue]:
    """Yield of each shard what `make` returns, plain JSON values; kept in the cache, so made once.

    Args:
        kind: names `make`, and changes when what it returns does.
    """

    def content(shard: Shard) -> bytes:
        identity = f"{kind} {shard.place} {shard.size} {shard.version}"
        name = f"{shard.place.rpartition('/')[2]}.{kind}"
        return kept(name, identity, shard.shown, lambda: json.dumps(make(shard)).encode())

    pool = ThreadPoolExecutor(PARALLEL)
    try:
        yield from map(json.loads, pool.map(content, shards))
    finally:
        pool.shutdown(cancel_futures=True)


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    return file.read() if file else b""


@functools.lru_cache(maxsize=4096)
def _remote(url: str, process: int) -> Remote:
    """Return a shard's place; of each process its own, since connections do not survive a fork."""
    return Remote(url)


def _expanded(text: str) -> list[str]:
    """Return the texts that {000..012} and {a,b} in a text mean, in order. Raises UsageError."""
    parts: list[list[str]] = []
    for i, part in enumerate(BRACES.split(text)):
        numbers = RANGE.fullmatch(part)
        if i % 2 == 0:
            parts.append([part])
        elif numbers is None:
            parts.append(part.split(","))
        elif int(numbers[2]) - int(numbers[1]) >= MAX_SHARDS or int(numbers[2]) < int(numbers[1]):
            raise UsageError(f"{shown(text)}: {{{part}}} is no range that is read", ("data",))
        else:
            parts.append([f"{n:0{len(numbers[1])}d}" for n in range(int(numbers[1]), int(numbers[2]) + 1)])
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def _named(places: list[str]) -> list[Shard]:
    """Return the shards at these paths or URLs. Raises UsageError where one is not there."""

    def shard(place: str) -> Shard | None:
        if url_of(place) is None:
            return _of_file(Path(place)) if os.path.isfile(place) else None
        info = Remote(place).info()
        return None if info is None else _of_url(place, info)

    with ThreadPoolExecutor(PARALLEL) as pool:
        by_place = dict(zip(places, pool.map(shard, places), strict=True))
    missing = [place for place, found in by_place.items() if found is None]
    if missing:
        raise UsageError(f"{shown(missing[0])}: no such file; {len(missing)} of {len(places)} are missing", ("data",))
    return [found for found in by_place.values() if found]


def _entries(folder: Path, remote: Remote | None) -> dict[str, Shard | None]:
    """Return the shards and folders in a folder by name, None of a folder."""
    if remote is not None:
        return {
            name: None if info["type"] == "directory" else _of_url(remote.child(name).url, info)
            for name, info in remote.entries().items()
            if info["type"] == "directory" or NAME.fullmatch(name)
        }
    with os.scandir(folder) if folder.is_dir() else contextlib.nullcontext([]) as found:
        return {
            entry.name: None if entry.is_dir() else _of_file(Path(entry.path))
            for entry in found
            if not entry.name.startswith(".") and (NAME.fullmatch(entry.name) or entry.is_dir())
        }


def _alone(entries: dict[str, Shard | None]) -> list[Shard]:
    shards = [shard for _, shard in sorted(entries.items()) if shard]
    return shards if None not in entries.values() else []


def _of_file(path: Path) -> Shard:
    facts = path.stat()
    return Shard(str(path.absolute()), facts.st_size, _version(facts))


def _version(facts: os.stat_result) -> str:
    return f"{facts.st_mtime_ns} {facts.st_ino}"


def _of_url(url: str, info: JsonObject) -> Shard:
    return Shard(url, info["size"], version(info))
