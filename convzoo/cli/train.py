"""The verb `train`."""

from pathlib import Path
from typing import Annotated

import typer

from convzoo.cli.download import fetch
from convzoo.cli.options import Data, Device, Download, OnBad, OnBadSample, Overrides, Workers
from convzoo.storage import shown


def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name (`convzoo list`) or a YAML file.")],
    overrides: Overrides = None,
    data: Data = None,
    val_data: Annotated[
        Path | None,
        typer.Option("--val-data", help="Folder, zip or tar with the validation pictures.", show_default="--data's"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder; a new one.", show_default="runs/RECIPE")
    ] = None,
    device: Device = "auto",
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="Start from a model file, a foreign weight file, or LIBRARY:NAME (`convzoo list --weights`).",
            show_default=False,
        ),
    ] = None,
    workers: Workers = None,
    accumulate: Annotated[
        int, typer.Option("--accumulate", min=1, help="Micro-batches per batch: less memory, same batch.")
    ] = 1,
    save_every_steps: Annotated[
        int | None, typer.Option("--save-every-steps", min=1, help="Save within epochs too.", show_default=False)
    ] = None,
    log_every_steps: Annotated[
        int | None,
        typer.Option("--log-every-steps", min=1, help="Log loss, rate and speed so often.", show_default="by time"),
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a torch.profiler trace and table of three steps.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="There must be a run to continue. The same command continues one anyway.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin a new run, in a folder that holds none.")] = False,
    on_bad_sample: OnBadSample = OnBad.error,
    download: Download = False,
) -> None:
    """Train a network as a recipe says. Several devices: torchrun --nproc-per-node N -m convzoo train ..."""
    from convzoo.config import recipe as recipes
    from convzoo.training.stop import StopRequest

    loaded = recipes.load(recipe, overrides or [])
    with StopRequest() as stop:  # before PyTorch's seconds of importing
        from convzoo import distributed
        from convzoo.environment import command_line
        from convzoo.training.loop import train as run_training
        from convzoo.training.setup import RunOptions

        fetch(download, loaded.data, data, weights)
        options = RunOptions(
            data=data,
            val_data=val_data,
            out=out,
            device=device,
            weights=weights,
            workers=workers,
            accumulate=accumulate,
            save_every_steps=save_every_steps,
            log_every_steps=log_every_steps,
            compile=compile,
            profile=profile,
            resume=resume,
            fresh=fresh,
            download=download,
            on_bad_sample=on_bad_sample.value,
            command=command_line(context.obj),
        )
        path = run_training(loaded, options, stop)
    if distributed.rank() == 0:
        print(shown(path))
