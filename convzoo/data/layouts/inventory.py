"""What lies in a folder of somebody's own, and which picture a label file means."""

import os
from collections import defaultdict
from pathlib import Path, PurePosixPath

from convzoo.data.decode import EXTENSIONS
from convzoo.errors import DataError

SPLIT_NAMES = {
    "train": ("train", "training", "train2017", "train2014"),
    "val": ("val", "valid", "validation", "val2017", "val2014"),
    "test": ("test", "testing", "test2017"),
}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
LISTS = "splits"  # the folder of lists that `data split` writes
Stamp = tuple[tuple[str, int, int], ...]


def stamp(root: Path) -> Stamp:
    """Return (path below root, time of change in ns, bytes) of every file that is not hidden: it tells of changes."""
    files = []
    for folder, below, names in os.walk(root, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith((".", "__MACOSX")))
        inside = os.path.relpath(folder, root)
        for name in sorted(names):
            if not name.startswith("."):
                stat = os.stat(os.path.join(folder, name))
                path = name if inside == "." else f"{inside}/{name}"
                files.append((path.replace(os.sep, "/"), stat.st_mtime_ns, stat.st_size))
    return tuple(sorted(files))


class Inventory:
    """The files of a folder.

    Attributes:
        pictures: paths below root, sorted.
        others: likewise what is no picture, by extension in small letters; not the lists of `data split`.
    """

    def __init__(self, root: Path, files: Stamp):
        self.root = root
        self.pictures: list[str] = []
        self.others: dict[str, list[str]] = defaultdict(list)
        for path, *_ in files:
            extension = PurePosixPath(path).suffix.lower()
            if extension in EXTENSIONS:
                self.pictures.append(path)
            elif not path.startswith(f"{LISTS}/"):
                self.others[extension].append(path)
        self._there = set(self.pictures)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for path in self.pictures:
            self._by_name[PurePosixPath(path).name].append(path)
            self._by_stem[PurePosixPath(path).stem].append(path)

    def path(self, file: str) -> Path:
        return self.root / file

    def picture(self, reference: str, label_file: str) -> str | None:
        """Return the picture that a label file means, None where it is not there.

        It is looked for beside the label file, below root, and last by its name in any folder, where those that share
        the most of the reference's folders come first.

        Raises:
            DataError: several are meant equally well.
        """
        reference = os.path.normpath(reference.replace("\\", "/")).replace(os.sep, "/")
        beside = os.path.normpath(f"{PurePosixPath(label_file).parent}/{reference}").replace(os.sep, "/")
        for candidate in (beside, reference):
            if candidate in self._there:
                return candidate
        return self._nearest(self._by_name.get(PurePosixPath(reference).name, []), reference, label_file)

    def picture_called(self, stem: str, label_file: str) -> str | None:
        """Return the picture of that name without its extension, as `picture` does."""
        folder = PurePosixPath(label_file).parent
        return self._nearest(self._by_stem.get(stem, []), f"{folder}/{stem}", label_file)

    def _nearest(self, candidates: list[str], reference: str, label_file: str) -> str | None:
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        folders = PurePosixPath(reference).parts[:-1]
        near = PurePosixPath(label_file).parts[:-1]

        def likeness(path: str) -> tuple[int, int]:
            own = PurePosixPath(path).parts[:-1]
            return _common(own[::-1], folders[::-1]), _common(own, near)

        ranked = sorted(candidates, key=likeness, reverse=True)
        if likeness(ranked[0]) == likeness(ranked[1]):
            raise DataError(f"{self.root}/{label_file}: means {ranked[0]} or {ranked[1]}; one name is on both")
        return ranked[0]

    def missing(self, missing: list[tuple[str, str]], labels: int) -> DataError:
        """Return the error about labels without pictures, each (label file, reference)."""
        file, reference = missing[0]
        name = PurePosixPath(reference.replace("\\", "/")).name
        other = next(
            (path for path in self.pictures if PurePosixPath(path).name.casefold() == name.casefold()),
            next((path for path in self.pictures if PurePosixPath(path).stem.casefold() == name.casefold()), None),
        )
        hint = f"; there is {other}, another case" if other else ""
        return DataError(
            f"{self.root}: {len(missing)} of {labels} labels have no picture, such as {name} of {file}{hint}"
        )


def _common(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def split_in(path: str) -> str | None:
    """Return the split that a folder of the path is named after, None where no folder is."""
    names = (SPLIT_OF.get(part.casefold()) for part in PurePosixPath(path).parts[:-1])
    return next((name for name in names if name), None)
