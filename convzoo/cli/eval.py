"""The verb `eval`: a model's numbers on the validation images."""

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convzoo import logs
from convzoo.cli.download import fetch
from convzoo.cli.files import _each
from convzoo.cli.options import (
    Cfg,
    CocoEval,
    Data,
    Device,
    Download,
    Json,
    OnBad,
    OnBadSample,
    Overrides,
    Precision,
    Provider,
    Workers,
)
from convzoo.errors import UsageError
from convzoo.plain import Keywords
from convzoo.storage import shown, written

if TYPE_CHECKING:
    from convzoo.inference.evaluate import Evaluation
    from convzoo.inference.loaded import LoadedModel

Measured = Annotated[
    Path, typer.Argument(help="A model file, an exported file, another program's weights, or a folder: a row each.")
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, show_default="the recipe's, at most 256, on a CPU 32")
]
Report = Annotated[
    Path | None, typer.Option("--out", help="Folder for tables, plots and the worst images.", show_default=False)
]
CocoEvaluator = Annotated[
    CocoEval | None, typer.Option("--coco-eval", help="Who computes COCO's numbers.", show_default="hotcoco")
]
Explain = Annotated[
    bool, typer.Option("--explain", help="With --out: explained.png, what speaks for the worst mistakes.")
]
RawOutputs = Annotated[
    Path | None,
    typer.Option("--raw-outputs", help="Score outputs computed elsewhere: PICTURE_0.bin ...", show_default=False),
]


def eval_(
    model: Measured,
    overrides: Overrides = None,
    data: Data = None,
    cfg: Cfg = None,
    out: Report = None,
    explain: Explain = False,
    device: Device = "auto",
    provider: Provider = None,
    raw_outputs: RawOutputs = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    precision: Annotated[Precision, typer.Option("--precision")] = Precision.fp32,
    on_bad_sample: OnBadSample = OnBad.error,
    coco_eval: CocoEvaluator = None,
    json_: Json = False,
    download: Download = False,
) -> None:
    """Measure a model on the validation images: every image once, n of N stated. `val` is the same."""
    from convzoo import build, distributed
    from convzoo.convert.state_dict import ExpectedWeights
    from convzoo.deploy.exported import model_files, open_any
    from convzoo.deploy.raw_outputs import score_raw_outputs
    from convzoo.inference import evaluate

    how = {"batch_size": batch_size, "precision": precision.value, "coco_evaluator": coco_eval and coco_eval.value}
    measure = functools.partial(score_raw_outputs, folder=raw_outputs) if raw_outputs else evaluate.evaluate_open
    files, expected = model_files(model), ExpectedWeights(cfg=cfg)
    joined = distributed.start(distributed.resolve_device(device))
    logs.setup(distributed.rank())

    def row(file: Path) -> None:
        opened = open_any(file, distributed.resolve_device(device), provider, tuple(overrides or ()), expected)
        explained = _explainable(opened, out) if explain else None
        fetch(download, opened.recipe.data, data)
        read: Keywords = {"data": data, "workers": workers, "on_bad_sample": on_bad_sample.value}
        evaluation = measure(opened, **read, **how)
        if distributed.rank() == 0:
            _show(file, evaluation, json_)
            if out:
                with written(_folder_of(file, files, out)) as folder:
                    evaluation.write(folder, build.build_dataset(opened.recipe, data, "val"), explained)

    try:
        _each(files, row, model, stop=distributed.world_size() > 1)
    finally:
        if joined:
            distributed.stop()


def _explainable(opened: "LoadedModel", out: Path | None) -> "LoadedModel":
    """Return the model, whose mistakes can be explained in a folder. Raises UsageError where they cannot."""
    from convzoo.inference.explain import explainable

    if out is None:
        raise UsageError("an explanation is a picture: it needs a folder", ("out",))
    return explainable(opened)


def _folder_of(file: Path, files: list[Path], out: Path) -> Path:
    if len(files) == 1:
        return out
    return out / (file.stem if len({other.stem for other in files}) == len(files) else file.name)


def _show(file: Path, evaluation: "Evaluation", json_: bool) -> None:
    from convzoo.report.tables import summary

    if json_:
        speed = {"seconds": round(evaluation.seconds, 3), "images_per_s": round(evaluation.images_per_s, 1)}
        print(json.dumps({"model": shown(file), **evaluation.result, **speed}))
        return
    speed = f"{evaluation.seconds:.1f} s, {evaluation.images_per_s:.0f} img/s"
    print(f"{shown(file)}  {summary(evaluation.result)}  {speed}")
    if evaluation.metric.text():
        print(evaluation.metric.text())
