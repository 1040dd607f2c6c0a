"""Pictures in one folder per class, on disk, in a zip that is read without unpacking, or in a tar.

Layouts: train/ and val/ (also validation/, validation_preprocess/ or test/; ilsvrc/ for train), or class folders that
are one split whole. Classes are the sorted folder names; hidden folders are not classes. Or shards (`shards`).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from convzoo.config.registry import register
from convzoo.data.datasets.in_memory import PackedStrings, first_of_shuffled
from convzoo.data.datasets.shards import ShardBoxes, ShardImages, shards
from convzoo.data.decode import EXTENSIONS, decode_rgb
from convzoo.errors import DataError, UsageError
from convzoo.storage import local_folder, local_path
from convzoo.storage.archives import ZipMembers, is_zip
from convzoo.storage.shards import find_shards
from convzoo.types import Sample

SPLITS = {"train": ("train", "ilsvrc"), "val": ("val", "validation", "validation_preprocess", "test")}


class FolderImages:
    """Picture files with their classes; only paths and labels are held in memory.

    Attributes:
        members: the zip that the files are in, None where root is a folder.
        is_whole_root: whether the class folders lie in the root itself, which then is either split.
        split_files: the pictures below the root, where nobody but we shared them out: a run keeps such lists.
    """

    split_files: list[str] | None = None

    def __init__(
        self,
        root: Path,
        files: PackedStrings,
        labels: np.ndarray,
        class_names: list[str],
        members: ZipMembers | None = None,
        is_whole_root: bool = False,
    ):
        self.root = root
        self.is_whole_root = is_whole_root
        self.files = files
        self.labels = labels
        self.class_names = class_names
        self.members = members

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        return f"{self.root}/{self.files[index]}"

    def load(self, index: int) -> Sample:
        image = decode_rgb(self.encoded(index), self.path(index))
        return Sample(image, int(self.labels[index]), index, self.path(index), (image.shape[1], image.shape[2]))

    def encoded(self, index: int) -> bytes:
        """Return the picture's file. Raises DataError."""
        name = self.files[index]
        if self.members:
            return self.members.read(name)
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.root}/{name}: cannot be read: {error}") from None


@register("dataset")
def image_folder(
    root: Path | None, split: str, *, max_train_images: int | None = None
) -> FolderImages | ShardImages | ShardBoxes:
    """Build a data set from class folders, or from tar shards.

    Raises:
        UsageError: no path, or it does not exist.
        DataError: no such split, no classes, or a class without pictures.
    """
    if root is None:
        raise UsageError(
            "this recipe needs a folder, zip or tar with train/ and val/, one folder per class in each", ("data",)
        )
    if find_shards(root):
        return shards(root, split, max_train_images=max_train_images)
    root = local_path(root, ("data",))
    if not root.exists():
        raise UsageError(f"{root}: no such file or folder", ("data",))
    members = _in_place(root)
    if members is None:
        root = local_folder(root)
    base = None if members else _split_folder(root, split)
    entries = sorted(_zip_entries(members, split) if members else _folder_entries(root, base or root))
    by_class: dict[str, list[str]] = {}
    for class_name, file in entries:
        by_class.setdefault(class_name, []).extend([file] if file else [])
    if not by_class:
        raise DataError(f"{root}: no class folders for '{split}'")
    empty = [name for name, files in by_class.items() if not files]
    if empty:
        raise DataError(f"{root}: class folder '{empty[0]}' of '{split}' has no pictures ({', '.join(EXTENSIONS)})")
    class_names = sorted(by_class)
    files = [file for name in class_names for file in by_class[name]]
    labels = np.repeat(np.arange(len(class_names)), [len(by_class[name]) for name in class_names])
    if split == "train":
        keep = first_of_shuffled(len(files), max_train_images)
        files, labels = [files[i] for i in keep], labels[keep]
    return FolderImages(root, PackedStrings(files), labels, class_names, members, is_whole_root=base == root)


def _split_folder(root: Path, split: str) -> Path:
    """Return the folder of a split, which is the root itself where that holds neither split but other folders."""
    base = next((root / name for name in SPLITS[split] if (root / name).is_dir()), None)
    if base is not None:
        return base
    other = SPLITS["val" if split == "train" else "train"]
    folders = [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    there = [name for name in other if name in folders]
    if there or not folders:
        but = f", but {there[0]}" if there else ""
        raise DataError(f"{root}: no folder {' or '.join(SPLITS[split])} in it{but}", ("split",) if there else ())
    return root


def _folder_entries(root: Path, base: Path) -> Iterator[tuple[str, str]]:
    """Yield (class, file relative to root), and (class, "") once for every class folder."""
    for folder in os.scandir(base):
        if folder.is_dir() and not folder.name.startswith("."):
            yield folder.name, ""
            for directory, subfolders, files in os.walk(folder.path, followlinks=True):
                subfolders[:] = [name for name in subfolders if not name.startswith(".")]
                relative = os.path.relpath(directory, root)
                for file in files:
                    if file.lower().endswith(EXTENSIONS) and not file.startswith("."):
                        yield folder.name, f"{relative}/{file}"


def _in_place(root: Path) -> ZipMembers | None:
    """Return a zip that has the folder of a split; other archives are unpacked."""
    members = ZipMembers(root) if root.is_file() and is_zip(root) else None
    folders = [folder for split in SPLITS.values() for folder in split]
    return members if members and any(_find_in_zip(members.names, folder) for folder in folders) else None


def _zip_entries(members: ZipMembers, split: str) -> Iterator[tuple[str, str]]:
    names, root = members.names, members.path
    visible = [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))]
    base = next(
        (prefix for folder in SPLITS[split] for prefix in [_find_in_zip(visible, folder)] if prefix is not None), None
    )
    if base is None:
        raise DataError(f"{root}: no folder {' or '.join(SPLITS[split])} in it")
    for name in visible:
        class_name, slash, rest = name.removeprefix(base).partition("/")
        if name.startswith(base) and slash:
            yield class_name, name if rest.lower().endswith(EXTENSIONS) else ""


def _find_in_zip(names: list[str], folder: str) -> str | None:
    """Return the prefix of a split's folder, at the top or below one enclosing folder."""
    for name in names:
        parts = name.split("/")
        for depth in (0, 1):
            if len(parts) > depth + 1 and parts[depth] == folder:
                return "/".join(parts[: depth + 1]) + "/"
    return None
