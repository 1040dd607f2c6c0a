"""Curves and matrices as PNG."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#20639b", "#e4572e", "#6c757d"
STYLE: Any = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "figure.constrained_layout.use": True,
}  # fmt: skip
LABELLED_CELLS = 20  # a larger confusion matrix has no room for numbers and names


def plot_curves(rows: list[dict[str, Any]], folder: Path, title: str) -> None:
    """Write loss.png, accuracy.png and learning_rate.png from a run's metrics rows (`step` and `epoch` kinds)."""
    steps = [row for row in rows if row["kind"] == "step"]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    folder.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        _curve(
            folder / "loss.png",
            f"{title}: training loss",
            "loss",
            [("per step", steps, "loss", GREY, 1), ("epoch mean", epochs, "loss", BLUE, 2)],
        )
        shares = [
            ("training images, augmented", epochs, "train_top1", GREY, 1),
            ("validation images", epochs, "top1", ORANGE, 2),
        ]
        _curve(folder / "accuracy.png", f"{title}: top-1 accuracy", "top-1 in %", shares, scale=100)
        _curve(folder / "learning_rate.png", f"{title}: learning rate", "learning rate", [("", steps, "lr", BLUE, 2)])


def _curve(path: Path, title: str, label: str, lines: list[tuple], scale: float = 1.0) -> None:
    figure, axes = plt.subplots(figsize=(7, 3.6), dpi=120)
    for name, rows, key, colour, width in lines:
        points = [(row["step"], scale * row[key]) for row in rows if row.get(key) is not None]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(
                x,
                y,
                color=colour,
                linewidth=width,
                label=name,
                marker="o" if len(points) < 30 and width == 2 else None,
                markersize=3,
            )
    axes.set(title=title, xlabel="step", ylabel=label)
    axes.set_xlim(left=0)
    if sum(bool(name) for name, *_ in lines) > 1:
        axes.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)


def plot_confusion(confusion: np.ndarray, class_names: list[str], path: Path) -> None:
    """Write a confusion matrix [truth, predicted], each row as shares of its class."""
    shares = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    count = len(class_names)
    side = min(10.0, 2.5 + 0.55 * count) if count <= LABELLED_CELLS else 8.0
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(figsize=(side + 1, side), dpi=120)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.set(title="Confusion matrix", xlabel="predicted", ylabel="truth")
        if count <= LABELLED_CELLS:
            _label_cells(axes, confusion, shares, class_names)
        figure.colorbar(image, ax=axes, shrink=0.8, label="share of the class")
        figure.savefig(path)
        plt.close(figure)


def _label_cells(axes: Axes, confusion: np.ndarray, shares: np.ndarray, class_names: list[str]) -> None:
    axes.set_xticks(range(len(class_names)), class_names, rotation=45, ha="right")
    axes.set_yticks(range(len(class_names)), class_names)
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
