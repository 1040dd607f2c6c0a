"""The command line: parse, import what is needed, call one function. stdout is the result, stderr the log."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import convzoo
from convzoo import errors, logs
from convzoo.errors import ConvzooError, UsageError

app = typer.Typer(
    help="Train, check and ship the classic convolutional networks. Every number and every file verified.",
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
)  # fmt: skip
data_app = typer.Typer(help="Look at a data set before training on it.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")


class OnBad(StrEnum):
    error = "error"
    skip = "skip"


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Split(StrEnum):
    train = "train"
    val = "val"


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="SECTION.KEY=VALUE", help="Recipe keys to replace, such as optim.lr=0.05.")
]
Data = Annotated[Path | None, typer.Option("--data", help="Folder or zip with the pictures.", show_default=False)]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, xpu or npu.")]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Loader processes.", show_default="what suits the machine")
]
OnBadSample = Annotated[
    OnBad, typer.Option("--on-bad-sample", help="What an unreadable picture means: stop, or leave it out and count it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10 into the --data folder if it is not there.")]


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
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder; a new one.", show_default="runs/RECIPE")
    ] = None,
    device: Device = "auto",
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Model file to start from.", show_default=False)
    ] = None,
    workers: Workers = None,
    accumulate: Annotated[
        int, typer.Option("--accumulate", min=1, help="Micro-batches per batch: less memory, same batch.")
    ] = 1,
    save_every_steps: Annotated[
        int | None, typer.Option("--save-every-steps", min=1, help="Save within epochs too.", show_default=False)
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
    from convzoo.train import train as run_training
    from convzoo.train_setup import Machine

    _download(download, loaded.data, data)
    path = run_training(
        loaded,
        Machine(
            data=data, out=out, device=device, weights=weights, workers=workers, accumulate=accumulate, save_every_steps=save_every_steps,
            compile=compile, profile=profile, resume=resume, on_bad_sample=on_bad_sample.value, command=command_line(_argv),
        ),
    )  # fmt: skip
    from convzoo import dist

    if dist.rank() == 0:
        print(path)


@app.command(name="eval")
def eval_(
    model: Annotated[Path, typer.Argument(help="A model file, or a folder of them: one row each.")],
    overrides: Overrides = None,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for tables, plots and the worst images.", show_default=False)
    ] = None,
    device: Device = "auto",
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

    files = evaluate.model_files(model)
    joined = dist.start(dist.resolve_device(device))
    logs.setup(dist.rank())
    if download:
        from convzoo.checkpoint import load_model

        _download(download, load_model(files[0])[1].recipe["data"], data)
    try:
        for file in files:
            opened, evaluation = evaluate.evaluate_file(
                file, data, device=device, batch_size=batch_size, workers=workers, precision=precision.value,
                on_bad_sample=on_bad_sample.value, overrides=tuple(overrides or ()),
            )  # fmt: skip
            if dist.rank() == 0:
                print(
                    json.dumps({"model": str(file), **evaluation.result})
                    if json_
                    else f"{file}  {evaluate.summary(evaluation.result)}"
                )
                if out:
                    evaluation.write(
                        out / file.stem if len(files) > 1 else out, evaluate.build_dataset(opened.recipe, data, "val")
                    )
    finally:
        if joined:
            dist.stop()


app.command(name="val", hidden=True)(eval_)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A model file.")],
    sources: Annotated[list[str], typer.Argument(help="Picture files, folders or globs.")],
    save: Annotated[
        Path | None, typer.Option("--save", help="Folder for annotated copies.", show_default=False)
    ] = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 16,
    precision: Annotated[Precision, typer.Option("--precision")] = Precision.fp32,
    on_bad_sample: OnBadSample = OnBad.error,
    json_: Json = False,
) -> None:
    """Say what pictures show: a table, JSON lines, or annotated copies."""
    from convzoo import dist, evaluate
    from convzoo.predict import predict as answers_to
    from convzoo.predict import save_annotated

    target = dist.resolve_device(device)
    opened = evaluate.open_model(model, target)
    runner = evaluate.TorchRunner(opened.model, opened.recipe, target, precision.value)
    answers = answers_to(
        runner,
        opened.task(),
        opened.pipeline(),
        opened.class_names,
        sources,
        batch_size=batch_size,
        on_bad_sample=on_bad_sample.value,
    )
    for answer in save_annotated(answers, save) if save else answers:
        if json_:
            print(json.dumps(answer.row(), ensure_ascii=False), flush=True)
        else:
            ranked = "  ".join(
                f"{name} {100 * score:5.1f} %" for name, score in zip(answer.names[:3], answer.scores[:3], strict=True)
            )
            print(f"{answer.path}  {ranked}", flush=True)


@app.command(name="list")
def list_(json_: Json = False) -> None:
    """List the recipes, models and data sets."""
    from convzoo import recipe as recipes
    from convzoo import registry

    headers = {
        name: (recipes.SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for name in recipes.shipped()
    }
    found = {
        "recipes": headers,
        "models": registry.names("model"),
        "datasets": registry.names("dataset"),
        "transforms": registry.names("transform"),
    }
    if json_:
        print(json.dumps(found, ensure_ascii=False))
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
    }
    print(
        json.dumps(found)
        if json_
        else "\n".join(f"{key:20} {'no' if value is None else value}" for key, value in found.items())
    )


DataName = Annotated[str, typer.Argument(metavar="DATASET", help="A data set's name (`convzoo list`).")]


def _datasets(name: str, data: Path | None, splits: tuple[str, ...]) -> dict[str, Any]:
    from convzoo import registry

    build = registry.bind("dataset", {"name": name}, lambda key: "data:")
    return {split: build(data, split) for split in splits}


@data_app.command()
def check(dataset: DataName, data: Data = None, json_: Json = False) -> None:
    """Read every picture: unreadable ones, duplicates within and across the splits, different classes. Exit 3 if any is wrong."""
    from convzoo.data import check as checks
    from convzoo.data.loader import check_same_classes

    splits = _datasets(dataset, data, ("train", "val"))
    check_same_classes(splits["train"].class_names, splits["val"].class_names)
    (train_account, train_digests), (val_account, val_digests) = (
        checks.check_split(split) for split in splits.values()
    )
    across = [[train_digests[digest], val_digests[digest]] for digest in train_digests.keys() & val_digests.keys()]
    found = {"train": train_account.plain(), "val": val_account.plain(), "in_both": sorted(across)}
    if json_:
        print(json.dumps(found, ensure_ascii=False))
    else:
        for name, account in (("train", train_account), ("val", val_account)):
            print(
                f"{name}: {account.images} images, {len(account.unreadable)} unreadable, {len(account.duplicates)} groups of duplicates"
            )
            for line in [*account.unreadable, *("same pixels: " + ", ".join(group) for group in account.duplicates)][
                :20
            ]:
                print(f"  {line}")
        print(f"in both splits: {len(across)}")
        for pair in sorted(across)[:20]:
            print(f"  {' = '.join(pair)}")
    unreadable = len(train_account.unreadable) + len(val_account.unreadable)
    if unreadable:
        raise errors.DataError(f"{unreadable} pictures cannot be read")


@data_app.command()
def stats(
    dataset: DataName,
    data: Data = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="PNG of labelled samples to write.", show_default=False)
    ] = None,
    json_: Json = False,
) -> None:
    """Count the images of each class, and write a picture of labelled samples."""
    from convzoo.data import check as checks

    splits = _datasets(dataset, data, ("train", "val"))
    counts = {name: checks.count_classes(split) for name, split in splits.items()}
    if sheet:
        checks.save_sheet(splits["train"], sheet)
    if json_:
        print(json.dumps(counts, ensure_ascii=False))
        return
    names = splits["train"].class_names
    width = max(map(len, names))
    print(f"{'class':{width}}  {'train':>8}  {'val':>8}")
    for name in names:
        print(f"{name:{width}}  {counts['train'][name]:8,}  {counts['val'].get(name, 0):8,}")
    print(f"{'all':{width}}  {len(splits['train']):8,}  {len(splits['val']):8,}")


@data_app.command(name="save")
def save_(
    dataset: DataName,
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")],
    data: Data = None,
    split: Annotated[Split, typer.Option("--split")] = Split.val,
    count: Annotated[int, typer.Option("--count", min=1)] = 24,
) -> None:
    """Write some pictures of a data set as PNG files."""
    from convzoo.data import check as checks

    for path in checks.save_pictures(_datasets(dataset, data, (split.value,))[split.value], out, count):
        print(path)


def _download(wanted: bool, spec: dict[str, Any], data: Path | None) -> None:
    if not wanted:
        return
    if spec["name"] != "cifar10" or data is None:
        raise UsageError(
            "--download fetches CIFAR-10 into the folder that --data names; other data sets are not fetched"
        )
    from convzoo import dist
    from convzoo.data.download import download_cifar10

    if dist.rank() == 0:
        logs.setup()
        download_cifar10(data)


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
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())  # type: ignore[attr-defined]
            return 0
        if hasattr(error, "format_message"):  # typer's own errors: wrong options and arguments
            error = UsageError(error.format_message())
        return errors.report(error)


def run() -> None:
    """Run the process's command line; the console script."""
    sys.exit(main())
