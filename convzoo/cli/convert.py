"""The verb `convert`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from convzoo.cli.download import require_download
from convzoo.cli.files import _each
from convzoo.cli.options import Cfg, Download, Json, Resize, To, Verbose, named
from convzoo.errors import ConvzooError, UsageError
from convzoo.plain import Keywords
from convzoo.storage import local_path, written

if TYPE_CHECKING:
    from convzoo.convert.report import ConversionReport
    from convzoo.convert.state_dict import ExpectedWeights

Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="Weight file, folder of them, LIBRARY:NAME, Darknet .cfg, or MindSpore zoo configuration.",
    ),
]
CheckData = Annotated[
    Path | None,
    typer.Option("--data", help="With --check: pictures to see the batch norms' statistics on.", show_default=False),
]


def convert(
    source: Source,
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
    cfg: Cfg = None,
    resize: Annotated[
        Resize | None,
        typer.Option("--resize", help="How pictures get the size that a .cfg has.", show_default="as the files tell"),
    ] = None,
    to: Annotated[To | None, typer.Option("--to", help="Write a file of that program.", show_default=False)] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare with where the weights come from first.")] = False,
    data: CheckData = None,
    data_name: Annotated[
        str | None,
        typer.Option("--data-name", help="Data set of the recipe in the file.", show_default="cifar10 or image_folder"),
    ] = None,
    verbose: Verbose = False,
    json_: Json = False,
    download: Download = False,
) -> None:
    """Turn weights of Darknet, MindSpore, torchvision or timm into a model file, or a model file into one of theirs.

    SRC is a Darknet .weights, a MindSpore .ckpt, a .pth, .pt or .safetensors, recognised by content; or timm:NAME,
    torchvision:NAME or darknet:FILE (`convzoo list --weights`); or a MindSpore zoo configuration or a Darknet .cfg,
    which becomes a recipe; or, with --to, a model file; or a folder of such weights. Darknet .weights of a network that
    is none of these need their --cfg.
    """
    from convzoo.convert.sources import is_remote
    from convzoo.convert.state_dict import ExpectedWeights

    if data and not check:
        raise UsageError("--data has no meaning without --check")
    if not is_remote(source):
        source = str(local_path(source))
    data = local_path(data) if data else None
    expected = ExpectedWeights(model, num_classes, classes, cfg, resize)
    options: Keywords = {"check": check, "data": data, "data_name": data_name, "download": download}
    with written(out) as local:
        order = _Order(local, to, expected, options, json_, lambda text: print(named(text, out, local)))
        _folder(source, order) if Path(source).is_dir() else _file(source, order, verbose)


class _Order(NamedTuple):
    """What is to come of a source: where it goes, as which program's file, what it must be, and who is told."""

    out: Path
    to: str | None
    expected: "ExpectedWeights"
    options: Keywords
    json: bool
    say: Callable[[str], None]


def _file(source: str, order: _Order, verbose: bool) -> None:
    from convzoo.convert.statistics import StatisticsError

    try:
        report = _converted(source, order)
    except StatisticsError as error:
        order.say(json.dumps({"batch_norms": error.statistics.plain()}) if order.json else error.statistics.text())
        raise
    if order.json:
        order.say(json.dumps(report.plain, ensure_ascii=False))
        return
    order.say(report.text(verbose))
    if not report.has_class_names:
        order.say(f"{'':14} --classes FILE names them, one a line in output order")


def _folder(source: str, order: _Order) -> None:
    from convzoo.convert.convert import targets

    target_of = targets(Path(source), order.out, order.to)

    def row(file: Path) -> None:
        report = _converted(str(file), order._replace(out=target_of[file]))
        plain = json.dumps(report.plain, ensure_ascii=False)
        order.say(plain if order.json else f"{file}  ->  {target_of[file]}")

    _each(list(target_of), row, source)


def _converted(source: str, order: _Order) -> "ConversionReport":
    """Do what this source and these options mean, and refuse the options that do not belong to it."""
    from convzoo.convert.convert import convert as run_conversion
    from convzoo.convert.convert import convert_configuration, convert_to, is_configuration
    from convzoo.convert.state_dict import AmbiguousWeights

    out, to, expected, options = order.out, order.to, order.expected, order.options
    require_download(source, options["download"])
    weights = {"--model": expected.model_name, "--num-classes": expected.num_classes, "--cfg": expected.cfg}
    network = {f"--{name.replace('_', '-')}": options[name] for name in ("check", "data", "data_name")}
    network["--classes"] = expected.classes
    try:
        if is_configuration(Path(source)):
            _refuse("for a configuration", {"--to": to, **weights, **network})
            return convert_configuration(Path(source), out, expected.resize)
        if expected.resize and not expected.cfg:
            raise UsageError("--resize has no meaning without --cfg")
        if to:
            _refuse("with --to", network)
            return convert_to(to, source, out, expected, options["download"])
        return run_conversion(source, out, expected, **options)
    except AmbiguousWeights as error:
        name, number = error.candidate.model_name, error.candidate.num_classes
        raise ConvzooError(f"{error} ({f'--model {name}' if name else f'--num-classes {number}'})") from None


def _refuse(when: str, options: Keywords) -> None:
    for flag, value in options.items():
        if value:
            raise UsageError(f"{flag} has no meaning {when}")
