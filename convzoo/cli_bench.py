"""The verbs `quantize` and `bench`: INT8 within an accuracy budget, and what every form of a model costs and gives."""

import json
from pathlib import Path
from typing import Annotated

import typer

from convzoo.cli_data import Data, Json
from convzoo.cli_deploy import SocVersion

Calibration = Annotated[
    Path | None,
    typer.Option("--calibration", help="Calibrate on a folder of pictures.", show_default="--data's training split"),
]
MaxDrop = Annotated[float, typer.Option("--max-drop", help="What INT8 may lose of top-1 or AP, in points of percent.")]


def quantize(
    model: Annotated[Path, typer.Argument(help="A model file.")],
    format: Annotated[str, typer.Option("--format", metavar="onnx|openvino|om", help="What to write.")],
    data: Data = None,
    max_drop: MaxDrop = 0.5,
    calibration: Calibration = None,
    calibration_images: Annotated[
        int, typer.Option("--calibration-images", min=1, help="Calibrate on at most so many pictures.")
    ] = 300,
    eval_images: Annotated[
        int | None,
        typer.Option("--eval-images", min=1, help="Evaluate on a fixed random part of so many.", show_default="all"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File or folder.", show_default="MODEL-int8 beside the model")
    ] = None,
    soc_version: SocVersion = "Ascend310",
    json_: Json = False,
) -> None:
    """Write a model in INT8, measured before and after on the same pictures, and keep it only within the budget.

    Exit 4, and nothing left behind, where it loses more than --max-drop or is not faster than float.
    """
    from convzoo.deploy.quantize import Wanted
    from convzoo.deploy.quantize import quantize as run_quantize

    wanted = Wanted(format, data, max_drop, calibration, calibration_images, eval_images, out, soc_version)
    report = run_quantize(model, wanted)
    print(json.dumps(report.plain) if json_ else report.text())


def bench(
    model: Annotated[Path, typer.Argument(help="A model file, or an exported one.")],
    formats: Annotated[
        str,
        typer.Option(
            "--formats", metavar="all|LIST", help="Of pytorch,pt2,onnx,openvino,openvino-bf16,onnx-int8,openvino-int8."
        ),
    ] = "all",
    data: Data = None,
    calibration: Calibration = None,
    max_drop: MaxDrop = 0.5,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Every form is timed once in each.")] = 3,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="For each form in each round.")] = 2.0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures in the batch whose latency is taken.")] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for bench.json and bench.md.", show_default=False)
    ] = None,
    json_: Json = False,
) -> None:
    """Measure what every form of a model costs and gives here: size, speed, memory, accuracy, distance from PyTorch."""
    from convzoo.bench import ROWS, Wanted
    from convzoo.bench import bench as run_bench

    names = tuple(ROWS) if formats == "all" else tuple(dict.fromkeys(formats.split(",")))
    report = run_bench(model, Wanted(names, data, calibration, max_drop, rounds, seconds, batch, out))
    print(json.dumps(report.plain) if json_ else report.text())
