"""CIFAR-10: 50,000 and 10,000 pictures of 32x32 in ten classes.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". Read from the binary archive's files, from
the pair cifar-10-batches-bin/ and cifar-10-verify-bin/, from class folders, or from a zip or tar of either.
"""

from pathlib import Path

import numpy as np

from convzoo.config.registry import register
from convzoo.data.datasets.image_folder import FolderImages, image_folder
from convzoo.data.datasets.in_memory import ArrayImages, first_of_shuffled
from convzoo.data.decode import EXTENSIONS
from convzoo.errors import DataError, UsageError
from convzoo.storage import local_folder, local_path
from convzoo.storage.archives import ZipMembers, is_zip

CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
RECORD_BYTES = 1 + 3 * 32 * 32  # label, then the red, green and blue planes
FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "val": ["test_batch.bin"]}
FOLDERS = {"train": ("", "cifar-10-batches-bin"), "val": ("", "cifar-10-verify-bin", "cifar-10-batches-bin")}


@register("dataset")
def cifar10(root: Path | None, split: str, *, max_train_images: int | None = None) -> ArrayImages | FolderImages:
    """Build CIFAR-10; training reads the train batches only, whatever else lies beside them.

    Raises:
        UsageError: no path, or it does not exist.
        DataError: neither the binary files nor the ten class folders, or a file of the wrong length.
    """
    if root is None:
        raise UsageError(
            "CIFAR-10 needs a folder, zip or tar with the binary batches or class folders", ("data", "download")
        )
    root = local_path(root, ("data",))
    if not root.exists():
        raise UsageError(f"{root}: no such file or folder", ("data", "download"))
    if root.is_file() and not (is_zip(root) and _has_pictures(root)):
        root = local_folder(root)
    for folder in FOLDERS[split]:
        files = [root / folder / name for name in FILES[split]]
        if files[0].is_file():
            return _from_binary(files, split, max_train_images)
    try:
        dataset = image_folder(root, split, max_train_images=max_train_images)
    except DataError as error:
        raise DataError(
            f"{error}; CIFAR-10 is {FILES[split][0]} and so on, or train/ and test/ with ten class folders"
        ) from None
    if dataset.class_names != CLASS_NAMES:
        raise DataError(
            f"{root}: the class folders are not CIFAR-10's: {', '.join(dataset.class_names[:10])}; "
            "use data.name=image_folder"
        )
    return dataset


def _has_pictures(path: Path) -> bool:
    """Tell whether a zip is one of class folders, read in place, rather than one of the binary files."""
    return any(name.lower().endswith(EXTENSIONS) for name in ZipMembers(path).names)


def _from_binary(files: list[Path], split: str, max_train_images: int | None) -> ArrayImages:
    parts = []
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: missing")
        data = np.fromfile(file, dtype=np.uint8)
        if len(data) == 0 or len(data) % RECORD_BYTES:
            raise DataError(f"{file}: {len(data)} bytes, not a whole number of {RECORD_BYTES}-byte records")
        parts.append(data.reshape(-1, RECORD_BYTES))
    records = np.concatenate(parts)
    labels = records[:, 0].astype(np.int64)
    if labels.max() > 9:
        raise DataError(f"{files[0].parent}: label {labels.max()} in the binary files; CIFAR-10 has 0 to 9")
    chosen = first_of_shuffled(len(records), max_train_images if split == "train" else None)
    images = np.ascontiguousarray(records[chosen, 1:]).reshape(-1, 3, 32, 32)
    return ArrayImages(images, labels[chosen], CLASS_NAMES, str(files[0].parent), chosen)
