"""Compare an exported file, in its own runtime, with the model in PyTorch: outputs and predictions."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from convzoo.boxes import clip_boxes
from convzoo.build import build_dataset, build_pipeline
from convzoo.config import registry
from convzoo.data.transforms.pipeline import normalize
from convzoo.deploy.detection_parity import matched
from convzoo.deploy.exported import ExportRunner
from convzoo.deploy.metadata import ExportInfo
from convzoo.errors import DataError
from convzoo.inference.loaded import LoadedModel
from convzoo.inference.torch_model import TorchModel, TorchRunner
from convzoo.tasks.postprocess import FAR_PX
from convzoo.types import Dataset, Key, Outputs, Sample, Task

EMBEDDED = {"classes": "digits", "boxes": "digit_scenes"}
REAL_PICTURES = 10
BATCHES = (1, 5)  # of a file that takes any number
HALF_TOLERANCE = 2e-2  # of float16, whose relative rounding of 5e-4 adds up over 50 to 120 layers
ROUNDING_FACTOR = 4  # times what float32 alone costs, which another order of additions may cost as well
MOST_TOLERANCE = 0.1  # a comparison that allows more proves nothing, whatever float32 costs
FARTHER_PX = (32, 64)  # the other size (height, width), of a file that takes any


@dataclass
class Parity:
    """What a comparison found.

    Attributes:
        outputs: for each output and kind of input ("real", "random"), the largest max|a-b| / max|b| of any batch.
        agreed, predictions: on how many pictures, of all, both say the same: the best class, or the same detections.
        batches: pictures in each; sizes: (height, width).
    """

    outputs: dict[str, dict[str, float]] = field(default_factory=dict)
    agreed: int = 0
    predictions: int = 0
    batches: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def largest(self) -> float:
        return max(value for kinds in self.outputs.values() for value in kinds.values())

    def add(self, name: str, kind: str, output: Tensor, expected: Tensor) -> None:
        kinds = self.outputs.setdefault(name, {})
        kinds[kind] = max(kinds.get(kind, 0.0), relative_difference(output, expected))


def relative_difference(output: Tensor, expected: Tensor) -> float:
    """Return max|a-b| / max|b|; infinite for other shapes, where only one is infinite, and where anything is NaN."""
    if output.shape != expected.shape:
        return math.inf
    a, b = output.double(), expected.double()
    worst = torch.where(a == b, 0.0, (a - b).abs()).amax().item() if a.numel() else 0.0
    largest = torch.where(b.isfinite(), b.abs(), 0.0).amax().item() if b.numel() else 0.0
    return worst / max(largest, 1e-12) if math.isfinite(worst) else math.inf


def pictures(opened: LoadedModel, data: Path | None, size: tuple[int, int]) -> Tensor:
    """Return real pictures [N, 3, H, W] uint8 as the network gets them: of the data set, or of what is embedded.

    Embedded are handwritten digits, or scenes of them, and scikit-learn's two photographs.

    Raises:
        UsageError, DataError: a data set that is not there, is empty or cannot be read.
    """
    photographs = []
    if data is None:
        from sklearn.datasets import load_sample_images  # takes two seconds

        dataset: Dataset = registry.builder("dataset", EMBEDDED[opened.task().predicts])(None, "val")
        photographs = [torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images]
    else:
        dataset = build_dataset(opened.recipe, data, "val")
        if not len(dataset):
            raise DataError(f"{data}: no pictures to compare on")
    chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), REAL_PICTURES - len(photographs)))
    samples = [dataset.load(int(index)) for index in chosen.round()]
    samples += [Sample(image, 0, 0, "", (image.shape[1], image.shape[2])) for image in photographs]
    pipeline = build_pipeline(opened.recipe, "eval")
    images = [pipeline(sample, Key(0, i)).image for i, sample in enumerate(samples)]
    return torch.stack([F.resize(image, list(size)) for image in images])


def float32_rounding(opened: TorchModel, info: ExportInfo, real: Tensor, tolerance: float) -> float:
    """Return what float32 alone costs the model: its largest relative difference from itself in float64.

    Of the outputs of the file's stage; of stage "nms", of the boxes, cut to the picture, and scores before it.
    Measured on the pictures that `compare` takes; first on two, a real one and a random one, and with those it ends
    where ROUNDING_FACTOR times it is less than a tenth of the tolerance: then nothing depends on it.

    Args:
        real: [N, 3, H, W] uint8.
    Returns:
        Infinite where outputs are not finite.
    """
    batches = list(_inputs(info, real))
    first = {kind: images[:1] for kind, images in reversed(batches)}
    double = TorchRunner(copy.deepcopy(opened.model).cpu().double(), opened.recipe, torch.device("cpu"))
    rounding = _largest_difference(opened, lambda x: double(x.double()), info, first.values())
    if ROUNDING_FACTOR * rounding < tolerance / 10:
        return rounding
    others = (images for _, images in batches)
    return max(rounding, _largest_difference(opened, lambda x: double(x.double()), info, others))


def half_rounding(opened: TorchModel, rounded: TorchModel, info: ExportInfo, real: Tensor) -> float:
    """Return what weights rounded to float16 alone cost the model, measured as `float32_rounding`."""
    return _largest_difference(opened, rounded.runner(), info, (images for _, images in _inputs(info, real)))


def _largest_difference(
    opened: TorchModel, reference: Callable[[Tensor], Outputs], info: ExportInfo, pictures: Iterable[Tensor]
) -> float:
    """Return how far a model is from a reference on normalised pictures, in outputs of the file's stage."""
    task, run, differences = opened.task(), opened.runner(), []
    for images in pictures:
        x = normalize(images, run.mean, run.std)
        size = (images.shape[2], images.shape[3])
        outputs = [_before_suppression(task, info.stage, maps, size) for maps in (run(x), reference(x))]
        differences += [relative_difference(a.cpu(), b.float().cpu()) for a, b in zip(*outputs, strict=True)]
    return max(differences)


def _before_suppression(task: Task, stage: str, outputs: Outputs, size: tuple[int, int]) -> Sequence[Tensor]:
    """Return raw outputs as those of a stage, but for suppression."""
    if stage == "raw":
        return outputs
    boxes_xyxy, scores = task.decode(outputs)
    return (_cut(boxes_xyxy, size) if stage == "decoded" else clip_boxes(boxes_xyxy, size)), scores


def _cut(boxes_xyxy: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes cut a picture's width and height around the picture: one that overflowed would outweigh all others.

    Args:
        size: (height, width) of the picture.
    """
    side_px = boxes_xyxy.new_tensor([size[1], size[0]] * 2)
    return boxes_xyxy.clamp(-side_px, 2 * side_px)


def compare(opened: LoadedModel, runner: ExportRunner, real: Tensor, tolerance: float) -> Parity:
    """Run the model and the exported file on the same pictures.

    Args:
        real: [N, 3, H, W] uint8.
        tolerance: within which a detection is the same.
    """
    parity, info = Parity(), runner.info
    task = opened.task()
    say = _Classes() if task.predicts == "classes" else _Boxes(task, info.stage, tolerance)
    reference = opened.runner()
    for kind, images in _inputs(info, real):
        outputs, expected, agreed = say(runner(images), tuple(output.cpu() for output in reference(images)), images)
        for name, a, b in zip(info.output_shapes(), outputs, expected, strict=False):
            parity.add(name, kind, a, b)
        parity.agreed += sum(agreed)
        parity.predictions += len(agreed)
        parity.batches = sorted({*parity.batches, info.batch or len(images)})
        size = (images.shape[2], images.shape[3])
        parity.sizes += [size] * (size not in parity.sizes)
    return parity


Tensors = tuple[Tensor, ...]


class _Classes:
    """Logits: compared as they are; two say the same where the best class is the same."""

    def __call__(self, outputs: Tensors, expected: Tensors, images: Tensor) -> tuple[Tensors, Tensors, list[bool]]:
        return outputs, expected, (outputs[0].argmax(1) == expected[0].argmax(1)).tolist()


class _Boxes:
    """Outputs of a detector: the reference's head maps are taken to the stage of what was found.

    Decoded boxes are compared as `_cut` leaves them; after suppression, by number, what was found in both.
    """

    def __init__(self, task: Task, stage: str, tolerance: float):
        self.task, self.stage, self.tolerance = task, stage, tolerance

    def __call__(self, outputs: Tensors, expected: Tensors, images: Tensor) -> tuple[Tensors, Tensors, list[bool]]:
        boxes_xyxy, scores = self.task.decode(expected)
        boxes_xyxy = boxes_xyxy.clamp(-FAR_PX, FAR_PX)  # as suppression does
        size = (images.shape[2], images.shape[3])
        # As if each picture filled the input: where it lies in it is beside the point here.
        batch = self.task.collate([Sample(image, 0, i, "", size) for i, image in enumerate(images)])
        predictions = self.task.postprocess(outputs, batch)
        both = [
            matched(prediction, boxes, score, size, self.task.options, self.tolerance)
            for prediction, boxes, score in zip(predictions, boxes_xyxy, scores, strict=True)
        ]
        agreed = [pair is not None for pair in both]
        if self.stage == "decoded":
            outputs, expected = (_cut(outputs[0], size), outputs[1]), (_cut(boxes_xyxy, size), scores)
        elif self.stage == "nms":
            columns = [torch.cat(column) for column in zip(*(pair for pair in both if pair is not None), strict=True)]
            outputs, expected = tuple(columns[:2]), tuple(columns[2:])
        return outputs, expected, agreed


def _inputs(info: ExportInfo, real: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the kind of input and uint8 pictures [B, 3, H, W], in the batches and sizes that the file takes."""
    generator = torch.Generator().manual_seed(0)

    def noise(count: int, size: tuple[int, ...]) -> Tensor:
        return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)

    if info.batch:
        yield "real", real
        yield "random", noise(info.batch, info.size)
    else:
        yield "real", real[:1]
        for part in real[1:].split(BATCHES[-1]):
            yield "real", part
        for count in BATCHES:
            yield "random", noise(count, info.size)
    if info.dynamic_size:
        other = (info.size[0] + FARTHER_PX[0], info.size[1] + FARTHER_PX[1])
        yield "real", F.resize(real[-2:], list(other))
        yield "random", noise(2, other)
