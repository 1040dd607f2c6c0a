"""The files of an evaluation: tables, curves, confusions and the worst pictures, from what its metric reports."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convzoo.report.draw import RIGHT, WRONG, contact_sheet, save_png
from convzoo.report.draw_boxes import compared, detection_sheet
from convzoo.report.plots import RECALLS, plot_confusion, plot_precision_recall
from convzoo.report.tables import write_csv
from convzoo.types import Confusion, ExplainedPicture, MetricReport, Pictures, Sample, WorstPicture

COLUMNS, EXPLAINED_COLUMNS, DETECTION_COLUMNS, DETECTION_PX = 5, 6, 4, 360


def write_report(folder: Path, report: MetricReport, dataset: Pictures) -> None:
    """Write what has a name as NAME.csv, .json, .jsonl and .txt; confusion, precision_recall and worst as pictures too.

    Args:
        dataset: what was evaluated; its pictures are loaded by their ids.
    """
    for name, value in report.documents.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    for name, text in report.texts.items():
        (folder / f"{name}.txt").write_text(f"{text}\n", encoding="utf-8")
    for name, records in report.records.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    for name, rows in report.tables.items():
        write_csv(folder / f"{name}.csv", rows)
    _write_confusion(folder, report.confusion)
    if report.curves is not None:
        _write_curves(folder, report.curves)
    if report.worst:
        _write_worst(folder / "worst.png", report.worst, dataset)


def _write_confusion(folder: Path, confusion: Confusion) -> None:
    rows = [
        {"truth": name, **dict(zip(confusion.names, row, strict=True))}
        for name, row in zip(confusion.names, confusion.counts.tolist(), strict=True)
    ]
    write_csv(folder / "confusion.csv", rows)
    sides = {"row_names": confusion.row_names, "column_names": confusion.column_names}
    plot_confusion(confusion.counts, confusion.names, folder / "confusion.png", **sides)


def _write_curves(folder: Path, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Write precision_recall.png, and as precision_recall.csv each class's precision at COCO's 101 recalls."""
    plot_precision_recall(curves, folder / "precision_recall.png", "Precision and recall at IoU 0.5")
    columns = {name: np.interp(RECALLS, *curve, right=0.0).round(6).tolist() for name, curve in curves.items()}
    rows = [
        {"class": name, **dict(zip(RECALLS.round(2).tolist(), values, strict=True))} for name, values in columns.items()
    ]
    write_csv(folder / "precision_recall.csv", rows)


def _as_large_as_original(sample: Sample) -> np.ndarray:
    """Return a picture [H, W, 3] at the size that its boxes are for: a packed one is smaller."""
    rows, columns = (
        np.arange(side) * stored // side
        for side, stored in zip(sample.original_hw, sample.image.shape[1:], strict=True)
    )
    return sample.image.permute(1, 2, 0).numpy()[rows][:, columns]


def _write_worst(path: Path, worst: list[WorstPicture], dataset: Pictures) -> None:
    images = [_as_large_as_original(dataset.load(picture.id)) for picture in worst]
    captions = [picture.caption for picture in worst]
    drawn = [
        compared(image, **vars(picture.boxes), fit_px=DETECTION_PX, legend=False)
        for image, picture in zip(images, worst, strict=True)
        if picture.boxes is not None
    ]
    if drawn:
        sheet = detection_sheet(drawn, captions, columns=DETECTION_COLUMNS, cell_px=DETECTION_PX, legend=True)
    else:
        sheet = contact_sheet(images, captions, [WRONG] * len(images), columns=COLUMNS)
    save_png(sheet, path)


def save_explained_worst(path: Path, explained: Sequence[ExplainedPicture]) -> None:
    """Write the worst pictures under what speaks for their mistakes: of a classifier the answer beside the truth."""
    detections = [one for one in explained if one.picture.boxes is not None]
    if not detections:
        captions = [_explained_caption(one) for one in explained]
        colours = [RIGHT if one.is_true else WRONG for one in explained]
        save_png(contact_sheet([one.pixels for one in explained], captions, colours, EXPLAINED_COLUMNS), path)
        return
    drawn = [compared(one.pixels, **vars(one.picture.boxes), fit_px=DETECTION_PX, legend=False) for one in detections]
    captions = [_explained_caption(one) for one in detections]
    save_png(detection_sheet(drawn, captions, DETECTION_COLUMNS, DETECTION_PX, legend=True), path)


def _explained_caption(one: ExplainedPicture) -> tuple[str, str]:
    """Return what the heat speaks for, and what the picture is called elsewhere."""
    if one.picture.boxes is None:
        return f"{'is' if one.is_true else 'says'} {one.class_name}", one.picture.caption[1]
    return f"{'missed' if one.is_true else 'false'}: {one.class_name}", one.picture.caption[1]
