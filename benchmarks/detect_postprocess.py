"""Time decode + suppression of one 416 picture and, for training, targets + ignore masks + loss of a batch.

    OMP_NUM_THREADS=1 python benchmarks/detect_postprocess.py [--rounds 30]

Maps are random, 80 classes; the objectness is shifted so that the wanted number of predictions exceeds the threshold.
The median of the rounds is printed, and the fastest.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from convzoo.models import yolov3
from convzoo.tasks.heads import decode_heads
from convzoo.tasks.postprocess import Detections, postprocess
from convzoo.tasks.yolo import assign_targets, ignore_masks, yolo_loss

HEADS = yolov3.heads()
PLACEMENT, ORIGINAL_HW = torch.tensor([[416 / 640, 416 / 640, 0, 69]]), torch.tensor([[427, 640]])


def random_heads(images: int, generator: torch.Generator) -> list[torch.Tensor]:
    return [torch.randn(images, 255, 416 // s, 416 // s, generator=generator) for s in yolov3.STRIDES]


def detector(threshold: float, candidates: int, **options) -> tuple[Callable[[], list[Detections]], int, int]:
    """Return what decodes and suppresses, the candidates over the threshold and the detections."""
    heads = random_heads(1, torch.Generator().manual_seed(0))
    low, high, maps, count = -20.0, 20.0, heads, 0
    for _ in range(30):
        shift = (low + high) / 2
        shifted = [head.unflatten(1, (3, 85)).clone() for head in heads]
        for head in shifted:
            head[:, :, 4] += shift
        maps = [head.flatten(1, 2) for head in shifted]
        count = int((decode_heads(maps, HEADS)[1].amax(2) > threshold).sum())
        low, high = (shift, high) if count < candidates else (low, shift)

    def run() -> list[Detections]:
        with torch.no_grad():
            decoded = decode_heads(maps, HEADS)
        return postprocess(*decoded, PLACEMENT, ORIGINAL_HW, score_threshold=threshold, iou_threshold=0.45, **options)

    return run, count, len(run()[0].scores)


def trainer(images: int, boxes_each: int) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    heads = [head.requires_grad_() for head in random_heads(images, generator)]
    low, size = (torch.rand(images * boxes_each, 4, generator=generator) * 200 + 4).split(2, 1)
    boxes = torch.cat([low, low + size], 1)
    labels = torch.randint(80, (len(boxes),), generator=generator)
    index = torch.arange(images).repeat_interleave(boxes_each)

    def run() -> object:
        targets = assign_targets(boxes, labels, index, image_size=(416, 416), num_classes=80, heads=HEADS)
        loss = yolo_loss(heads, targets, ignore_masks(heads, boxes, index, heads=HEADS))["loss"]
        return torch.autograd.grad(loss, heads)

    return run


def report(name: str, run: Callable[[], object], rounds: int) -> None:
    times = []
    for _ in range(rounds + 3):
        started = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - started))
    print(f"{name}: {statistics.median(times[3:]):.1f} ms (fastest {min(times[3:]):.1f})")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for threshold, wanted, options in [
        (0.25, 300, {}),
        (0.001, 3000, {}),
        (0.001, 10647, {}),
        (0.001, 10647, {"max_detections": None}),
        (0.001, 10647, {"multi_label": True}),
    ]:
        run, candidates, found = detector(threshold, wanted, **options)
        report(
            f"decode + NMS, threshold {threshold}, {candidates} boxes over it, {options}: {found} found", run, rounds
        )
    for boxes_each in (7, 50):
        report(f"targets + masks + loss + gradient, 8 pictures of {boxes_each} boxes", trainer(8, boxes_each), rounds)


if __name__ == "__main__":
    main()
