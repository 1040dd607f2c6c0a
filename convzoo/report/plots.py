"""Curves and matrices as PNG."""

import itertools
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from convzoo.plain import JsonObject, Keywords

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY, FAINT = "#20639b", "#e4572e", "#6c757d", "#c3c9cf"
STYLE: Keywords = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
}
BESIDE: Keywords = {"loc": "upper left", "bbox_to_anchor": (1, 1)}  # a legend right of the axes
LABELLED_CELLS, LABELLED_SIDES = 20, 100  # a larger confusion matrix has no room for numbers, or not even for names
DRAWN_PARTS = 1000  # more stretches of a curve than a picture has columns for
LABELLED_CURVES = 10  # more precision-recall curves have no room in a legend
RECALLS = np.linspace(0, 1, 101)  # where COCO samples the precision
# Okabe and Ito's colours and two more, apart from each other for colour-blind eyes too.
SERIES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#871e87", "#a5002d", "#7f6f3f", "#4bb487"]


def _pyplot() -> ModuleType:
    """Import Matplotlib when something is drawn: most of a second, which no other command has to wait for."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot_curves(rows: list[JsonObject], folder: Path, title: str) -> None:
    """Write loss.png, accuracy.png (a detector's AP) and learning_rate.png from a run's `step` and `epoch` rows."""
    steps = [row for row in rows if row["kind"] == "step"]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    parts = dict.fromkeys(key for row in epochs for key in row if key.startswith("loss_"))
    losses: list[tuple] = [("per step", steps, "loss", FAINT, 1), ("epoch mean", epochs, "loss", BLUE, 2)]
    for part, colour in zip(parts, SERIES[1:], strict=False):
        losses.append((part.removeprefix("loss_"), epochs, part, colour, 1.5))
    folder.mkdir(exist_ok=True)
    plt = _pyplot()
    with plt.rc_context(STYLE):
        _curve(folder / "loss.png", f"{title}: training loss", "loss", losses, log=bool(parts))
        if any("AP" in row for row in epochs):
            shares = [("AP50", epochs, "AP50", BLUE, 2), ("AP", epochs, "AP", ORANGE, 2)]
            name, label = "average precision on validation images", "AP in %"
        else:
            shares = [
                ("training images, augmented", epochs, "train_top1", GREY, 1),
                ("validation images", epochs, "top1", ORANGE, 2),
            ]
            name, label = "top-1 accuracy", "top-1 in %"
        if any(row.get(key) is not None for _, _, key, *_ in shares for row in epochs):
            _curve(folder / "accuracy.png", f"{title}: {name}", label, shares, scale=100)
        _curve(folder / "learning_rate.png", f"{title}: learning rate", "learning rate", [("", steps, "lr", BLUE, 2)])


def thinned(points: list[tuple[float, float]], parts: int = DRAWN_PARTS) -> list[tuple[float, float]]:
    """Return at most 2 * parts of the points (x, y): of each stretch the lowest and highest, so no spike is lost."""
    if len(points) <= 2 * parts:
        return points
    bounds = [len(points) * i // parts for i in range(parts + 1)]
    extremes = []
    for start, end in itertools.pairwise(bounds):
        y = [point[1] for point in points[start:end]]
        extremes += [points[start + i] for i in sorted({y.index(min(y)), y.index(max(y))})]
    return extremes


def _curve(path: Path, title: str, label: str, lines: list[tuple], scale: float = 1.0, log: bool = False) -> None:
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7, 3.6), dpi=120)
    for name, rows, key, colour, width in lines:
        points = thinned([(row["step"], scale * row[key]) for row in rows if row.get(key) is not None])
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(
                x,
                y,
                color=colour,
                linewidth=width,
                label=name,
                marker="o" if len(points) < 30 and width > 1 else None,
                markersize=3,
            )
    axes.set(title=title, xlabel="step", ylabel=label)
    axes.set_xlim(left=0)
    if log:  # a detector's loss begins hundreds of times higher than it ends
        axes.set_yscale("log")
    if axes.lines and sum(bool(name) for name, *_ in lines) > 1:
        axes.legend(frameon=False, **({} if len(lines) <= 3 else BESIDE))
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary)
    os.replace(temporary, path)  # a run that is killed leaves the picture before, not half of one
    plt.close(figure)


def plot_confusion(
    confusion: np.ndarray,
    class_names: list[str],
    path: Path,
    *,
    row_names: list[str] | None = None,
    column_names: list[str] | None = None,
) -> None:
    """Write a confusion matrix [truth, predicted], each row as shares of its class.

    A detector's [K + 1, K + 1] has one more name: of its last row, the false detections, and last column, the missed.
    """
    rows, columns = row_names or class_names, column_names or class_names
    shares = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    count = max(confusion.shape)
    side = min(11.0, 2.5 + 0.55 * count) if count <= LABELLED_CELLS else 8.0 if count > LABELLED_SIDES else 12.0
    plt = _pyplot()
    with plt.rc_context({**STYLE, "axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure, axes = plt.subplots(figsize=(side + 1, side), dpi=120)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.set(title="Confusion matrix", xlabel="predicted", ylabel="truth")
        if count <= LABELLED_SIDES:
            size = None if count <= LABELLED_CELLS else 6
            axes.set_xticks(
                range(len(columns)),
                columns,
                rotation=45 if size is None else 90,
                ha="right" if size is None else "center",
                fontsize=size,
            )
            axes.set_yticks(range(len(rows)), rows, fontsize=size)
            axes.tick_params(length=0)
        if count <= LABELLED_CELLS:
            _number_cells(axes, confusion, shares)
        figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, label="share of the row")
        figure.savefig(path)
        plt.close(figure)


def _number_cells(axes: "Axes", confusion: np.ndarray, shares: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)


def plot_precision_recall(curves: dict[str, tuple[np.ndarray, np.ndarray]], path: Path, title: str) -> None:
    """Write the precision-recall curves of classes and, in black, their mean.

    Args:
        curves: class -> recall [N] in 0..1, rising, and the precision [N] in 0..1 there. A class's average precision is
            the mean of its precision at COCO's 101 recalls, 0 beyond the last recall reached.
    """
    sampled = {name: np.interp(RECALLS, recall, precision, right=0.0) for name, (recall, precision) in curves.items()}
    ranked = sorted(sampled, key=lambda name: -sampled[name].mean())
    few = len(ranked) <= LABELLED_CURVES
    plt = _pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4.6), dpi=120)
        for i, name in enumerate(ranked):
            style: Keywords = {"color": SERIES[i], "linewidth": 1.5} if few else {"color": FAINT, "linewidth": 0.8}
            label = (
                f"{100 * sampled[name].mean():5.1f}  {name}" if few else None if i else f"each of {len(ranked)} classes"
            )
            axes.plot(100 * RECALLS, 100 * sampled[name], label=label, **style)
        if len(ranked) > 1:
            mean = np.mean(list(sampled.values()), 0)
            axes.plot(100 * RECALLS, 100 * mean, color="black", linewidth=3, label=f"{100 * mean.mean():5.1f}  mean")
        axes.set(title=title, xlabel="recall in %", ylabel="precision in %", xlim=(0, 100), ylim=(0, 102))
        if ranked:
            axes.legend(title="average precision in %", alignment="left", frameon=False, **BESIDE)
        else:
            axes.text(50, 50, "no objects", ha="center", color=GREY)
        figure.savefig(path)
        plt.close(figure)
