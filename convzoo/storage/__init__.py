"""Where things lie: local paths, zips and tars, and URLs of every scheme that fsspec knows, read the same way."""

from pathlib import Path

from convzoo.errors import UsageError
from convzoo.storage.cache import cache_folder
from convzoo.storage.urls import Remote, fetched, shown, url_of, written

__all__ = [
    "Remote",
    "cache_folder",
    "is_there",
    "local_folder",
    "local_path",
    "shown",
    "url_of",
    "written",
]


def local_path(path: str | Path, options: tuple[str, ...] = ()) -> Path:
    """Return a local path as it is, and of a URL the file or folder in the cache.

    Raises:
        UsageError: nothing is behind the URL.
        ConvzooError: its store does not answer, or the cache has no room.
        MissingPackageError: the package of its scheme is not installed.
    """
    url = url_of(path)
    if url is None:
        return Path(path)
    if url.startswith("file://"):
        return Path("/" + url.removeprefix("file://").lstrip("/"))
    return fetched(url, options)


def is_there(path: str | Path) -> bool:
    """Tell whether there is something at a path or behind a URL. Raises ConvzooError: its store does not answer."""
    return Remote(path).info() is not None if url_of(path) else Path(path).exists()


def local_folder(path: Path) -> Path:
    """Return a folder as it is, and of a zip or tar the folder that it holds, unpacked into the cache the first time.

    Raises:
        UsageError: there is nothing.
        DataError: a file that is no archive, or one that is damaged or holds what it should not.
        ConvzooError, MissingPackageError: as `local_path`, or the cache has no room.
    """
    from convzoo.storage.archives import unpacked  # the formats' modules, which `--help` need not wait for

    local = local_path(path, ("data",))
    if local.is_dir():
        return local
    if not local.exists():
        raise UsageError(f"{path}: no such folder or archive", ("data",))
    return unpacked(local)
