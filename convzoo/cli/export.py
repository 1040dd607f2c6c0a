"""The verb `export`: a model for another runtime, compared there."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from convzoo.cli.options import Calibration, Json, Precision, SocVersion, named, output
from convzoo.deploy import FORMATS
from convzoo.errors import UsageError
from convzoo.plain import Keywords


class Stage(StrEnum):
    raw = "raw"
    decoded = "decoded"
    nms = "nms"


ComparisonData = Annotated[
    Path | None, typer.Option("--data", help="Compare on this data set's pictures.", show_default="embedded pictures")
]
WeightPrecision = Annotated[
    Precision, typer.Option("--precision", metavar="fp32|fp16", help="Of the weights; fp16 for NCNN.")
]
BudgetOfFastest = Annotated[
    float | None,
    typer.Option("--max-drop", help="What the fastest may lose of top-1 or AP, in points.", show_default="0.5"),
]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return (height, width) of `H,W`, or of one number for a square. Raises UsageError."""
    if text is None:
        return None
    try:
        sides = [int(side) for side in text.lower().replace("x", ",").split(",")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or not all(0 < side <= 1 << 14 for side in sides):
        raise UsageError(f"--size {text}: HEIGHT,WIDTH in pixels, such as 416,416")
    return sides[0], sides[-1]


def export(
    model: Annotated[Path, typer.Argument(help="A model file.")],
    format: Annotated[str, typer.Option("--format", metavar="|".join(FORMATS), help="What to write.")],
    out: Annotated[Path | None, typer.Option("--out", help="File or folder.", show_default="beside the model")] = None,
    stage: Annotated[
        Stage, typer.Option("--stage", help="Detectors: head maps, boxes and scores, or boxes after suppression.")
    ] = Stage.raw,
    preprocessing: Annotated[
        bool, typer.Option("--preprocessing", help="Take uint8 RGB pictures [B, H, W, 3] and normalise them inside.")
    ] = False,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Pictures in a batch.", show_default="any")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="H,W", help="Input in pixels.", show_default="the recipe's")
    ] = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Take any size that is a multiple of 32 pixels.")
    ] = False,
    data: ComparisonData = None,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", min=0, help="Largest relative difference from PyTorch's outputs."),
    ] = 1e-4,
    precision: WeightPrecision = Precision.fp32,
    max_drop: BudgetOfFastest = None,
    calibration: Calibration = None,
    soc_version: SocVersion = "Ascend310",
    json_: Json = False,
) -> None:
    """Write a model for another runtime, run it there, compare it with PyTorch, and only then keep the file.

    Exit 4, and nothing left behind, where they differ. --format fastest writes and measures all that run here, on
    --data, and keeps the fastest that loses at most --max-drop.
    """
    wanted_size = parse_size(size)
    if format != "fastest" and (max_drop is not None or calibration):
        raise UsageError("--max-drop and --calibration are for --format fastest")
    from convzoo.deploy.export import ExportOptions
    from convzoo.deploy.export import export as run_export

    pictures: Keywords = {"batch": batch, "size": wanted_size, "dynamic_size": dynamic_size, "data": data}
    form: Keywords = {"stage": stage.value, "preprocessing": preprocessing, "precision": precision.value}
    form |= {"soc_version": soc_version, "max_drop": 0.5 if max_drop is None else max_drop, "calibration": calibration}
    from convzoo.inference.torch_model import open_model

    with output(out, model) as local:
        options = ExportOptions(format, out=local, tolerance=tolerance, **pictures, **form)
        result = run_export(open_model(model), options)
    print(named(json.dumps(result.plain) if json_ else result.text(), out, local))
