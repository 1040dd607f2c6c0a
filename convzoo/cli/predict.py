"""The verb `predict`: what pictures show, as text, JSON lines, pictures, label files or pre-annotations."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convzoo.cli.options import Cfg, Device, Json, OnBad, OnBadSample, Precision, Provider, output
from convzoo.errors import UsageError
from convzoo.plain import Keywords
from convzoo.storage import shown, written

if TYPE_CHECKING:
    from convzoo.inference.answers import Answer
    from convzoo.inference.loaded import LoadedModel

Folder = partial(typer.Option, file_okay=False, show_default=False)
File = partial(typer.Option, dir_okay=False, show_default=False)
YoloTxt = Annotated[
    Path | None, Folder("--yolo-txt", help="Folder for text files of boxes: class cx cy w h score, 0..1.")
]
Coco = Annotated[Path | None, File("--coco", help="COCO JSON to write, each box with its score.")]
LabelStudio = Annotated[Path | None, File("--label-studio", help="Label Studio's tasks and configuration.")]
Crops = Annotated[Path | None, Folder("--crops", help="Folder for what each box holds, by class.")]
Explain = Annotated[
    Path | None, Folder("--explain", help="Folder for pictures that show what speaks for their best class or box.")
]
DumpInputs = Annotated[
    Path | None, Folder("--dump-inputs", help="Only write the network's inputs and index.json, for another machine.")
]


def predict(
    model: Annotated[Path, typer.Argument(help="A model file, an exported file, or another program's weights.")],
    sources: Annotated[list[str] | None, typer.Argument(help="Picture files, folders or globs.")] = None,
    save: Annotated[Path | None, Folder("--save", help="Folder for annotated copies.")] = None,
    min_score: Annotated[
        float | None,
        typer.Option("--min-score", min=0, max=1, help="Leave out boxes with a lower score.", show_default="0.25"),
    ] = None,
    yolo_txt: YoloTxt = None,
    coco: Coco = None,
    label_studio: LabelStudio = None,
    crops: Crops = None,
    explain: Explain = None,
    dump_inputs: DumpInputs = None,
    npy: Annotated[bool, typer.Option("--npy", help="With --dump-inputs: .npy files instead of plain .bin.")] = False,
    data: Annotated[Path | None, Folder("--data", help="With --dump-inputs: the data set's pictures.")] = None,
    cfg: Cfg = None,
    device: Device = "auto",
    provider: Provider = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 16,
    precision: Annotated[Precision, typer.Option("--precision")] = Precision.fp32,
    on_bad_sample: OnBadSample = OnBad.error,
    json_: Json = False,
) -> None:
    """Say what pictures show: a line each or JSON lines, annotated copies, and for detectors label files and crops."""
    from convzoo import distributed
    from convzoo.convert.state_dict import ExpectedWeights
    from convzoo.deploy.exported import open_any
    from convzoo.inference.predict import MIN_SCORE
    from convzoo.inference.predict import predict as answers_to

    opened = open_any(model, distributed.resolve_device(device), provider, expected=ExpectedWeights(cfg=cfg))
    if dump_inputs:
        from convzoo.deploy import raw_outputs

        with written(dump_inputs) as local:
            count = raw_outputs.dump_inputs(opened, local, sources or (), data, "npy" if npy else "bin")
        print(f"{count} inputs in {shown(dump_inputs)}")
        return
    if not sources:
        raise UsageError("predict needs picture files, folders or globs")
    network = opened.runner(precision.value), opened.task(), opened.pipeline(), opened.class_names
    least = MIN_SCORE if min_score is None else min_score
    options: Keywords = {"batch_size": batch_size, "on_bad_sample": on_bad_sample.value, "min_score": least}
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(output(path)) for path in (coco, label_studio)]
        folders = [stack.enter_context(output(path)) for path in (yolo_txt, crops, save, explain)]
        answers = _preannotated(answers_to(*network, sources, **options), opened, *files)
        for answer in _written(answers, opened, min_score is not None, folders):
            print(json.dumps(answer.row(), ensure_ascii=False) if json_ else answer.text(), flush=True)


def _preannotated(
    answers: Iterator["Answer"], opened: "LoadedModel", coco: Path | None, label_studio: Path | None
) -> Iterator["Answer"]:
    """Pass the answers on and write what annotation tools open."""
    from convzoo.inference import preannotations

    if coco:
        answers = preannotations.save_coco(answers, coco, opened.class_names)
    if label_studio:
        version = f"{opened.path.name} {opened.sha256[:12]}"
        answers = preannotations.save_label_studio(answers, label_studio, opened.class_names, version)
    return answers


def _written(
    answers: Iterator["Answer"], opened: "LoadedModel", detections: bool, folders: Sequence[Path | None]
) -> Iterator["Answer"]:
    """Pass the answers on while they are written to what was asked for."""
    from convzoo.inference import answers as predict_files

    yolo_txt, crops, save, explain = folders

    if detections:
        answers = predict_files.detections_only(answers)
    if yolo_txt:
        answers = predict_files.save_yolo_txt(answers, yolo_txt, opened.class_names)
    if crops:
        answers = predict_files.save_crops(answers, crops)
    if save:
        answers = predict_files.save_annotated(answers, save)
    if explain:
        from convzoo.inference.explain import save_explained

        answers = save_explained(answers, explain, opened)
    return answers
