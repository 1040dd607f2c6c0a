"""The verb `train`."""

from pathlib import Path
from typing import Annotated

import typer

from convzoo.cli.download import fetch
from convzoo.cli.options import Cache, Data, Device, Download, OnBad, OnBadSample, Overrides, Workers
from convzoo.plain import Keywords
from convzoo.storage import shown

Recipe = Annotated[str, typer.Argument(help="A shipped recipe's name (`convzoo list`) or a YAML file.")]
ValData = Annotated[
    Path | None,
    typer.Option("--val-data", help="Folder, zip or tar with the validation pictures.", show_default="--data's"),
]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; a new one.", show_default="runs/RECIPE")]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Start from a model file, a foreign weight file, or LIBRARY:NAME (`convzoo list --weights`).",
        show_default=False,
    ),
]
Accumulate = Annotated[
    int, typer.Option("--accumulate", min=1, help="Micro-batches per batch: less memory, same batch.")
]
KeepPictures = Annotated[
    Cache | None,
    typer.Option("--cache", help="Decode all pictures once and keep them in memory.", show_default="data.cache's"),
]
SaveEvery = Annotated[
    int | None, typer.Option("--save-every-steps", min=1, help="Save within epochs too.", show_default=False)
]
LogEvery = Annotated[
    int | None,
    typer.Option("--log-every-steps", min=1, help="Log loss, rate and speed so often.", show_default="by time"),
]
LogTo = Annotated[
    list[str] | None,
    typer.Option("--log-to", metavar="NAME", help="tensorboard, mlflow or wandb; several.", show_default=False),
]
Compile = Annotated[bool, typer.Option("--compile", help="Use torch.compile.")]
Profile = Annotated[bool, typer.Option("--profile", help="Write a torch.profiler trace and table of three steps.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="There must be a run to continue. The same command continues one anyway.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Begin a new run, in a folder that holds none.")]


def train(
    context: typer.Context,
    recipe: Recipe,
    overrides: Overrides = None,
    data: Data = None,
    val_data: ValData = None,
    out: Out = None,
    device: Device = "auto",
    weights: Weights = None,
    workers: Workers = None,
    cache: KeepPictures = None,
    accumulate: Accumulate = 1,
    save_every_steps: SaveEvery = None,
    log_every_steps: LogEvery = None,
    compile: Compile = False,
    profile: Profile = False,
    resume: Resume = False,
    fresh: Fresh = False,
    on_bad_sample: OnBadSample = OnBad.error,
    log_to: LogTo = None,
    download: Download = False,
) -> None:
    """Train a network as a recipe says. Several devices: torchrun --nproc-per-node N -m convzoo train ..."""
    from convzoo.config import recipe as recipes
    from convzoo.training.stop import StopRequest, ending_in_turn

    loaded = recipes.load(recipe, overrides or [])
    with StopRequest() as stop, ending_in_turn():  # before PyTorch's seconds of importing
        from convzoo import distributed
        from convzoo.environment import command_line
        from convzoo.training.loop import train as run_training
        from convzoo.training.setup import RunOptions

        fetch(download, loaded.data, data, weights)
        paths: Keywords = {"data": data, "val_data": val_data, "out": out, "weights": weights}
        paths["log_to"] = tuple(log_to or ())
        steps: Keywords = {"save_every_steps": save_every_steps, "log_every_steps": log_every_steps}
        steps["accumulate"] = accumulate
        modes = {"compile": compile, "profile": profile, "resume": resume, "fresh": fresh}
        samples: Keywords = {
            "workers": workers,
            "cache": cache and cache.value,
            "on_bad_sample": on_bad_sample.value,
            "download": download,
        }
        options = RunOptions(device=device, command=command_line(context.obj), **paths, **steps, **modes, **samples)
        path = run_training(loaded, options, stop)
    if distributed.rank() == 0:
        print(shown(path))
