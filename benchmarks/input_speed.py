"""JPEG -> random resized crop 224 and flip -> uint8 tensor, pictures a second on one thread: ours and the usual ways.

    OMP_NUM_THREADS=1 python benchmarks/input_speed.py ../shared/data/imagenet-sample/val [--rounds 21] [--out FILE]

Each way decodes every picture of the folder once a round, the ways in turn; medians of the rounds. The peers draw
their crops with PyTorch's global generator, ours with one keyed by (seed, epoch, picture). The packed pictures, of
class folders, were decoded and resized to 256 once before.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomHorizontalFlip, RandomResizedCrop, v2

from convzoo.build import build_pipeline
from convzoo.config import recipe as recipes
from convzoo.data.datasets.image_folder import image_folder
from convzoo.data.decode import decode_rgb
from convzoo.data.packed import open_packed, pack
from convzoo.data.transforms.pipeline import Pipeline
from convzoo.types import Key, Sample

SIZE_PX, PACKED_PX = 224, 256
TENSORS = v2.Compose([v2.RandomResizedCrop(SIZE_PX, antialias=True), v2.RandomHorizontalFlip()])
PICTURES = v2.Compose([RandomResizedCrop(SIZE_PX), RandomHorizontalFlip(), v2.PILToTensor()])


def ours(pipeline: Pipeline) -> Callable[[Path, int], Tensor]:
    def load(path: Path, index: int) -> Tensor:
        image = decode_rgb(path.read_bytes(), str(path))
        hw = (image.shape[1], image.shape[2])
        return pipeline(Sample(image, 0, index, str(path), hw), Key(0, index)).image

    return load


def packed(pipeline: Pipeline, folder: Path, file: Path) -> Callable[[Path, int], Tensor]:
    pack(
        {"val": image_folder(folder, "val")}, {"source": str(folder), "data": {"name": "image_folder"}}, PACKED_PX, file
    )
    dataset = open_packed(file, "val", {"name": "image_folder"}, SIZE_PX)
    return lambda _, index: pipeline(dataset.load(index), Key(0, index)).image


def torchvision_io(path: Path, index: int) -> Tensor:
    return TENSORS(torchvision.io.decode_image(str(path), mode=torchvision.io.ImageReadMode.RGB))


def pillow(path: Path, index: int) -> Tensor:
    with Image.open(path) as image:
        return PICTURES(image.convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(path for path in arguments.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    operations = f"[{{random_resized_crop: {{size_px: {SIZE_PX}}}}}, {{flip_lr: {{prob: 0.5}}}}]"
    pipeline = build_pipeline(recipes.load("tinydarknet-imagenet", [f"transform.train={operations}"]), "train")
    scratch = tempfile.TemporaryDirectory()
    ways = {
        "convzoo": ours(pipeline),
        "convzoo, packed": packed(pipeline, arguments.folder, Path(scratch.name, "pictures.pack")),
        "torchvision.io and v2": torchvision_io,
        "Pillow": pillow,
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(-1, arguments.rounds):  # the first warms the files and the code up
        for name, load in ways.items():
            started = time.perf_counter()
            for index, path in enumerate(paths):
                assert load(path, index).shape == (3, SIZE_PX, SIZE_PX)
            if round_number >= 0:
                rates[name].append(len(paths) / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    base = np.asarray(rates["torchvision.io and v2"])
    scratch.cleanup()
    print(f"{len(paths)} pictures, {arguments.rounds} rounds\n")
    print("| way | pictures/s | times torchvision.io and v2 | range of the rounds |\n|---|---|---|---|")
    for name, values in rates.items():
        ratios = np.asarray(values) / base
        print(f"| {name} | {medians[name]:.0f} | {np.median(ratios):.2f} | {ratios.min():.2f} to {ratios.max():.2f} |")
    if arguments.out:
        ratios = {name: float(np.median(np.asarray(values) / base)) for name, values in rates.items()}
        arguments.out.write_text(
            json.dumps({"pictures": len(paths), "pictures_per_s": medians, "times": ratios}) + "\n"
        )


if __name__ == "__main__":
    main()
