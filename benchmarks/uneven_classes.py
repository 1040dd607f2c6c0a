"""Balanced class weights on uneven classes: macro recall with and without, over seeds, on CIFAR-10's pictures.

600 airplanes, 60 automobiles and 40 ships to train on, 300 of each to measure; Tiny-DarkNet at 32 pixels.
Run: python benchmarks/uneven_classes.py ../shared/data/cifar10-jpeg.zip OUT (a few minutes on a CPU core)
"""

import csv
import json
import statistics
import sys
import zipfile
from pathlib import Path

from convzoo import cli

TRAIN = {"airplane": 600, "automobile": 60, "ship": 40}
VAL = 300
SEEDS = (0, 1, 2)
SMALL = [
    "model.num_classes=3",
    "transform.train=[{pad_crop: {padding_px: 4}}, {flip_lr: {prob: 0.5}}]",
    "transform.eval=[]",
    "train.epochs=20",
    "train.eval_every_epochs=20",
    "train.precision=fp32",
]


def make(archive: Path, folder: Path) -> None:
    """Write class folders in train/ and val/."""
    with zipfile.ZipFile(archive) as pictures:
        for split, theirs in (("train", "train"), ("val", "test")):
            for name, count in TRAIN.items():
                files = sorted(file for file in pictures.namelist() if f"{theirs}/{name}/" in file and file[-1] != "/")
                for file in files[: count if split == "train" else VAL]:
                    path = folder / split / name / Path(file).name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(pictures.read(file))


def macro_recall(run: Path) -> float:
    """Return the mean of the classes' recalls, a fraction."""
    with open(run / "eval/per_class.csv", newline="") as file:
        return statistics.mean(float(row["recall"]) for row in csv.DictReader(file))


def main(archive: Path, out: Path) -> None:
    make(archive, out / "data")
    recalls: dict[str, list[float]] = {"null": [], "balanced": []}
    for seed in SEEDS:
        for weights, values in recalls.items():
            run = out / f"{weights}-{seed}"
            keys = [*SMALL, f"seed={seed}", f"loss.class_weights={weights}"]
            argv = ["train", "tinydarknet-own", *keys, "--data", str(out / "data"), "--out", str(run)]
            if cli.main(argv) != 0:
                sys.exit(1)
            values.append(macro_recall(run))
    gains = [after - before for before, after in zip(recalls["null"], recalls["balanced"], strict=True)]
    error = statistics.stdev(gains) / len(gains) ** 0.5
    mean = statistics.mean(gains)
    print(json.dumps({**recalls, "gain": mean, "standard_error": error, "times": mean / error}))
    sys.exit(0 if mean > 2 * error else 4)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
