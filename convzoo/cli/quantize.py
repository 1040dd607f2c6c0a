"""The verb `quantize`: INT8 within an accuracy budget."""

import json
from pathlib import Path
from typing import Annotated

import typer

from convzoo.cli.options import Calibration, Data, Json, MaxDrop, SocVersion, named, output


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
    from convzoo.deploy.quantize.comparison import QuantizeOptions
    from convzoo.deploy.quantize.quantize import quantize as run_quantize
    from convzoo.inference.torch_model import open_model

    images = calibration, calibration_images, eval_images
    with output(out, model) as local:
        options = QuantizeOptions(format, data, max_drop, *images, local, soc_version)
        result = run_quantize(open_model(model), options)
    print(named(json.dumps(result.plain) if json_ else result.text(), out, local))
