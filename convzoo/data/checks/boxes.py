"""Look at true boxes before anything is trained on them: what is wrong with them, how many, how large, where."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image

from convzoo.logs import progress
from convzoo.plain import JsonObject
from convzoo.report.draw_boxes import boxed, detection_sheet
from convzoo.types import BoxedDataset, Boxes, Sample

NAMED = 20  # findings of a kind that are kept word by word, the others are counted
SLACK_PX = 0.5  # what rounding in other programs leaves outside the picture
TINY = 0.01  # of the picture's longer side: four pixels of a network's 416
HUGE = 0.95  # of the picture's area: most often a slip, or the label of a whole picture
SMALL, LARGE = 32**2, 96**2  # COCO's bounds of areas in pixels
PICTURES_LOOKED_AT = 2000  # when samples are chosen


@dataclass
class BoxAccount:
    """What is remarkable about the boxes of a split; none of it stops a training.

    Attributes:
        counts: how many boxes of each kind of finding.
        named: the first of each kind in words.
    """

    objects: int = 0
    without_objects: int = 0
    counts: Counter = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=dict)

    def look_at(self, sample: Sample, class_names: list[str]) -> None:
        """Count one picture's boxes in."""
        boxes: Boxes = sample.target
        self.objects += len(boxes)
        self.without_objects += not len(boxes)
        for kind, chosen in _findings(boxes, sample.original_hw).items():
            self.counts[kind] += int(chosen.sum())
            named = self.named.setdefault(kind, [])
            for i in np.flatnonzero(chosen)[: NAMED - len(named)].tolist():
                corners = " ".join(f"{value:g}" for value in boxes.xyxy[i].round(2))
                height, width = sample.original_hw
                named.append(
                    f"{sample.path}: object {i + 1} ({class_names[boxes.labels[i]]}): {corners} in {width}x{height}"
                )

    def plain(self) -> JsonObject:
        findings = {kind: {"count": self.counts[kind], "first": self.named[kind]} for kind in self.named}
        return {"objects": self.objects, "images_without_objects": self.without_objects, **findings}


def _findings(boxes: Boxes, size_hw: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return for each kind of finding which boxes [N] it is true of."""
    height, width = size_hw
    x1, y1, x2, y2 = boxes.xyxy.T
    shorter = np.minimum(x2 - x1, y2 - y1)
    corners = boxes.xyxy.clip(0, [width, height, width, height])
    inside = corners[:, 2:] - corners[:, :2]
    empty = shorter <= 0
    wholly = ~empty & ((x2 <= 0) | (y2 <= 0) | (x1 >= width) | (y1 >= height))
    beyond = (x1 < -SLACK_PX) | (y1 < -SLACK_PX) | (x2 > width + SLACK_PX) | (y2 > height + SLACK_PX)
    duplicate = np.ones(len(boxes), bool)
    rows = np.column_stack([boxes.labels, boxes.crowd, boxes.xyxy])
    duplicate[np.unique(rows, axis=0, return_index=True)[1]] = False  # the first of each is none
    return {
        "partly_outside": beyond & ~wholly & ~empty,
        "wholly_outside": wholly,
        "empty": empty,
        "at_most_a_pixel_thick": ~empty
        & (shorter <= 1),  # what a slip of the mouse leaves in VOC, which counts both ends
        "duplicate": duplicate,
        "tiny": (shorter > 1) & (shorter < TINY * max(size_hw)),
        "huge": ~empty & (inside.prod(1) >= HUGE * height * width),
    }


class Objects(NamedTuple):
    """The objects of many pictures: boxes [M], the picture of each [M], and the pictures' heights and widths [N, 2]."""

    boxes: Boxes
    image_index: np.ndarray
    sizes_hw: np.ndarray


def gather(dataset: BoxedDataset, indices: Sequence[int] | None = None) -> Objects:
    """Return the objects of a split or of some of its pictures. Raises DataError where a picture's header is needed."""
    indices = range(len(dataset)) if indices is None else indices
    per_image = [dataset.boxes(i) for i in progress(indices, len(indices), "boxes")]
    boxes = Boxes.joined(per_image)
    sizes = np.array([dataset.size_hw(i) for i in indices], np.int64)
    return Objects(boxes, np.repeat(np.arange(len(per_image)), [len(image_boxes) for image_boxes in per_image]), sizes)


def box_stats(objects: Objects, class_names: list[str]) -> JsonObject:
    """Return counts of objects and pictures, for each class too, and how large the objects and pictures are."""
    boxes, image_index, sizes_hw = objects
    per_image = np.bincount(image_index, minlength=len(sizes_hw))
    pairs = np.unique(np.stack([image_index, boxes.labels]), axis=1)
    in_objects, in_images = (np.bincount(labels, minlength=len(class_names)) for labels in (boxes.labels, pairs[1]))
    areas = boxes.areas[~boxes.crowd]
    sizes = Counter(map(tuple, sizes_hw.tolist())).most_common(5)
    return {
        "images": len(sizes_hw),
        "images_without_objects": int((per_image == 0).sum()),
        "objects": len(boxes),
        "crowd": int(boxes.crowd.sum()),
        "objects_per_image": {"mean": float(per_image.mean()), "most": int(per_image.max())},
        "small": int((areas < SMALL).sum()),
        "medium": int(((areas >= SMALL) & (areas < LARGE)).sum()),
        "large": int((areas >= LARGE).sum()),
        "sizes_hw": {f"{height}x{width}": count for (height, width), count in sizes},
        "classes": {
            name: {"objects": int(of_objects), "images": int(of_images)}
            for name, of_objects, of_images in zip(class_names, in_objects, in_images, strict=True)
        },
    }


def stats_text(train: JsonObject, val: JsonObject) -> str:
    """Return two tables of `box_stats` of both splits: the classes, and everything else."""
    width = max(22, *map(len, train["classes"]))
    lines = [f"{'':{width}}  {'train':>17}  {'val':>17}", f"{'class':{width}}" + 2 * f"  {'objects':>8} {'images':>8}"]
    for name, counts in train["classes"].items():
        both = counts, val["classes"][name]
        lines.append(f"{name:{width}}" + "".join(f"  {stats['objects']:8,} {stats['images']:8,}" for stats in both))
    lines += ["", f"{'':{width}}  {'train':>9}  {'val':>9}"]
    for title, value in _ROWS.items():
        lines.append(f"{title:{width}}  {value(train):>9}  {value(val):>9}")
    lines += ["", "largest groups of pictures, width x height"]
    for size in dict.fromkeys([*train["sizes_hw"], *val["sizes_hw"]]):
        counts = [f"{stats['sizes_hw'].get(size, 0):9,}" for stats in (train, val)]
        lines.append(f"{'x'.join(reversed(size.split('x'))):{width}}  {'  '.join(counts)}")
    return "\n".join(lines)


def _share(key: str):
    return lambda stats: f"{100 * stats[key] / max(1, stats['objects'] - stats['crowd']):.1f} %"


_ROWS = {
    "images": lambda stats: f"{stats['images']:,}",
    "  without objects": lambda stats: f"{stats['images_without_objects']:,}",
    "objects": lambda stats: f"{stats['objects']:,}",
    "  crowd or difficult": lambda stats: f"{stats['crowd']:,}",
    "  an image, mean": lambda stats: f"{stats['objects_per_image']['mean']:.1f}",
    "  an image, most": lambda stats: f"{stats['objects_per_image']['most']:,}",
    "  small, under 32x32": _share("small"),
    "  medium": _share("medium"),
    "  large, from 96x96": _share("large"),
}


def choose(dataset: BoxedDataset, count: int) -> list[int]:
    """Return pictures that show the classes as evenly as may be: each next one has the class shown least so far."""
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), PICTURES_LOOKED_AT)).round().astype(int))
    objects = gather(dataset, indices.tolist())
    chosen: list[int] = []
    shown = np.zeros(len(dataset.class_names), int)
    left = np.ones(len(objects.image_index), bool)  # objects of pictures not chosen yet
    while len(chosen) < count and left.any():
        there = np.unique(objects.boxes.labels[left])
        rarest = there[shown[there].argmin()]
        image = objects.image_index[left & (objects.boxes.labels == rarest)][0]
        own = objects.image_index == image
        left &= ~own
        shown += np.bincount(objects.boxes.labels[own], minlength=len(shown))
        chosen.append(int(indices[image]))
    empty = [index for index in indices.tolist() if index not in set(chosen)]
    return sorted([*chosen, *empty[: count - len(chosen)]])


def box_sheet(dataset: BoxedDataset, count: int = 12, cell_px: int = 360) -> Image.Image:
    """Return a picture of samples with their boxes and classes."""
    pictures, captions = [], []
    for index in choose(dataset, count):
        sample = dataset.load(index)
        boxes: Boxes = sample.target
        names = [
            dataset.class_names[label] + " (ignored)" * bool(crowd)
            for label, crowd in zip(boxes.labels, boxes.crowd, strict=True)
        ]
        pixels = sample.image.permute(1, 2, 0).numpy()
        pictures.append(boxed(pixels, boxes.xyxy, boxes.labels.tolist(), names, fit_px=cell_px))
        height, width = sample.original_hw
        captions.append((sample.path.rpartition("/")[2], f"{width}x{height}, {len(boxes)} objects"))
    return detection_sheet(pictures, captions, cell_px=cell_px)
