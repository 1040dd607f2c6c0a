"""Seconds and peak memory of a verb against the number and the size of its pictures, over decades; a figure of both.

    OMP_NUM_THREADS=1 python benchmarks/cost.py [--counts 10 100 1000 10000] [--sizes 10 100 1000 3000] [--out FILE.png]
                                                [--json]

Pictures are made here: class folders of JPEGs of one side. train, eval, predict and pack are whole processes, one
epoch of tinydarknet at 32 pixels; convert is of a network whose classes grow instead. Memory is a process's peak.
"""

import argparse
import importlib
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from processes import convzoo, environment, peak

SIDE_PX, COUNT = 100, 100  # what stays while the other grows
RECIPE = (
    "tinydarknet-digits",
    "data={name: image_folder}",
    "model={name: tinydarknet, num_classes: 2}",
    "transform.train=[{resize: {size_px: 32, mode: stretch}}]",
    "transform.eval=[{resize: {size_px: 32, mode: stretch}}]",
    "train.epochs=1",
    "train.batch_size=8",
    "train.eval_every_epochs=0",
)


def make(root: Path, count: int, side_px: int) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
            picture = Image.fromarray(coarse).resize((side_px, side_px), Image.Resampling.BICUBIC)
            for index in range(count // 2):
                picture.putpixel((index % side_px, number), (index % 256, 0, 0))
                picture.save(folder / f"{index}.jpg")


def verbs(folder: Path, count: int, side_px: int) -> dict[str, dict[str, float]]:
    """Return what each verb costs on so many pictures of a side."""
    data, model, env = folder / "data", folder / "run/checkpoints/last.safetensors", environment(1)
    make(data, count, side_px)
    return {
        "train": peak(convzoo("train", *RECIPE, "--data", data, "--out", folder / "run"), env),
        "eval": peak(convzoo("eval", model, "--data", data), env),
        "predict": peak(convzoo("predict", model, data / "val/cat"), env),
        "pack": peak(convzoo("data", "pack", data, "--size", "64", "--out", folder / "data.pack"), env),
    }


def conversions(counts: list[int]) -> dict[str, list[dict[str, float]]]:
    """Return what `convert` of Tiny Darknet's weights costs by the number of their classes."""
    import torch

    from convzoo.config import registry
    from convzoo.convert import darknet

    rows = []
    for classes in counts:
        with tempfile.TemporaryDirectory() as folder:
            model = {"name": "tinydarknet", "num_classes": classes}
            torch.manual_seed(0)
            weights = Path(folder, "tiny.weights")
            weights.write_bytes(darknet.write(registry.bind("model", model)().state_dict(), model))
            options = ("--model", "tinydarknet", "--num-classes", classes, "--out", Path(folder, "x.safetensors"))
            rows.append(peak(convzoo("convert", weights, *options), environment(1)))
    return {"convert": rows}


def draw(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import ticker

    from convzoo.report.plots import BESIDE, SERIES, STYLE

    pyplot = importlib.import_module("matplotlib.pyplot")
    labels = {"by_count": f"pictures of {SIDE_PX} px (convert: classes)", "by_size": f"side in px of {COUNT} pictures"}
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(2, 2, figsize=(10, 6), sharey="row")
        for column, (key, label) in enumerate(labels.items()):
            for ax, unit in zip(axes[:, column], ("seconds", "MiB"), strict=True):
                for colour, (name, values) in zip(SERIES, result[key]["rows"].items(), strict=False):
                    ax.plot(result[key]["x"], [value[unit] for value in values], "o-", color=colour, label=name)
                ax.set(xscale="log", xlabel=label)
        for ax, title in zip(axes[:, 0], ("Seconds of a whole process", "Peak memory, MiB"), strict=True):
            ax.set_title(title)
        axes[0][0].set_yscale("log")
        axes[0][0].yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes[0][0].yaxis.set_major_formatter("{x:g}")
        axes[0][0].yaxis.set_minor_formatter(ticker.NullFormatter())
        axes[1][0].set_ylim(bottom=0)
        axes[0][1].legend(*axes[0][0].get_legend_handles_labels(), frameon=False, **BESIDE)
        figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000, 10000])
    parser.add_argument("--sizes", type=int, nargs="*", default=[10, 100, 1000, 3000])
    parser.add_argument("--out", type=Path, help="PNG")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cases = {"by_count": [(count, SIDE_PX) for count in arguments.counts]}
    cases["by_size"] = [(COUNT, side) for side in arguments.sizes]
    result: dict[str, dict] = {}
    for key, pairs in cases.items():
        rows: dict[str, list] = {}
        for count, side in pairs:
            with tempfile.TemporaryDirectory() as folder:
                for name, measured in verbs(Path(folder), count, side).items():
                    rows.setdefault(name, []).append(measured)
        if key == "by_count":
            rows |= conversions(arguments.counts)
        result[key] = {"x": arguments.counts if key == "by_count" else arguments.sizes, "rows": rows}
    # What a picture more adds, of the memory of the smallest: near 1 where memory is flat.
    growth = {name: rows[-1]["MiB"] / rows[0]["MiB"] for name, rows in result["by_count"]["rows"].items()}
    if arguments.out:
        draw(result, arguments.out)
    print(json.dumps({**result, "growth": growth}) if arguments.json else json.dumps(growth))


if __name__ == "__main__":
    main()
