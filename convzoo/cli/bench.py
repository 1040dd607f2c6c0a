"""The verb `bench`: what every form of a model costs and gives."""

import json
from pathlib import Path
from typing import Annotated

import typer

from convzoo.cli.options import Calibration, Data, Json, MaxDrop, named, output


def bench(
    model: Annotated[Path, typer.Argument(help="A model file, or an exported one.")],
    formats: Annotated[
        str,
        typer.Option(
            "--formats",
            metavar="all|LIST",
            help="Of pytorch,pt2,onnx,openvino,openvino-bf16,ncnn,ncnn-bf16,ncnn-fp16,onnx-int8,openvino-int8.",
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
    from convzoo.deploy.bench import ROWS, BenchOptions
    from convzoo.deploy.bench import bench as run_bench

    names = tuple(ROWS) if formats == "all" else tuple(dict.fromkeys(formats.split(",")))
    with output(out) as local:
        result = run_bench(model, BenchOptions(names, data, calibration, max_drop, rounds, seconds, batch, local))
    print(named(json.dumps(result.plain) if json_ else result.text(), out, local))
