"""The `data` commands for pictures of one's own: what is there, how it is shared out, and as one of our layouts."""

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from convzoo.cli.data import Keys, bound, data_app, data_overrides
from convzoo.cli.options import Json
from convzoo.errors import UsageError

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder of pictures with their labels, as they lie.")]
RECIPES = {"classify": "tinydarknet-own", "detect": "yolov3-tiny-own"}


def _labels(folder: Path, keys: list[str] | None) -> tuple[Any, float]:
    """Return a folder's labels, read with keys of the data set `own`, and its val_share. Raises as `read_labels`."""
    from convzoo.data.layouts.labels import Reading
    from convzoo.data.layouts.recognise import read_labels

    options = bound("own", keys).keywords
    reading = Reading(options.get("class_names"), options.get("rename", {}), options.get("one_based", True))
    return read_labels(folder, options.get("layout"), reading), options.get("val_share", 0.2)


@data_app.command()
def inspect(folder: Folder, keys: Keys = None, json_: Json = False) -> None:
    """Say what a folder of labelled pictures is, how it was recognised, what it holds, and what trains on it."""
    from convzoo.data.datasets.own import MADE
    from convzoo.data.layouts.account import account, text
    from convzoo.data.layouts.split import read_lists

    labels, _ = _labels(folder, keys)
    lists = read_lists(labels)
    splits = lists if lists is not None else labels.splits
    plain = account(labels, splits, "lists" if lists is not None else "layout" if splits else MADE)
    plain["commands"] = _commands(plain, folder, keys)
    if json_:
        print(json.dumps(plain, ensure_ascii=False))
        return
    print(text(plain))
    print("\n".join(["", "train on it:", *(f"  {command}" for command in plain["commands"])]))


def _commands(plain: dict[str, Any], folder: Path, keys: list[str] | None) -> list[str]:
    """Return the commands that train on a folder and measure what came out."""
    run = f"runs/{folder.resolve().name}"
    overrides = [*data_overrides(keys), f"model.num_classes={len(plain['classes'])}"]
    train = ["convzoo", "train", RECIPES[plain["task"]], *overrides, "--data", str(folder), "--out", run]
    measure = ["convzoo", "eval", f"{run}/checkpoints/last.safetensors", "--data", str(folder)]
    return [shlex.join(train), shlex.join(measure)]


@data_app.command(name="import")
def import_(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", help="Folder to write; a new one.", show_default=False)],
    keys: Keys = None,
    val: Annotated[float, typer.Option("--val", min=0, max=0.99, help="Share held out, if nobody split it.")] = 0.2,
    json_: Json = False,
) -> None:
    """Write labelled pictures as one of our layouts: COCO where there are boxes, else a folder for each class.

    Pictures are linked where the file system can, else copied. Scores stay, as `score` of each annotation.
    """
    from convzoo.data.layouts.write import import_labels

    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise UsageError(f"{out}: not empty; choose another folder", ("out",))
    labels, _ = _labels(folder, keys)
    written = import_labels(labels, out, val)
    if json_:
        print(json.dumps(written, ensure_ascii=False))
        return
    counts = ", ".join(f"{count:,} {split}" for split, count in written["splits"].items())
    print(f"{out}: {written['layout']} with {counts}, {len(labels.class_names)} classes")
    print(f"  convzoo data check {written['layout']} --data {shlex.quote(str(out))}")
