"""Where things lie: local paths, zips and tars, read the same way."""

from pathlib import Path

from convzoo.errors import UsageError
from convzoo.storage.archives import ZipMembers, is_zip, unpack, unpacked

__all__ = ["ZipMembers", "is_zip", "local_folder", "unpack"]


def local_folder(path: Path) -> Path:
    """Return a folder as it is, and of a zip or tar the folder that it holds, unpacked into the cache the first time.

    Raises:
        UsageError: there is nothing.
        DataError: a file that is no archive, or one that is damaged or holds what it should not.
        ConvzooError: the cache has no room for it.
    """
    if path.is_dir():
        return path
    if not path.exists():
        raise UsageError(f"{path}: no such folder or archive", ("data",))
    return unpacked(path)
