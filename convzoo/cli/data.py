"""The `data` commands: look at a data set before training on it."""

import functools
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, cast

import typer

from convzoo import errors
from convzoo.cli.options import Data, Device, Json, Split, named, output
from convzoo.plain import JsonObject
from convzoo.storage import shown, written

if TYPE_CHECKING:
    from convzoo.types import BoxedDataset, Dataset

data_app = typer.Typer(help="Look at a data set before training on it.", no_args_is_help=True, rich_markup_mode=None)
DISAGREEMENTS = Path("disagreements")
NAMED_DISAGREEMENTS = 12
DataName = Annotated[
    str,
    typer.Argument(
        metavar="DATASET", help="A data set or a recipe with one (`convzoo list`), or a folder of your own pictures."
    ),
]
Keys = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="The data set's keys, such as one_based=false.")
]


def _is_recipe(name: str) -> bool:
    """Tell whether a name that is no data set's is that of a recipe, shipped or a file."""
    from convzoo.config import recipe as recipes
    from convzoo.config import registry

    named = name in recipes.shipped() or "/" in name or name.endswith((".yaml", ".yml"))
    return named and name not in registry.names("dataset")


def data_overrides(keys: list[str] | None) -> list[str]:
    """Return KEY=VALUE as overrides of a recipe's section data."""
    return [f"data.{key.removeprefix('data.')}" for key in keys or []]


def bound(name: str, keys: list[str] | None) -> functools.partial:
    """Return a data set's builder with its keys KEY=VALUE bound. Raises UsageError."""
    from convzoo.config import registry
    from convzoo.config.yaml_places import apply_override

    plain: JsonObject = {"data": {"name": name}}
    places: dict[tuple, str] = {}
    for override in data_overrides(keys):
        apply_override(override, plain, places)
    return registry.bind(
        "dataset", plain["data"], lambda key: f"{places.get(('data', key), 'command line:')} data.{key}:"
    )


def _datasets(name: str, keys: list[str] | None, data: Path | None, splits: tuple[str, ...]) -> dict[str, "Dataset"]:
    """Build the splits of a data set, or of a recipe's, with keys KEY=VALUE replaced. Raises UsageError, DataError."""
    from convzoo.config import recipe as recipes
    from convzoo.config import registry

    overrides = data_overrides(keys)
    if name not in registry.names("dataset") and Path(name).is_dir() and data is None:
        name, data = "own", Path(name)
    if name in registry.names("dataset"):
        build = bound(name, keys)
    elif _is_recipe(name):
        from convzoo.build import bind_dataset

        recipe = recipes.load(name, overrides)
        build = bind_dataset(recipe)
    else:
        known = [*registry.names("dataset"), *recipes.shipped()]
        raise errors.UsageError(f"no data set or recipe '{name}'{registry.nearest(name, known)}")
    from convzoo.data.loader import check_own_split

    built = {split: build(data, split) for split in splits}
    for split, dataset in built.items():
        check_own_split(dataset, split)
    return built


@data_app.command()
def check(
    dataset: DataName,
    keys: Keys = None,
    data: Data = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", help="List the pictures where this model and the labels disagree most.", dir_okay=False
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="With --model: folder for the list and the sheet.")
    ] = DISAGREEMENTS,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Read every picture: unreadable ones, duplicates within and across the splits, different classes, wrong boxes.

    Exit 3 if a picture is unreadable or has another size than its annotation says.
    """
    from convzoo.data.loader import check_same_classes

    splits = _datasets(dataset, keys, data, ("train", "val"))
    check_same_classes(splits["train"].class_names, splits["val"].class_names)
    if model:
        _disagreements(splits, model, out, device, json_)
    else:
        _check(splits, json_)


def _disagreements(splits: dict[str, "Dataset"], model: Path, out: Path, device: str, json_: bool) -> None:
    from convzoo import distributed
    from convzoo.deploy.exported import open_any
    from convzoo.inference.disagreement import disagreements

    with written(out) as local:
        rows = disagreements(open_any(model, distributed.resolve_device(device), None), splits, local)
    for row in rows if json_ else rows[:NAMED_DISAGREEMENTS]:
        print(
            json.dumps(row, ensure_ascii=False) if json_ else f"{row['disagreement']:.2f}  {row['path']}: {row['why']}"
        )
    if not json_:
        print(f"{len(rows)} pictures by disagreement in {shown(out)}/disagreements.csv, the first in disagreements.png")


def _check(splits: dict[str, "Dataset"], json_: bool) -> None:
    from convzoo.data.checks import boxes
    from convzoo.data.checks import splits as checks

    (train, train_digests), (val, val_digests) = (checks.check_split(split) for split in splits.values())
    across = [[train_digests[digest], val_digests[digest]] for digest in train_digests.keys() & val_digests.keys()]
    alike = [pair for pair in checks.alike_across(train, val) if pair not in across]
    findings = {"train": train.plain(), "val": val.plain(), "in_both": sorted(across), "alike_in_both": sorted(alike)}
    if json_:
        print(json.dumps(findings, ensure_ascii=False))
    else:
        print(
            f"{train.text('train')}\n{val.text('val')}\nin both splits: {len(across)}, and {len(alike)} that look alike"
        )
        for pair in sorted(across)[: boxes.NAMED]:
            print(f"  {' = '.join(pair)}")
        for pair in sorted(alike)[: boxes.NAMED]:
            print(f"  {' ~ '.join(pair)}")
    parts = []
    for kind, what in (("unreadable", "cannot be read"), ("mismatched", "have another size than annotated")):
        count = len(getattr(train, kind)) + len(getattr(val, kind))
        parts += [f"{count} pictures {what}"] * bool(count)
    if parts:
        raise errors.DataError(", ".join(parts))


@data_app.command()
def stats(
    dataset: DataName,
    keys: Keys = None,
    data: Data = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="PNG of labelled samples to write.", show_default=False)
    ] = None,
    anchors: Annotated[
        int | None,
        typer.Option("--anchors", help="Find so many anchors for the boxes: 9, or a recipe's.", show_default=False),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option("--size", min=1, help="Side in px of the input for them.", show_default="a recipe's, else 416"),
    ] = None,
    json_: Json = False,
) -> None:
    """Count the images and objects of each class, and write a picture of labelled samples."""
    from convzoo.data.checks import splits as checks

    scales = _scales(dataset, anchors) if anchors is not None else None
    splits = _datasets(dataset, keys, data, ("train", "val"))
    if checks.is_boxed(splits["train"]):
        _box_stats(cast(dict[str, "BoxedDataset"], splits), scales, size, json_)
    elif anchors:
        raise errors.UsageError(f"--anchors: {dataset} has no boxes")
    else:
        _class_stats(splits, json_)
    with output(sheet) as local:
        if local:
            checks.save_sheet(splits["train"], local)


def _class_stats(splits: dict[str, "Dataset"], json_: bool) -> None:
    from convzoo.data.checks import splits as checks

    counts = {name: checks.count_classes(split) for name, split in splits.items()}
    if json_:
        print(json.dumps(counts, ensure_ascii=False))
        return
    names = splits["train"].class_names
    width = max(map(len, names))
    print(f"{'class':{width}}  {'train':>8}  {'val':>8}")
    for name in names:
        print(f"{name:{width}}  {counts['train'][name]:8,}  {counts['val'].get(name, 0):8,}")
    print(f"{'all':{width}}  {len(splits['train']):8,}  {len(splits['val']):8,}")


class _Scales(NamedTuple):
    """What anchors are for: how many at each scale, finest first, the (height, width), the unit of a `.cfg` in pixels;
    and whose there are already."""

    counts: list[int]
    size_hw: tuple[int, int]
    whose: str
    known_px: Sequence[tuple[float, float]]
    cfg_unit_px: int | None = None

    def line(self, rows: list[list[list[int]]]) -> str:
        """Return anchors as the recipe's `model:` takes them, or as the `.cfg` in it."""
        if self.cfg_unit_px is None:
            return f"anchors_px: {rows}"
        units = (f"{w / self.cfg_unit_px:.5g},{h / self.cfg_unit_px:.5g}" for row in rows for w, h in row)
        return "anchors = " + ", ".join(units)


def _scales(dataset: str, count: int) -> _Scales:
    """Return the scales of a recipe, or for a data set such as YOLOv3's. Raises UsageError where `count` is none's."""
    from convzoo.models.yolov3 import ANCHORS_PX

    if not _is_recipe(dataset):
        if count < 3 or count % 3:
            raise errors.UsageError(f"--anchors {count}: three for each scale, so 9 for YOLOv3")
        return _Scales([3] * (count // 3), (416, 416), "YOLOv3's anchors for COCO", sum(ANCHORS_PX, ()))
    from convzoo import build
    from convzoo.config import recipe as recipes
    from convzoo.tasks.detect import network_heads

    recipe = recipes.load(dataset)
    heads = sorted(network_heads(recipe), key=lambda head: head.stride)
    total = sum(len(head.anchors_px) for head in heads)
    if count != total:
        name = recipe.model["name"]
        raise errors.UsageError(f"--anchors {count}: the {name} of this recipe has {total} at {len(heads)} scales")
    size_hw = build.given_size(build.build_pipeline(recipe, "eval")) or (416, 416)
    unit_px = None if recipe.model["name"] != "darknet" else heads[0].stride if heads[0].kind == "region" else 1
    known_px = [anchor for head in heads for anchor in head.anchors_px]
    return _Scales([len(head.anchors_px) for head in heads], size_hw, "this recipe's own", known_px, unit_px)


def _box_stats(splits: dict[str, "BoxedDataset"], scales: _Scales | None, size_px: int | None, json_: bool) -> None:
    import numpy as np

    from convzoo.data.checks.anchors import find_anchors, letterboxed_sizes, mean_best_iou
    from convzoo.data.checks.boxes import box_stats, gather, stats_text
    from convzoo.data.loader import check_same_classes

    check_same_classes(splits["train"].class_names, splits["val"].class_names)
    objects = {name: gather(split) for name, split in splits.items()}
    stats: JsonObject = {name: box_stats(objects[name], splits[name].class_names) for name in splits}
    text = stats_text(stats["train"], stats["val"])
    if scales:
        size_hw = (size_px, size_px) if size_px else scales.size_hw
        sizes = letterboxed_sizes(objects["train"], size_hw)
        anchors = find_anchors(sizes, sum(scales.counts))
        rows, known_iou = anchors.rows(scales.counts), mean_best_iou(sizes, np.array(scales.known_px))
        stats["anchors"] = {"anchors_px": rows, "mean_iou": anchors.mean_iou, "size_px": max(size_hw)}
        text += f"\n\n{anchors.text(size_hw, known_iou, scales.whose)}\n{scales.line(rows)}"
    print(json.dumps(stats, ensure_ascii=False) if json_ else text)


@data_app.command(name="save")
def save_(
    dataset: DataName,
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")],
    keys: Keys = None,
    data: Data = None,
    split: Annotated[Split, typer.Option("--split")] = Split.val,
    count: Annotated[int, typer.Option("--count", min=1)] = 24,
) -> None:
    """Write some pictures of a data set as PNG files."""
    from convzoo.data.checks import splits as checks

    chosen = _datasets(dataset, keys, data, (split.value,))[split.value]
    with written(out) as local:
        for path in checks.save_pictures(chosen, local, count):
            print(named(str(path), out, local))


@data_app.command()
def shards(
    dataset: DataName,
    out: Annotated[Path, typer.Option("--out", help="Folder or URL to write; a new one.", show_default=False)],
    keys: Keys = None,
    data: Data = None,
    images: Annotated[int, typer.Option("--images", min=1, help="Pictures a shard.")] = 1000,
    json_: Json = False,
) -> None:
    """Write both splits of a data set as tar shards in webdataset's layout, in a mixed order."""
    from convzoo.data.layouts.shards import write_shards

    counts = write_shards(_datasets(dataset, keys, data, ("train", "val")), out, images)
    if json_:
        print(json.dumps({"out": shown(out), "shards": counts}))
        return
    print(f"{shown(out)}: {', '.join(f'{count:,} shards {split}' for split, count in counts.items())}")
    print(f"  convzoo data check shards --data {shlex.quote(shown(out))}")
