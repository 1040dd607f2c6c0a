"""The verb `convert`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from convzoo.cli.files import _each
from convzoo.cli.options import Download, Json, To


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="Weight file, folder of them, LIBRARY:NAME, or MindSpore zoo YAML or config.py."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Model file (or recipe, or foreign file) to write; of a folder, a folder.")
    ],
    model: Annotated[str | None, typer.Option("--model", help="Refuse any other network.", show_default=False)] = None,
    num_classes: Annotated[
        int | None, typer.Option("--num-classes", help="Refuse any other number of classes.", show_default=False)
    ] = None,
    classes: Annotated[
        Path | None, typer.Option("--classes", help="Class names, one a line in output order.", show_default=False)
    ] = None,
    to: Annotated[To | None, typer.Option("--to", help="Write a file of that program.", show_default=False)] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare with where the weights come from first.")] = False,
    data_name: Annotated[
        str | None,
        typer.Option("--data-name", help="Data set of the recipe in the file.", show_default="cifar10 or image_folder"),
    ] = None,
    json_: Json = False,
    download: Download = False,
) -> None:
    """Turn weights of Darknet, MindSpore, torchvision or timm into a model file, or a model file into one of theirs.

    SRC is a Darknet .weights, a MindSpore .ckpt, a .pth, .pt or .safetensors, recognised by content; or timm:NAME,
    torchvision:NAME or darknet:FILE (`convzoo list --weights`); or a MindSpore zoo configuration, which becomes a
    recipe; or, with --to, a model file; or a folder of such weights.
    """
    from convzoo.convert.convert import convert as run_conversion
    from convzoo.convert.convert import targets
    from convzoo.convert.sources import ExpectedWeights

    expected = ExpectedWeights(model, num_classes, classes)
    options: dict[str, Any] = {"to": to, "check": check, "data_name": data_name}
    if not Path(source).is_dir():
        report = run_conversion(source, out, expected, download=download, **options)
        print(json.dumps(report.plain, ensure_ascii=False) if json_ else report.text())
        return
    target_of = targets(Path(source), out, to)

    def row(file: Path) -> None:
        report = run_conversion(str(file), target_of[file], expected, **options)
        print(json.dumps(report.plain, ensure_ascii=False) if json_ else f"{file}  ->  {target_of[file]}")

    _each(list(target_of), row, source)
