"""The command `data pack`: a data set as one file at the size that it is trained at."""

from pathlib import Path
from typing import Annotated

import typer

from convzoo.cli.data import DataName, Keys, data_overrides
from convzoo.cli.options import Data, Split
from convzoo.cli.own import data_app
from convzoo.errors import UsageError
from convzoo.storage import local_path, shown

SPLIT_FOLDERS = ("train", "val", "validation", "validation_preprocess", "test", "ilsvrc")


@data_app.command()
def pack(
    dataset: DataName,
    size: Annotated[int, typer.Option("--size", min=1, help="Short side in px; smaller pictures stay as they are.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write, for `--data` of train and eval.")],
    keys: Keys = None,
    data: Data = None,
    split: Annotated[Split | None, typer.Option("--split", help="Pack this split.", show_default="both")] = None,
) -> None:
    """Write a data set as one file, decoded and resized: read by memory map, checksummed, its source inside."""
    from convzoo.config import recipe as recipes
    from convzoo.config import registry
    from convzoo.config.yaml_places import apply_override
    from convzoo.data.loader import check_same_classes
    from convzoo.data.packed import pack as write
    from convzoo.data.packed import settings_of

    if out.is_dir():
        raise UsageError(f"{out}: a folder; name the file to write", ("out",))
    if dataset in registry.names("dataset"):
        plain = {"data": {"name": dataset}}
    elif data is None and Path(dataset).exists():
        data = Path(dataset)
        is_split = data.is_file() or any((data / name).is_dir() for name in SPLIT_FOLDERS)
        plain = {"data": {"name": "image_folder" if is_split else "own"}}
    else:
        plain = {"data": dict(recipes.load(dataset).data)}
    for override in data_overrides(keys):
        apply_override(override, plain, {})
    settings = settings_of(plain["data"])
    build = registry.bind("dataset", settings, lambda key: f"data.{key}:")
    source = None if data is None else local_path(data, ("data",))
    splits = {name: build(source, name) for name in ([split.value] if split else ["train", "val"])}
    if len(splits) == 2:
        check_same_classes(splits["train"].class_names, splits["val"].class_names)
    about = {"source": str(Path(source or ".").resolve()), "data": settings}
    count, size_bytes = write(splits, about, size, out)
    print(f"{shown(out)}: {count:,} pictures, {size_bytes / 2**20:,.1f} MiB")
