"""Files that are written whole or not at all, and their checksums."""

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from convzoo.errors import ConvzooError


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; only a whole file, safely on disk, gets the final name.

    Raises:
        ConvzooError: it cannot be written, the disk being full or the folder closed; what was there stays.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())  # safetensors creates files that only their owner may read
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # of a folder that is closed to us: said below
            temporary.unlink(missing_ok=True)
        why = _why_not_written(error)
        if why:
            raise ConvzooError(f"{path}: cannot be written: {why}; what was saved before is untouched") from error
        raise


@contextlib.contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Say which file it was that the system would not write. Raises ConvzooError."""
    try:
        yield
    except OSError as error:
        raise ConvzooError(f"{path}: cannot be written: {_why_not_written(error)}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _why_not_written(error: BaseException) -> str | None:
    """Say why a file could not be written, or None for another error; libraries wrap the system's answer."""
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        wrapped = re.search(r"os error (\d+)", str(cause))
        number = number or (int(wrapped[1]) if wrapped else None)
        if number is not None:
            return (
                "no space left" if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else os.strerror(number).lower()
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
