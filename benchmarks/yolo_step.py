"""How much of YOLOv3's training step is target assignment, ignore mask and loss: forward and backward, full width.

    OMP_NUM_THREADS=2 python benchmarks/yolo_step.py [--batch 8] [--size 416] [--boxes 8] [--rounds 3]

The step is that of the loop: network, loss, backward. The share counts the loss with all it needs, and its backward
pass down to the head maps.
"""

import argparse
import time
from collections.abc import Callable

import torch

from convzoo.models import yolov3
from convzoo.tasks.detect import Detect
from convzoo.types import BoxTargets


class Pictures:
    """What the loss asks of a batch: the size of its pictures and their boxes."""

    def __init__(self, batch: int, size: int, boxes: int):
        generator = torch.Generator().manual_seed(0)
        sides = torch.exp(torch.rand(batch * boxes, 2, generator=generator) * 3 + 2.5).clamp(max=size / 1.5)
        corners = torch.rand(batch * boxes, 2, generator=generator) * (size - sides)
        self.images = torch.randn(batch, 3, size, size, generator=generator).contiguous(
            memory_format=torch.channels_last
        )
        labels = torch.randint(0, 80, (batch * boxes,), generator=generator)
        self.targets = BoxTargets(
            torch.cat([corners, corners + sides], 1), labels, torch.arange(batch).repeat_interleave(boxes)
        )

    def __len__(self) -> int:
        return len(self.images)


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("--batch", 8), ("--size", 416), ("--boxes", 8), ("--rounds", 3)):
        parser.add_argument(name, type=int, default=value)
    arguments = parser.parse_args()
    task = Detect([str(i) for i in range(80)], yolov3.heads())
    batch = Pictures(arguments.batch, arguments.size, arguments.boxes)
    model = yolov3.yolov3().to(memory_format=torch.channels_last).train()

    def step() -> None:
        task.loss(model(batch.images), batch)["loss"].backward()  # type: ignore[arg-type]

    def loss_alone() -> None:
        task.loss([head.detach().requires_grad_() for head in heads], batch)["loss"].backward()  # type: ignore[arg-type]

    with torch.no_grad():
        heads = model(batch.images)
    step()
    loss_alone()
    whole, part = (min(seconds(call) for _ in range(arguments.rounds)) for call in (step, loss_alone))
    print(f"step {1000 * whole:.0f} ms, loss and assignment {1000 * part:.1f} ms: {100 * part / whole:.2f} %")


if __name__ == "__main__":
    main()
