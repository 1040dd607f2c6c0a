"""The command line: parse, import what is needed, call one function. stdout is the result, stderr the log."""

import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import convzoo
from convzoo import errors, logs
from convzoo.cli_bench import bench, quantize
from convzoo.cli_data import (
    Data,
    Device,
    Download,
    Json,
    OnBad,
    OnBadSample,
    Overrides,
    Precision,
    To,
    Workers,
    data_app,
    fetch,
)
from convzoo.cli_deploy import Provider, export
from convzoo.cli_predict import predict
from convzoo.errors import ConvzooError, UsageError

app = typer.Typer(
    help="Train, check and ship the classic convolutional networks. Every number and every file verified.",
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
)  # fmt: skip
app.add_typer(data_app, name="data")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"convzoo {convzoo.__version__}")
        raise typer.Exit


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name (`convzoo list`) or a YAML file.")],
    overrides: Overrides = None,
    data: Data = None,
    val_data: Annotated[
        Path | None,
        typer.Option("--val-data", help="Folder or zip with the validation pictures.", show_default="--data's"),
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
        bool, typer.Option("--resume", help="Continue a run that was killed. An interrupted one continues by itself.")
    ] = False,
    on_bad_sample: OnBadSample = OnBad.error,
    download: Download = False,
) -> None:
    """Train a network as a recipe says. Several devices: torchrun --nproc-per-node N -m convzoo train ..."""
    from convzoo import recipe as recipes

    loaded = recipes.load(recipe, overrides or [])
    from convzoo.run_folder import command_line
    from convzoo.train_setup import Machine
    from convzoo.training import train as run_training

    fetch(download, loaded.data, data, weights)
    path = run_training(
        loaded,
        Machine(
            data=data, val_data=val_data, out=out, device=device, weights=weights, workers=workers, accumulate=accumulate, save_every_steps=save_every_steps,
            log_every_steps=log_every_steps, compile=compile, profile=profile, resume=resume, download=download, on_bad_sample=on_bad_sample.value, command=command_line(_argv),
        ),
    )  # fmt: skip
    from convzoo import dist

    if dist.rank() == 0:
        print(path)


@app.command(name="eval")
def eval_(
    model: Annotated[
        Path, typer.Argument(help="A model file, an exported file, another program's weights, or a folder: a row each.")
    ],
    overrides: Overrides = None,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for tables, plots and the worst images.", show_default=False)
    ] = None,
    device: Device = "auto",
    provider: Provider = None,
    raw_outputs: Annotated[
        Path | None,
        typer.Option("--raw-outputs", help="Score outputs computed elsewhere: PICTURE_0.bin ...", show_default=False),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, show_default="the recipe's, at most 256")
    ] = None,
    workers: Workers = None,
    precision: Annotated[Precision, typer.Option("--precision")] = Precision.fp32,
    on_bad_sample: OnBadSample = OnBad.error,
    json_: Json = False,
    download: Download = False,
) -> None:
    """Measure a model on the validation images: every image once, n of N stated. `val` is the same."""
    from convzoo import dist, evaluate
    from convzoo.deploy.device_flow import score_raw_outputs
    from convzoo.deploy.exported import model_files, open_any

    measure = functools.partial(score_raw_outputs, folder=raw_outputs) if raw_outputs else evaluate.evaluate_open
    files = model_files(model)
    joined = dist.start(dist.resolve_device(device))
    logs.setup(dist.rank())

    def row(file: Path) -> None:
        opened = open_any(file, dist.resolve_device(device), provider, tuple(overrides or ()))
        fetch(download, opened.recipe.data, data)
        evaluation = measure(
            opened, data=data, batch_size=batch_size, workers=workers, precision=precision.value, on_bad_sample=on_bad_sample.value
        )  # fmt: skip
        if dist.rank() == 0:
            _show(file, evaluation, json_)
            if out:
                evaluation.write(_folder_of(file, files, out), evaluate.build_dataset(opened.recipe, data, "val"))

    try:
        _each(files, row, model, stop=dist.world_size() > 1)
    finally:
        if joined:
            dist.stop()


def _each(files: list[Path], work: Callable[[Path], None], where: Path | str, stop: bool = False) -> None:
    """Do the work for every file; one that fails is named, and the others go on.

    Args:
        stop: at the first failure, because other ranks wait.
    Raises:
        ConvzooError: the failure itself where it is the only file or all failed, else how many failed.
    """
    failures = []
    for file in files:
        try:
            work(file)
        except errors.InterruptedRun:
            raise
        except ConvzooError as error:
            if stop or len(files) == 1:
                raise
            failures.append((file, error))
            if len(failures) < len(files):
                logs.log.warning(f"failed: {error}")
    if len(failures) == len(files):
        raise failures[-1][1]
    if failures:
        names = ", ".join(file.name for file, _ in failures)
        raise ConvzooError(f"{where}: {len(failures)} of {len(files)} files failed: {names}")


def _folder_of(file: Path, files: list[Path], out: Path) -> Path:
    if len(files) == 1:
        return out
    return out / (file.stem if len({other.stem for other in files}) == len(files) else file.name)


def _show(file: Path, evaluation: Any, json_: bool) -> None:
    from convzoo.evaluate import summary

    if json_:
        speed = {"seconds": round(evaluation.seconds, 3), "images_per_s": round(evaluation.images_per_s, 1)}
        print(json.dumps({"model": str(file), **evaluation.result, **speed}))
        return
    speed = f"{evaluation.seconds:.1f} s, {evaluation.images_per_s:.0f} img/s"
    print(f"{file}  {summary(evaluation.result)}  {speed}")
    if evaluation.metric.text():
        print(evaluation.metric.text())


app.command(name="val", hidden=True)(eval_)


app.command()(predict)
app.command()(export)
app.command()(quantize)
app.command()(bench)


@app.command()
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
    from convzoo.convert import convert as run_conversion
    from convzoo.convert import targets
    from convzoo.weights.sources import Wanted

    wanted = Wanted(model, num_classes, classes)
    options: dict[str, Any] = {"to": to, "check": check, "data_name": data_name}
    if not Path(source).is_dir():
        report = run_conversion(source, out, wanted, download=download, **options)
        print(json.dumps(report.plain, ensure_ascii=False) if json_ else report.text())
        return
    target_of = targets(Path(source), out, to)

    def row(file: Path) -> None:
        report = run_conversion(str(file), target_of[file], wanted, **options)
        print(json.dumps(report.plain, ensure_ascii=False) if json_ else f"{file}  ->  {target_of[file]}")

    _each(list(target_of), row, source)


@app.command(name="list")
def list_(
    weights: Annotated[bool, typer.Option("--weights", help="List the published weights instead.")] = False,
    json_: Json = False,
) -> None:
    """List the recipes, models and data sets, or the published weights."""
    from convzoo import recipe as recipes
    from convzoo import registry

    if weights:
        from convzoo.weights import published

        print(json.dumps([entry.plain() for entry in published.TABLE]) if json_ else published.text())
        return
    headers = {
        name: (recipes.SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for name in recipes.shipped()
    }
    found = {"recipes": headers, **{f"{kind}s": registry.names(kind) for kind in ("model", "dataset", "transform")}}
    if json_:
        print(json.dumps({**found, "recipe_schema": recipes.Recipe.model_json_schema()}, ensure_ascii=False))
        return
    print("recipes")
    for name, header in headers.items():
        print(f"  {name:26} {header}")
    for kind in ("models", "datasets", "transforms"):
        print(f"{kind}\n  {', '.join(found[kind])}")


@app.command()
def doctor(json_: Json = False) -> None:
    """Say what this machine has: versions, devices, precision, threads, optional packages."""
    import torch

    from convzoo import dist
    from convzoo.run_folder import environment, optional_packages

    device = dist.resolve_device("auto")
    found = {
        **environment(device),
        "computes_bfloat16": dist.computes_bfloat16(device),
        "devices": torch.accelerator.device_count(),
        **optional_packages(),
        **{tool: shutil.which(tool) for tool in ("atc", "amct_onnx")},  # Ascend's, of CANN
    }
    print(
        json.dumps(found)
        if json_
        else "\n".join(f"{key:20} {'no' if value is None else value}" for key, value in found.items())
    )


_argv: list[str] = []


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    global _argv
    _argv = sys.argv[1:] if argv is None else list(argv)
    logs.setup()
    try:
        code = typer.main.get_command(app).main(args=_argv, prog_name="convzoo", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        return 0  # the reader, such as head, has seen enough
    except (ConvzooError, KeyboardInterrupt, Exception) as error:
        message = getattr(error, "format_message", None)  # typer's own errors: wrong options and arguments
        if type(error).__name__ == "NoArgsIsHelpError":
            print(message and message())
            return 0
        return errors.report(UsageError(message()) if message else error)


def run() -> None:
    """Run the process's command line; the console script."""
    sys.exit(main())
