"""A run of six steps, what kills it, and pictures of two classes for it to read."""

from collections.abc import Callable
from pathlib import Path

from helpers import QUICK

COMMAND = [
    "train",
    "tinydarknet-digits",
    *QUICK,
    "data.max_train_images=128",
    "train.epochs=3",
    "--save-every-steps",
    1,
]
TWO_CLASSES = ["data={name: image_folder}", "model.num_classes=2", "train.batch_size=8", "data.max_train_images=null"]


class Killed(BaseException):
    """What a test throws through everything, as a kill ends a process: nothing is saved or marked on the way."""


def kill() -> None:
    raise Killed


def write_two_classes(run: Callable, folder: Path, count: int) -> Path:
    """Write so many digits of each split as pictures, even and odd ones, and return the root of the tree."""
    for split in ("train", "val"):
        assert run("data", "save", "digits", "--out", folder / split, "--count", count, "--split", split)[0] == 0
        for file in (folder / split).iterdir():
            place = folder / "tree" / split / ("even" if int(file.name[0]) % 2 == 0 else "odd")
            place.mkdir(parents=True, exist_ok=True)
            file.rename(place / file.name)
    return folder / "tree"
