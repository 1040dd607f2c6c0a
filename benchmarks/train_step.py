"""Time a training step of our networks in each precision and memory format, beside torchvision's same network.

    OMP_NUM_THREADS=2 python benchmarks/train_step.py [--rounds 3]

Rounds alternate between all variants, so that a noisy machine is noisy for all; the best round of each counts.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from convzoo.config import registry


def ours(name: str, **keys: object) -> Callable[[], nn.Module]:
    return lambda: registry.bind("model", {"name": name, **keys})()


CASES = {  # name: (build, size, batch)
    "tinydarknet 32": (ours("tinydarknet", num_classes=10), 32, 64),
    "vgg16 small head 32": (ours("vgg16", num_classes=10, batch_norm=True, head="small"), 32, 64),
    "densenet100 32": (ours("densenet100"), 32, 32),
    "densenet121 112": (ours("densenet121"), 112, 8),
    "densenet121 112, torchvision": (lambda: torchvision.models.densenet121(), 112, 8),
}
MODES = [("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True)]


def stepper(model: nn.Module, size: int, batch: int, precision: str, channels_last: bool) -> Callable[[], None]:
    images, targets = torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(images)
        F.cross_entropy(outputs.float(), targets).backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    steps = {
        (case, *mode): stepper(build().train(), size, batch, *mode)
        for case, (build, size, batch) in CASES.items()
        for mode in MODES
    }
    best = dict.fromkeys(steps, float("inf"))
    for turn in range(rounds + 1):  # the first is warm-up
        for key, step in steps.items():
            started = time.perf_counter()
            step()
            if turn:
                best[key] = min(best[key], time.perf_counter() - started)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; images a second, "
        "and how many times fp32 contiguous"
    )
    for case, (_, _, batch) in CASES.items():
        base = best[(case, "fp32", False)]
        cells = [
            f"{p}{' channels_last' if c else ''} {batch / best[(case, p, c)]:.0f} ({base / best[(case, p, c)]:.2f})"
            for p, c in MODES
        ]
        print(f"{case}: {'; '.join(cells)}")


if __name__ == "__main__":
    main()
