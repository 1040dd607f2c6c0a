"""The `data` commands for pictures of one's own: what is there, how it is shared out, and as one of our layouts."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convzoo.cli.data import Keys, bound, data_app, data_overrides
from convzoo.cli.options import Device, Json, Workers, named
from convzoo.errors import UsageError
from convzoo.storage import is_there, shown, url_of, written

if TYPE_CHECKING:
    from convzoo.data.layouts.labels import Labels

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder of pictures with their labels, as they lie.")]
Minutes = Annotated[float, typer.Option("--minutes", help="What training may take on this machine.")]
RECIPES = {"classify": "tinydarknet-own", "detect": "yolov3-tiny-own"}


def _labels(folder: Path, keys: list[str] | None) -> tuple["Labels", float]:
    """Return a folder's labels, read with keys of the data set `own`, and its val_share. Raises as `read_labels`."""
    from convzoo.data.layouts.labels import Reading
    from convzoo.data.layouts.recognise import read_labels

    options = bound("own", keys).keywords
    reading = Reading(options.get("class_names"), options.get("rename", {}), options.get("one_based", True))
    return read_labels(folder, options.get("layout"), reading), options.get("val_share", 0.2)


@data_app.command()
def inspect(folder: Folder, keys: Keys = None, minutes: Minutes = 30, json_: Json = False) -> None:
    """Say what a folder of labelled pictures is, how it was recognised, what it holds, and what trains on it."""
    from convzoo.data.datasets.own import MADE
    from convzoo.data.layouts.account import account, text
    from convzoo.data.layouts.split import read_lists

    labels, _ = _labels(folder, keys)
    lists = read_lists(labels)
    splits = lists if lists is not None else labels.splits
    plain = account(labels, splits, "lists" if lists is not None else "layout" if splits else MADE)
    name = folder.resolve().name.partition(".")[0]
    out = f"{name}.yaml"
    made = ["data", "recipe", str(folder), *(keys or []), "--minutes", f"{minutes:g}", "--out", out]
    shipped = [*data_overrides(keys), f"model.num_classes={len(plain['classes'])}"]
    plain["commands"] = [shlex.join(["convzoo", *made]), *_trained(out, folder, [])]
    plain["at_once"] = _trained(RECIPES[plain["task"]], folder, shipped)
    if json_:
        print(json.dumps(plain, ensure_ascii=False))
        return
    titles = (
        (f"train on it, in {minutes:g} minutes on this machine:", plain["commands"]),
        (
            "or with the recipe that is shipped:",
            plain["at_once"],
        ),
    )
    print(text(plain))
    for title, commands in titles:
        print("\n".join(["", title, *(f"  {command}" for command in commands)]))


def _trained(recipe: str, folder: Path, overrides: list[str]) -> list[str]:
    """Return the commands that train a recipe on a folder and measure what came out."""
    run = f"runs/{folder.resolve().name.partition('.')[0]}"
    train = ["convzoo", "train", recipe, *overrides, "--data", str(folder), "--out", run]
    measure = ["convzoo", "eval", f"{run}/checkpoints/last.safetensors", "--data", str(folder)]
    return [shlex.join(train), shlex.join(measure)]


@data_app.command()
def split(
    folder: Folder,
    val: Annotated[float, typer.Option("--val", help="Share for validation.", show_default=False)],
    keys: Keys = None,
    test: Annotated[float, typer.Option("--test", help="Share for a test.")] = 0.0,
    json_: Json = False,
) -> None:
    """Share pictures out to training, validation and test, as lists in DIR/splits; nothing is moved.

    Each class is shared out in proportion, and pictures that look alike are on one side.
    """
    from convzoo.data.layouts.inventory import LISTS
    from convzoo.data.layouts.split import read_lists, split_pictures, write_lists

    if folder.is_file() or url_of(folder):
        what = "a store" if url_of(folder) else "an archive"
        raise UsageError(f"{shown(folder)}: {what} takes no lists beside its pictures; they need a folder here")
    labels, _ = _labels(folder, keys)
    if read_lists(labels) is not None:
        raise UsageError(f"{folder / LISTS}: the lists are there already; remove them to split anew")
    if labels.splits is not None:
        raise UsageError(f"{folder}: its layout has splits already: {', '.join(sorted(set(labels.splits)))}")
    splits = split_pictures(labels, val, test)
    paths = write_lists(folder / LISTS, labels.files, splits)
    counts = labels.counts() > 0
    rows = {name: counts[[other == name for other in splits]].sum(0).tolist() for name in dict.fromkeys(splits)}
    by_class = {name: {part: rows[part][i] for part in rows} for i, name in enumerate(labels.class_names)}
    if json_:
        totals = {name: splits.count(name) for name in rows}
        print(json.dumps({"lists": [str(path) for path in paths], "images": totals, "classes": by_class}))
        return
    width = max(8, *map(len, labels.class_names))
    order = [path.stem for path in paths]
    print(f"{'pictures':{width}}" + "".join(f"  {part:>7}" for part in order))
    for name, row in by_class.items():
        print(f"{name:{width}}" + "".join(f"  {row[part]:7,}" for part in order))
    print(f"{'all':{width}}" + "".join(f"  {splits.count(part):7,}" for part in order))
    print(f"lists in {folder / LISTS}; every verb takes them from there")


@data_app.command(name="recipe")
def recipe_(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", help="The YAML file to write; a new one.", show_default=False)],
    keys: Keys = None,
    minutes: Minutes = 30,
    device: Device = "auto",
    workers: Workers = None,
    json_: Json = False,
) -> None:
    """Write a recipe for these pictures, this machine and this time, each choice with its reason."""
    from convzoo.files import written_whole
    from convzoo.training.own_recipe import make_recipe

    if url_of(out):
        raise UsageError(f"{shown(out)}: a recipe is a file here", ("out",))
    if out.exists():
        raise UsageError(f"{out}: there already; choose another name", ("out",))
    if minutes <= 0:
        raise UsageError(f"{minutes:g} minutes: more than 0", ("minutes",))
    text, made = make_recipe(folder, dict(bound("own", keys).keywords), minutes, device, workers)
    train = _trained(str(out), folder, [])[0]
    text = f"{text}# Run: {train}\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if json_:
        print(json.dumps({"recipe": str(out), **made.recipe().plain()}, ensure_ascii=False))
        return
    print(f"{text}\n{out}\n  {train}")


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

    if is_there(out) and (url_of(out) or any(out.iterdir() if out.is_dir() else [out])):
        raise UsageError(f"{shown(out)}: not empty; choose another folder", ("out",))
    labels, _ = _labels(folder, keys)
    with written(out) as local:
        made = import_labels(labels, local, val)
    if json_:
        print(named(json.dumps(made, ensure_ascii=False), out, local))
        return
    counts = ", ".join(f"{count:,} {split}" for split, count in made["splits"].items())
    print(f"{shown(out)}: {made['layout']} with {counts}, {len(labels.class_names)} classes")
    print(f"  convzoo data check {made['layout']} --data {shlex.quote(shown(out))}")
