"""The options that commands share, and the `data` commands: look at a data set before training on it."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from convzoo import errors, logs

data_app = typer.Typer(help="Look at a data set before training on it.", no_args_is_help=True, rich_markup_mode=None)


class OnBad(StrEnum):
    error = "error"
    skip = "skip"


class To(StrEnum):
    darknet = "darknet"
    mindspore = "mindspore"


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Split(StrEnum):
    train = "train"
    val = "val"


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="SECTION.KEY=VALUE", help="Recipe keys to replace, such as optim.lr=0.05.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, xpu or npu.")]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Loader processes.", show_default="what suits the machine")
]
OnBadSample = Annotated[
    OnBad, typer.Option("--on-bad-sample", help="What an unreadable picture means: stop, or leave it out and count it.")
]
Download = Annotated[
    bool, typer.Option("--download", help="Use the network: for CIFAR-10 into --data, and weights by LIBRARY:NAME.")
]
Data = Annotated[Path | None, typer.Option("--data", help="Folder or zip with the pictures.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
DataName = Annotated[str, typer.Argument(metavar="DATASET", help="A data set's name (`convzoo list`).")]


def fetch(wanted: bool, spec: dict[str, Any], data: Path | None, weights: str | None = None) -> None:
    """Fetch CIFAR-10 where --download asks for it; weights by name are fetched where they are read.

    Raises:
        UsageError: nothing that could be fetched.
    """
    if not wanted:
        return
    from convzoo.weights.sources import is_remote

    if spec["name"] != "cifar10" and weights and is_remote(weights):
        return
    if spec["name"] != "cifar10" or data is None:
        raise errors.UsageError(
            "--download fetches CIFAR-10 into the folder that --data names; other data sets are not fetched"
        )
    from convzoo import dist
    from convzoo.data.download import download_cifar10

    if dist.rank() == 0:
        logs.setup()
        download_cifar10(data)


def _datasets(name: str, data: Path | None, splits: tuple[str, ...]) -> dict[str, Any]:
    from convzoo import registry

    build = registry.bind("dataset", {"name": name}, lambda key: "data:")
    return {split: build(data, split) for split in splits}


@data_app.command()
def check(dataset: DataName, data: Data = None, json_: Json = False) -> None:
    """Read every picture: unreadable ones, duplicates within and across the splits, different classes. Exit 3 if any is wrong."""
    from convzoo.data import check as checks
    from convzoo.data.loader import check_same_classes

    splits = _datasets(dataset, data, ("train", "val"))
    check_same_classes(splits["train"].class_names, splits["val"].class_names)
    (train_account, train_digests), (val_account, val_digests) = (
        checks.check_split(split) for split in splits.values()
    )
    across = [[train_digests[digest], val_digests[digest]] for digest in train_digests.keys() & val_digests.keys()]
    found = {"train": train_account.plain(), "val": val_account.plain(), "in_both": sorted(across)}
    if json_:
        print(json.dumps(found, ensure_ascii=False))
    else:
        for name, account in (("train", train_account), ("val", val_account)):
            print(
                f"{name}: {account.images} images, {len(account.unreadable)} unreadable, {len(account.duplicates)} groups of duplicates"
            )
            for line in [*account.unreadable, *("same pixels: " + ", ".join(group) for group in account.duplicates)][
                :20
            ]:
                print(f"  {line}")
        print(f"in both splits: {len(across)}")
        for pair in sorted(across)[:20]:
            print(f"  {' = '.join(pair)}")
    unreadable = len(train_account.unreadable) + len(val_account.unreadable)
    if unreadable:
        raise errors.DataError(f"{unreadable} pictures cannot be read")


@data_app.command()
def stats(
    dataset: DataName,
    data: Data = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="PNG of labelled samples to write.", show_default=False)
    ] = None,
    json_: Json = False,
) -> None:
    """Count the images of each class, and write a picture of labelled samples."""
    from convzoo.data import check as checks

    splits = _datasets(dataset, data, ("train", "val"))
    counts = {name: checks.count_classes(split) for name, split in splits.items()}
    if sheet:
        checks.save_sheet(splits["train"], sheet)
    if json_:
        print(json.dumps(counts, ensure_ascii=False))
        return
    names = splits["train"].class_names
    width = max(map(len, names))
    print(f"{'class':{width}}  {'train':>8}  {'val':>8}")
    for name in names:
        print(f"{name:{width}}  {counts['train'][name]:8,}  {counts['val'].get(name, 0):8,}")
    print(f"{'all':{width}}  {len(splits['train']):8,}  {len(splits['val']):8,}")


@data_app.command(name="save")
def save_(
    dataset: DataName,
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")],
    data: Data = None,
    split: Annotated[Split, typer.Option("--split")] = Split.val,
    count: Annotated[int, typer.Option("--count", min=1)] = 24,
) -> None:
    """Write some pictures of a data set as PNG files."""
    from convzoo.data import check as checks

    for path in checks.save_pictures(_datasets(dataset, data, (split.value,))[split.value], out, count):
        print(path)
