"""Run every benchmark of docs/performance.md for seconds, on data made here: whether it runs, not what it measures.

So one runs on each core.

python benchmarks/smoke.py [NAME ...]
"""

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from convzoo.config import registry
from convzoo.convert import darknet
from convzoo.data.datasets.cifar10 import CLASS_NAMES
from convzoo.data.imagenet import wnids

BENCHMARKS = {  # {folder} is the data made here; the longest first
    "cost": "--counts 4 --sizes --out {folder}/cost.png --json",
    "eval_speed": "{folder}/imagenet {folder}/tiny.weights --rounds 1 --warmups 0 --json",
    "kept_memory": "--recipe tinydarknet-digits --images 64 --rounds 1 --json",
    "ranks_speed": "--recipe tinydarknet-digits --images 64 --rounds 1 --json",
    "startup": "{folder}/imagenet/val/{wnid}/0.jpg --rounds 1 --warmups 0 --json",
    "train_peers": "densenet121 --rounds 1 --steps 1 --size 64",
    "packed_accuracy": "{folder}/imagenet {folder}/tiny.weights --sizes 256 --json",
    "forms_speed": "tinydarknet-imagenet --rounds 1 --seconds 0.01 --json",
    "input_speed": "{folder}/imagenet/val --rounds 1",
    "cache_speed": "{folder}/cifar10.zip --images 40 --rounds 1 --json",
    "yolo_step": "--batch 1 --size 64 --rounds 1",
    "coco_speed": "--pictures 20 --detections 10",
}


def make(folder: Path) -> str:
    """Make a few pictures of two ImageNet classes and of CIFAR-10's, and Darknet weights; return one class's number."""
    rng, names = np.random.default_rng(0), sorted(wnids())[:2]
    for name in names:
        (folder / "imagenet/val" / name).mkdir(parents=True)
        for index in range(4):
            picture = Image.fromarray(rng.integers(0, 256, (300, 400, 3), np.uint8))
            picture.save(folder / "imagenet/val" / name / f"{index}.jpg")
    with zipfile.ZipFile(folder / "cifar10.zip", "w") as archive:
        for split, count in (("train", 4), ("test", 1)):
            for name in CLASS_NAMES:
                for index in range(count):
                    file = folder / "picture.jpg"
                    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
                    archive.write(file, f"{split}/{name}/{index}.jpg")
    torch.manual_seed(0)
    model = {"name": "tinydarknet"}
    (folder / "tiny.weights").write_bytes(darknet.write(registry.bind("model", model)().state_dict(), model))
    return names[0]


def run(name: str, folder: str, wnid: str) -> bool:
    """Run a benchmark, say how long it took and what went wrong; tell whether nothing did."""
    begun = time.perf_counter()
    arguments = BENCHMARKS[name].format(folder=folder, wnid=wnid).split()
    command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    print(f"{name:16} {time.perf_counter() - begun:5.1f} s  exit {done.returncode}", flush=True)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
    return done.returncode == 0


def main() -> None:
    chosen, started = sys.argv[1:] or list(BENCHMARKS), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as at_once:
        wnid = make(Path(folder))
        ran = sum(at_once.map(lambda name: run(name, folder, wnid), chosen))
    print(f"{ran} of {len(chosen)} ran, in {time.perf_counter() - started:.0f} s")
    sys.exit(0 if ran == len(chosen) else 1)


if __name__ == "__main__":
    main()
