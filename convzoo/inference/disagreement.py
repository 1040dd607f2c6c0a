"""Where a model and the labels disagree most: wrong labels, most often, once the model is right about the others."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from convzoo.boxes import pairwise_iou
from convzoo.data.loader import Transformed, build_loader, checked, default_workers, label_map
from convzoo.data.sampler import EvalBatches
from convzoo.files import written_whole
from convzoo.inference.loaded import LoadedModel
from convzoo.logs import progress
from convzoo.plain import JsonObject
from convzoo.report.draw import WRONG, contact_sheet, save_png
from convzoo.report.draw_boxes import compared, detection_sheet
from convzoo.report.tables import write_csv
from convzoo.tasks.detect_metric import SHOWN_IOU, match, outcome, shown_part
from convzoo.types import Boxes, Dataset, Prediction, Sample, Target

SHOWN, CELL_PX = 24, 360
COLUMNS = ("disagreement", "split", "path", "label", "why")


def disagreements(opened: LoadedModel, splits: dict[str, Dataset], out: Path) -> list[JsonObject]:
    """Write disagreements.csv of all pictures of all splits, and a sheet of the first; return the rows, worst first.

    Of a picture with one class it is 1 minus the probability that the model gives the label; of one with boxes the
    sum of the scores of detections that no label is for and, for each label that was not detected, of 1 minus the
    best score there.

    Raises:
        DataError: a picture that cannot be read, or classes that the model does not know.
    """
    rows = []
    for name, dataset in splits.items():
        for index, prediction, truth in _predictions(opened, dataset):
            row = _boxed_row if prediction.boxes_xyxy is not None else _class_row
            value, label, why = row(prediction, truth, opened.class_names)
            rows.append(
                {"disagreement": value, "split": name, "path": dataset.path(index), "label": label, "why": why}
                | {"index": index, "prediction": prediction, "truth": truth}
            )
    rows.sort(key=lambda row: (-row["disagreement"], row["path"]))
    plain: list[JsonObject] = [{column: row[column] for column in COLUMNS} for row in rows]
    out.mkdir(parents=True, exist_ok=True)
    with written_whole(out / "disagreements.csv") as temporary:
        write_csv(temporary, plain)
    worst = [row for row in rows[:SHOWN] if row["disagreement"] > 0]
    if worst:
        save_png(_sheet(worst, splits, opened.class_names), out / "disagreements.png")
    return plain


def _predictions(opened: LoadedModel, dataset: Dataset) -> Iterator[tuple[int, Prediction, Target]]:
    """Yield position, prediction and truth, in the model's classes, of every picture."""
    mapping = label_map(dataset.class_names, opened.class_names, "the data")
    seen = Transformed(dataset, opened.pipeline(), mapping)
    runner, task = opened.runner(), opened.task()
    batches = EvalBatches(len(dataset), min(64, opened.recipe.train.batch_size))
    workers = default_workers(torch.device(runner.device).type)
    for loaded in progress(build_loader(seen, task, batches, workers), len(batches), "compare"):
        batch = checked(loaded, "error")
        for prediction, truth in zip(task.postprocess(runner(batch.images), batch), batch.truths, strict=True):
            yield prediction.id, prediction, truth


def _class_row(prediction: Prediction, truth: int, names: list[str]) -> tuple[float, str, str]:
    place = np.flatnonzero(prediction.labels == truth)
    given = float(prediction.scores[place[0]]) if len(place) else 0.0
    best, score = names[prediction.labels[0]], float(prediction.scores[0])
    why = f"labelled {names[truth]} ({100 * given:.0f} %), the model says {best} ({100 * score:.0f} %)"
    return round(1 - given, 6), names[truth], why


def _boxed_row(prediction: Prediction, truth: Boxes, names: list[str]) -> tuple[float, str, str]:
    shown = shown_part(prediction)
    is_found, is_right = outcome(shown, truth)
    false = ~is_right & ~match(shown, truth).in_crowd
    missed = np.flatnonzero(~is_found & ~truth.crowd)
    ious = pairwise_iou(torch.from_numpy(truth.xyxy), torch.from_numpy(np.asarray(prediction.boxes_xyxy)).double())
    there = (ious.numpy() >= SHOWN_IOU) & (truth.labels[:, None] == prediction.labels[None])
    best = np.where(there, prediction.scores[None], 0.0).max(1, initial=0.0)
    parts = [
        f"{names[shown.labels[i]]} {100 * shown.scores[i]:.0f} % without a label" for i in np.flatnonzero(false)[:2]
    ]
    parts += [
        f"label {names[truth.labels[i]]} not detected" for i in missed[np.argsort(best[missed], kind="stable")][:2]
    ]
    count = int(false.sum()) + len(missed)
    value = float(shown.scores[false].sum() + (1 - best[missed]).sum())
    more = f" and {count - len(parts)} more" if count > len(parts) else ""
    return round(value, 6), f"{int((~truth.crowd).sum())} objects", ", ".join(parts) + more or "nothing"


def _sheet(rows: list[JsonObject], splits: dict[str, Dataset], names: list[str]) -> Image.Image:
    samples: list[Sample] = [splits[row["split"]].load(row["index"]) for row in rows]
    pixels = [sample.image.permute(1, 2, 0).numpy() for sample in samples]
    files = [f"{row['split']}: {row['path'].rpartition('/')[2]}" for row in rows]
    if rows[0]["prediction"].boxes_xyxy is None:
        captions = [
            (f"{row['label']}? {names[row['prediction'].labels[0]]}", file)
            for row, file in zip(rows, files, strict=True)
        ]
        return contact_sheet(pixels, captions, [WRONG] * len(rows))
    drawn = []
    for image, row in zip(pixels, rows, strict=True):
        shown = shown_part(row["prediction"])
        is_found, is_right = outcome(shown, row["truth"])
        truth, learned = row["truth"], ~row["truth"].crowd
        drawn.append(
            compared(
                image,
                truth.xyxy[learned],
                [names[label] for label in truth.labels[learned]],
                is_found[learned].tolist(),
                np.asarray(shown.boxes_xyxy),
                [names[label] for label in shown.labels],
                shown.scores.tolist(),
                is_right.tolist(),
                fit_px=CELL_PX,
                legend=False,
            )
        )
    captions = [(f"{row['disagreement']:.1f}", file) for row, file in zip(rows, files, strict=True)]
    return detection_sheet(drawn, captions, columns=4, cell_px=CELL_PX, legend=True)
