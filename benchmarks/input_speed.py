"""JPEG -> random resized crop 224 and flip -> uint8 tensor, pictures a second on one thread: ours and the usual ways.

    python benchmarks/input_speed.py ../shared/data/imagenet-sample/val [--rounds 21] [--out FILE.json]

Each way is a process of its own, ours as the command line starts it, the peers as they come. A round is every picture
of the folder by each way, in turn every few pictures; medians of the rounds. The peers draw their crops with PyTorch's
global generator, ours with one keyed by (seed, epoch, picture). The packed pictures, of class folders, were decoded and
resized to 256 once before.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from processes import environment
from torch import Tensor
from torchvision.transforms import RandomHorizontalFlip, RandomResizedCrop, v2

from convzoo.build import build_pipeline
from convzoo.config import recipe as recipes
from convzoo.data.datasets.image_folder import image_folder
from convzoo.data.decode import decode_rgb
from convzoo.data.packed import open_packed, pack
from convzoo.data.transforms.pipeline import Pipeline
from convzoo.environment import keep_memory
from convzoo.types import Key, Sample

SIZE_PX, PACKED_PX = 224, 256
AT_A_TIME = 10  # pictures of each way, some 30 ms: what else the machine does meanwhile hits all ways alike
WAYS = ["convzoo", "convzoo, packed", "torchvision.io and v2", "Pillow"]
TENSORS = v2.Compose([v2.RandomResizedCrop(SIZE_PX, antialias=True), v2.RandomHorizontalFlip()])
PICTURES = v2.Compose([RandomResizedCrop(SIZE_PX), RandomHorizontalFlip(), v2.PILToTensor()])


def our_pipeline() -> Pipeline:
    operations = f"[{{random_resized_crop: {{size_px: {SIZE_PX}}}}}, {{flip_lr: {{prob: 0.5}}}}]"
    return build_pipeline(recipes.load("tinydarknet-imagenet", [f"transform.train={operations}"]), "train")


def ours() -> Callable[[Path, int], Tensor]:
    pipeline = our_pipeline()

    def load(path: Path, index: int) -> Tensor:
        image = decode_rgb(path.read_bytes(), str(path))
        hw = (image.shape[1], image.shape[2])
        return pipeline(Sample(image, 0, index, str(path), hw), Key(0, index)).image

    return load


def packed(folder: Path, file: Path) -> Callable[[Path, int], Tensor]:
    about = {"source": str(folder), "data": {"name": "image_folder"}}
    pack({"val": image_folder(folder, "val")}, about, PACKED_PX, file)
    pipeline, dataset = our_pipeline(), open_packed(file, "val", {"name": "image_folder"}, SIZE_PX)
    return lambda _, index: pipeline(dataset.load(index), Key(0, index)).image


def torchvision_io(path: Path, index: int) -> Tensor:
    return TENSORS(torchvision.io.decode_image(str(path), mode=torchvision.io.ImageReadMode.RGB))


def pillow(path: Path, index: int) -> Tensor:
    with Image.open(path) as image:
        return PICTURES(image.convert("RGB"))


def pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))


def answer(way: str, folder: Path) -> None:
    """Load the pictures from a number on, for each number that stdin asks for, and print the seconds."""
    torch.set_num_threads(1)
    if way.startswith("convzoo"):
        keep_memory()
    with tempfile.TemporaryDirectory() as scratch:
        load = {
            "convzoo": ours,
            "convzoo, packed": lambda: packed(folder, Path(scratch, "pictures.pack")),
            "torchvision.io and v2": lambda: torchvision_io,
            "Pillow": lambda: pillow,
        }[way]()
        paths = list(enumerate(pictures(folder)))
        for line in sys.stdin:
            few = paths[int(line) : int(line) + AT_A_TIME]
            started = time.perf_counter()
            for index, path in few:
                assert load(path, index).shape == (3, SIZE_PX, SIZE_PX)
            print(time.perf_counter() - started, flush=True)


def one_round(ways: dict[str, subprocess.Popen], count: int) -> dict[str, float]:
    """Return the seconds that each way takes for all pictures."""
    seconds, order = dict.fromkeys(ways, 0.0), list(ways)
    for start in range(0, count, AT_A_TIME):
        for name in order:
            asked, answered = ways[name].stdin, ways[name].stdout
            assert asked and answered
            asked.write(f"{start}\n")
            asked.flush()
            seconds[name] += float(answered.readline())
        order.append(order.pop(0))
    return seconds


def compare(folder: Path, rounds_count: int, out: Path | None) -> None:
    """Print each way's speed beside torchvision's, and write it as JSON."""
    command = [sys.executable, __file__, str(folder), "--way"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment(1)}
    ways = {name: subprocess.Popen([*command, name], **pipes) for name in WAYS}
    count = len(pictures(folder))
    one_round(ways, count)  # warms the files and the code up
    rounds = [one_round(ways, count) for _ in range(rounds_count)]
    for process in ways.values():
        process.communicate()
    print(f"{count} pictures, {rounds_count} rounds\n")
    print("| way | pictures/s | times torchvision.io and v2 | range of the rounds |\n|---|---|---|---|")
    rates, times = {}, {}
    base = np.array([seconds["torchvision.io and v2"] for seconds in rounds])
    for name in WAYS:
        taken = np.array([seconds[name] for seconds in rounds])
        ratios = base / taken
        rates[name], times[name] = count / statistics.median(taken), float(np.median(ratios))
        print(f"| {name} | {rates[name]:.0f} | {times[name]:.2f} | {ratios.min():.2f} to {ratios.max():.2f} |")
    if out:
        out.write_text(json.dumps({"pictures": count, "pictures_per_s": rates, "times": times}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        answer(arguments.way, arguments.folder)
    else:
        compare(arguments.folder, arguments.rounds, arguments.out)


if __name__ == "__main__":
    main()
