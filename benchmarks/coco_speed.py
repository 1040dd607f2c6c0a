"""COCO's twelve numbers of many detections: seconds of hotcoco and pycocotools, called as `eval` calls them, and equal.

OMP_NUM_THREADS=1 python benchmarks/coco_speed.py [--pictures 5000] [--detections 100] [--out FILE.json]
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from convzoo.tasks import coco_eval
from convzoo.types import Boxes, Prediction

CLASSES, SIDE_PX, OBJECTS = 80, 640, 7


def boxes_xyxy(rng: np.random.Generator, count: int) -> np.ndarray:
    sides = np.exp(rng.uniform(2.5, 5.5, (count, 2)))
    corners = rng.uniform(0, SIDE_PX - sides.clip(max=SIDE_PX - 1))
    return np.concatenate([corners, corners + sides], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    truths, predictions = [], []
    for index in range(arguments.pictures):
        true_boxes, labels = boxes_xyxy(rng, OBJECTS), rng.integers(0, CLASSES, OBJECTS)
        areas = (true_boxes[:, 2:] - true_boxes[:, :2]).prod(1)
        truths.append(Boxes(true_boxes, labels, np.zeros(OBJECTS, dtype=bool), areas))
        near = true_boxes + rng.normal(0, 3, true_boxes.shape)
        boxes = np.concatenate([near, boxes_xyxy(rng, arguments.detections - OBJECTS)])
        guesses = np.concatenate([labels, rng.integers(0, CLASSES, arguments.detections - OBJECTS)])
        predictions.append(Prediction(index, guesses, rng.random(len(boxes)), boxes))
    ids, categories = list(range(arguments.pictures)), {number: str(number) for number in range(1, CLASSES + 1)}
    sizes_hw = [(SIDE_PX, SIDE_PX)] * arguments.pictures
    truth = coco_eval.truth_json(truths, ids, [f"{i}.jpg" for i in ids], sizes_hw, categories)
    detections = coco_eval.detections_json(predictions, ids, list(categories))
    seconds, stats = {}, {}
    for evaluator in coco_eval.EVALUATORS:
        started = time.perf_counter()
        stats[evaluator] = coco_eval.score(truth, detections, evaluator).stats
        seconds[evaluator] = time.perf_counter() - started
        print(f"{evaluator:12} {seconds[evaluator]:7.2f} s   AP {stats[evaluator]['AP']:.6f}")
    times = seconds["pycocotools"] / seconds["hotcoco"]
    equal = stats["hotcoco"] == stats["pycocotools"]
    print(f"{times:.0f} times as fast, the twelve numbers {'equal' if equal else 'DIFFERENT'}")
    if arguments.out:
        result = {"seconds": seconds, "times": times, "equal": equal}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
