"""Zips and tars: unpacked once into the cache, or a zip read in place; nothing in them is trusted.

A name that is absolute or leads out, a link that does, a device, a member that is there twice, more members or bytes
than any data set has: each is a DataError in one line, and nothing of the archive stays.
"""

import errno
import gzip
import io
import lzma
import os
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from convzoo.errors import DataError
from convzoo.logs import log
from convzoo.storage.cache import entry
from convzoo.storage.members import member_parts

MAX_MEMBERS = 4_000_000
MAX_RATIO, RATIO_FROM = 200, 1 << 28  # what text and flat pictures are packed by, and from how many bytes it matters
MAX_READ = 1 << 30  # of a member that is read at once
CHUNK = 1 << 20
ZIP_END_WITHIN = 22 + 65_535  # bytes at the end of a zip: its end record, and a comment
SPLITS = ("train", "val", "valid", "validation", "validation_preprocess", "test", "ilsvrc")
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    RuntimeError,  # a zip with a password
    NotImplementedError,  # or packed in an unknown way
    UnicodeError,
    ValueError,
)


def unpacked(path: Path) -> Path:
    """Return the folder that a zip or tar holds, unpacked the first time; a folder that encloses it all is left out.

    Raises:
        DataError: neither, damaged, cut short, or with something in it that no data set has.
        ConvzooError: there is no room for it.
    """
    facts = path.stat()
    identity = f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns} {facts.st_ino}"
    folder = entry(path.name, identity, str(path), lambda folder, room: unpack(path, folder, room.take))
    inside = [Path(found.path) for found in os.scandir(folder) if not found.name.startswith(".")]
    if len(inside) == 1 and inside[0].is_dir() and inside[0].name not in SPLITS:
        return inside[0]
    return folder


def unpack(path: Path, folder: Path, take: Callable[[int], None]) -> None:
    """Unpack a zip or tar into a folder, whatever an earlier attempt left there.

    Args:
        take: is told of bytes before they are written, and may raise.
    Raises:
        DataError: as the file's docstring says; the folder is empty again.
    """
    log.info(f"unpacking {path}")
    _empty(folder)
    try:
        (_unpack_zip if is_zip(path) else _unpack_tar)(path, _Target(path, folder, take))
    except BaseException as error:
        _empty(folder)
        if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
            name = os.path.relpath(str(error.filename), folder)
            raise DataError(f"{path}: '{name}' is in it twice; nothing was unpacked") from None
        before_the_file = isinstance(error, OSError) and error.errno == errno.EINVAL  # where a damaged list points
        if isinstance(error, DAMAGED) or before_the_file:
            raise DataError(f"{path}: {_what_it_is(path)}: {_text(error)}; nothing was unpacked") from None
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise DataError(f"{path}: a name in it is too long; nothing was unpacked") from None
        raise


def is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


class ZipMembers:
    """The files of a zip, read in place; every process opens it for itself."""

    def __init__(self, path: Path):
        """Read the list of members. Raises DataError."""
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._pid = 0
        try:
            infos = self._opened().infolist()
        except (*DAMAGED, OSError) as error:
            raise DataError(f"{path}: not a zip file that can be read: {_text(error)}") from None
        if len(infos) > MAX_MEMBERS:
            raise DataError(f"{path}: {len(infos):,} members, more than the {MAX_MEMBERS:,} that are read")
        self.names = [info.filename for info in infos]

    def read(self, name: str) -> bytes:
        """Return a file's bytes. Raises DataError."""
        try:
            archive = self._opened()
            if archive.getinfo(name).file_size > MAX_READ:
                raise DataError(f"{self.path}/{name}: {archive.getinfo(name).file_size:,} bytes, too many for a file")
            return archive.read(name)
        except (*DAMAGED, OSError, KeyError) as error:
            raise DataError(f"{self.path}/{name}: cannot be read: {_text(error)}") from None

    def _opened(self) -> zipfile.ZipFile:
        if self._archive is None or self._pid != os.getpid():  # workers must not share a file position
            self._archive, self._pid = _open_zip(self.path), os.getpid()
        return self._archive

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_archive": None}


class _Target:
    """The folder that an archive's members go into, each checked first."""

    def __init__(self, path: Path, folder: Path, take: Callable[[int], None]):
        self.path, self.folder, self._take = path, folder, take
        self._packed_bytes = path.stat().st_size
        self._members = self._bytes = 0

    def place(self, name: str, size: int = 0) -> Path | None:
        """Return where a member goes, its folder made; None for the notes that macOS leaves. Raises DataError."""
        self._members += 1
        self._bytes += size
        if self._members > MAX_MEMBERS:
            raise self.wrong(f"more than {MAX_MEMBERS:,} members")
        if self._bytes > RATIO_FROM and self._bytes > MAX_RATIO * self._packed_bytes:
            raise self.wrong(f"unpacks to more than {MAX_RATIO} times its {self._packed_bytes:,} bytes")
        parts = member_parts(name)
        if parts is None:
            raise self.wrong(f"'{name[:80]}' leads out of the folder")
        if parts and (parts[0] == "__MACOSX" or parts[-1].startswith("._")):
            return None
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._take(size)
        return path

    def write(self, place: Path, source: IO[bytes], size: int) -> None:
        """Write a file of exactly so many bytes; a name that is there already is refused."""
        with open(place, "xb") as file:
            while size and (chunk := source.read(min(CHUNK, size))):
                file.write(chunk)
                size -= len(chunk)
        if size:
            raise EOFError(f"'{place.relative_to(self.folder)}' is cut short")

    def wrong(self, problem: str) -> DataError:
        return DataError(f"{self.path}: {problem}; nothing was unpacked")


def _open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip with all its members: where a length in their list is damaged, zipfile takes some for a comment.

    Raises BadZipFile where there are not as many as the zip's end says; 0xFFFF there means that it says nothing.
    """
    archive = zipfile.ZipFile(path)
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - ZIP_END_WITHIN))
        end = file.read()
    count = int.from_bytes(end[end.rfind(b"PK\5\6") + 10 :][:2], "little")
    if count not in (len(archive.infolist()) & 0xFFFF, 0xFFFF):
        archive.close()
        raise zipfile.BadZipFile("its list of members is damaged")
    return archive


def _unpack_zip(path: Path, target: _Target) -> None:
    with _open_zip(path) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise target.wrong(f"'{info.filename[:80]}' is a link or a device")
            place = target.place(info.filename, info.file_size)
            if place is None:
                continue
            if info.is_dir() or info.filename.endswith("\\"):
                place.mkdir(exist_ok=True)
                continue
            with archive.open(info) as source:
                target.write(place, source, info.file_size)
                source.read(1)  # at the end the checksum is compared


class TarHeader(tarfile.TarInfo):
    """A member's header; why there is no next one is kept: tarfile takes a damaged header for the end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tarfile)
        except Exception as error:
            tarfile.ending = error  # type: ignore[attr-defined]
            raise


def check_end_mark(archive: tarfile.TarFile) -> None:
    """Raise EOFError where a tar that was read to its end, with TarHeader, has no end mark."""
    ending = getattr(archive, "ending", None)
    if type(ending).__name__ != "EOFHeaderError":
        raise EOFError(f"no end mark, perhaps cut short ({ending or 'it ends'})")


def _unpack_tar(path: Path, target: _Target) -> None:
    with tarfile.open(path, tarinfo=TarHeader) as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all; of millions this is memory
            place = target.place(member.name, member.size if member.isreg() else 0)
            if place is None:
                continue
            if member.isdir():
                place.mkdir(exist_ok=True)
            elif member.isreg():
                source = archive.extractfile(member)
                target.write(place, source or io.BytesIO(), member.size)
            elif member.issym() or member.islnk():
                _link(member, place, target)
            else:
                raise target.wrong(f"'{member.name[:80]}' is a device")
        check_end_mark(archive)
        rest = 0
        while archive.fileobj and (chunk := archive.fileobj.read(CHUNK)):  # to where a checksum is compared
            rest += len(chunk)
            if rest > RATIO_FROM:
                raise EOFError(f"more than {RATIO_FROM:,} bytes behind its end")


def _link(member: tarfile.TarInfo, place: Path, target: _Target) -> None:
    """Make a link to a file that is unpacked already the same file under a second name. Raises DataError."""
    above = posixpath.dirname(member.name) if member.issym() else ""
    parts = member_parts(posixpath.normpath(posixpath.join(above, member.linkname)))
    source = None if parts is None else target.folder.joinpath(*parts)
    if source is None or not source.is_file():
        raise target.wrong(f"'{member.name[:80]}' is a link to '{member.linkname[:80]}', which is no file before it")
    os.link(source, place)


def _what_it_is(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "an empty file"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page, no archive; the download went wrong"
    if head[:2] in (b"PK", b"\x1f\x8b", b"BZ") or head[:6] == b"\xfd7zXZ\0" or head[257:262] == b"ustar":
        return "a damaged archive, or one cut short"
    return "no zip or tar that can be read"


def _text(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _empty(folder: Path) -> None:
    for inside in os.scandir(folder):
        shutil.rmtree(inside.path) if inside.is_dir(follow_symlinks=False) else os.unlink(inside.path)
