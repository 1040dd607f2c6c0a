"""Detection: boxes with classes, YOLOv3's loss, COCO's measures."""

import abc
import functools
import inspect
import json
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from convzoo.boxes import clip_boxes, to_original
from convzoo.config import registry
from convzoo.config.recipe import Recipe
from convzoo.config.registry import register
from convzoo.data.loader import base_batch
from convzoo.errors import UsageError
from convzoo.plain import JsonObject, JsonValue
from convzoo.tasks.detect_metric import DetectMetric
from convzoo.tasks.heads import decode_heads
from convzoo.tasks.postprocess import Detections, NmsKind, postprocess
from convzoo.tasks.yolo import assign_targets, ignore_masks, yolo_loss
from convzoo.types import Batch, Boxes, BoxTargets, Head, Prediction, Sample


class BoxTask(abc.ABC):
    """What detectors have in common, whatever their outputs: everything but `decode`, `raw_shapes` and `loss`.

    Crowds and boxes without area are not learned. `options` are `postprocess.postprocess`'s keywords, those that are
    not given with its defaults.
    """

    best_metric: str = "AP"
    predicts: Literal["classes", "boxes"] = "boxes"

    def __init__(self, class_names: list[str], size_step: int, options: JsonObject):
        self.class_names = class_names
        self.size_step = size_step
        keywords = inspect.signature(postprocess).parameters.values()
        self.options = {key.name: key.default for key in keywords if key.kind is key.KEYWORD_ONLY} | options

    def collate(self, samples: list[Sample]) -> Batch:
        """Stack the pictures; their boxes become one list with the index of their picture. Predicting needs none."""
        boxes = [sample.target for sample in samples]
        learned = [truth.take(~truth.crowd) if isinstance(truth, Boxes) else None for truth in boxes]
        indexed = [(i, truth) for i, truth in enumerate(learned) if truth is not None and len(truth)]
        index = [torch.full((len(truth),), i) for i, truth in indexed]
        targets = BoxTargets(
            torch.cat([torch.zeros(0, 4), *(torch.from_numpy(truth.xyxy).float() for _, truth in indexed)]),
            torch.cat([torch.zeros(0, dtype=torch.int64), *(torch.from_numpy(truth.labels) for _, truth in indexed)]),
            torch.cat([torch.zeros(0, dtype=torch.int64), *index]),
        )
        return base_batch(samples, targets)

    def check_learnable(self) -> None:  # noqa: B027  # a task is learnable unless it says otherwise
        """Raise UsageError where no loss is for the network's outputs."""

    def start_training(self, labels: np.ndarray) -> None:
        """See `types.Task`."""
        self.check_learnable()

    @abc.abstractmethod
    def loss(self, outputs: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]: ...

    @abc.abstractmethod
    def decode(self, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return boxes_xyxy [B, N, 4] in input pixels, not clipped, and scores [B, N, K] in 0..1 of raw outputs."""
        ...

    @abc.abstractmethod
    def raw_shapes(self, size_hw: tuple[int, int]) -> dict[str, tuple[int, ...]]: ...

    def output_shapes(self, size_hw: tuple[int, int], stage: str = "raw") -> dict[str, tuple[int, ...]]:
        """Return name and shape of each output of one picture; see `types.Task`."""
        raw = self.raw_shapes(size_hw)
        if stage == "raw":
            return raw
        if stage == "decoded":
            boxes_xyxy, scores = self.decode([torch.empty(1, *shape, device="meta") for shape in raw.values()])
            return {"boxes_xyxy": tuple(boxes_xyxy.shape[1:]), "scores": tuple(scores.shape[1:])}
        most = self.options["max_detections"]
        return {"boxes_xyxy": (most, 4), "scores": (most,), "labels": (most,)}

    def postprocess(self, outputs: Sequence[Tensor], batch: Batch) -> list[Prediction]:
        """Return each picture's detections in pixels of the original.

        Args:
            outputs: raw; or boxes_xyxy [B, N, 4] in input pixels and scores [B, N, K]; or boxes_xyxy [B, D, 4],
                scores [B, D] and labels [B, D], -1 where there is none, after suppression in the graph.
        """
        tensors = [torch.as_tensor(output) for output in outputs]
        place, original_hw = batch.placement.to(tensors[0].device), batch.original_hw
        dimensions = [tensor.ndim for tensor in tensors]
        if dimensions == [3, 2, 2]:
            detections = _selected(tensors[0], tensors[1], tensors[2], place, original_hw)
        else:
            boxes_xyxy, scores = tensors if dimensions == [3, 3] else self.decode(tensors)
            detections = postprocess(boxes_xyxy, scores, place, original_hw, **self.options)
        return [
            Prediction(
                i, detection.labels.cpu().numpy(), detection.scores.cpu().numpy(), detection.boxes_xyxy.cpu().numpy()
            )
            for i, detection in zip(batch.ids.tolist(), detections, strict=True)
        ]

    def new_metric(self) -> DetectMetric:
        return DetectMetric(self.class_names)


class Detect(BoxTask):
    """Object detection with the heads of YOLO networks, learned by YOLOv3's loss."""

    def __init__(
        self,
        class_names: list[str],
        heads: Sequence[Head],
        label_smoothing: float = 0.0,
        ignore_threshold: float = 0.7,
        **options: JsonValue,
    ):
        super().__init__(class_names, math.lcm(*(head.stride for head in heads)), options)
        self.heads = tuple(heads)
        self.label_smoothing = label_smoothing
        self.ignore_threshold = ignore_threshold

    def check_learnable(self) -> None:  # a task is learnable unless it says otherwise
        """Raise UsageError where a head's numbers are not those that the loss is for."""
        kinds = {head.kind for head in self.heads} - {"yolo"}
        if kinds:
            heads = "[region]" if "region" in kinds else "[yolo] with new_coords"
            raise UsageError(f"model: its heads are {heads}; only those of [yolo] without new_coords can be trained")

    def loss(self, outputs: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the loss of raw head maps and its parts, means over the batch's pictures.

        Raises:
            UsageError: as `check_learnable`.
        """
        self.check_learnable()
        boxes_xyxy, labels, image_index = batch.targets
        height, width = batch.images.shape[-2:]
        targets = assign_targets(
            boxes_xyxy,
            labels,
            image_index,
            image_size=(height, width),
            num_classes=len(self.class_names),
            heads=self.heads,
            label_smoothing=self.label_smoothing,
        )
        options: JsonObject = {"heads": self.heads, "iou_threshold": self.ignore_threshold}
        ignored = ignore_masks(outputs, boxes_xyxy, image_index, **options)
        return yolo_loss(outputs, targets, ignored)

    def decode(self, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return decode_heads(outputs, self.heads)

    def raw_shapes(self, size_hw: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """Return a map for each head, [anchors * (5 + K), H / stride, W / stride], head32_2 the second of stride 32."""
        shapes = {}
        for i, head in enumerate(self.heads):
            number = 1 + sum(earlier.stride == head.stride for earlier in self.heads[:i])
            channels = len(head.anchors_px) * (5 + len(self.class_names))
            shape = channels, size_hw[0] // head.stride, size_hw[1] // head.stride
            shapes[f"head{head.stride}" + (f"_{number}" if number > 1 else "")] = shape
        return shapes


def _selected(
    boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, placement: Tensor, original_hw: Tensor
) -> list[Detections]:
    """Return what a graph has selected, in original pixels, clipped to the picture."""
    detections = []
    moved = to_original(boxes_xyxy, placement)
    for boxes, score, label, (height, width) in zip(moved, scores, labels, original_hw.tolist(), strict=True):
        boxes = clip_boxes(boxes, (height, width))
        mask = (label >= 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        detections.append(Detections(boxes[mask], score[mask], label[mask]))
    return detections


def network_heads(recipe: Recipe) -> tuple[Head, ...]:
    """Return the heads of a recipe's network, none where it is no detector. Raises UsageError."""
    registry.bind("model", recipe.model, recipe.at("model"))
    return _heads(json.dumps(recipe.model))


@functools.lru_cache(maxsize=32)
def _heads(model: str) -> tuple[Head, ...]:
    with torch.device("meta"):  # its shape alone
        return tuple(getattr(registry.bind("model", json.loads(model))(), "heads", ()))


@register("loss", "detect")
def yolo(
    *,
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ignore_threshold: Annotated[float, Field(ge=0, le=1)] = 0.7,
) -> JsonObject:
    """Return the settings of the loss; `ignore_threshold`: see `yolo.ignore_masks`."""
    return {"label_smoothing": label_smoothing, "ignore_threshold": ignore_threshold}


@register("task")
def detect(
    class_names: list[str],
    recipe: Recipe,
    loss: JsonObject,
    *,
    score_threshold: float = 0.001,
    iou_threshold: float = 0.5,
    max_detections: int | None = 100,
    multi_label: bool = False,
    box_rule: Literal["clip", "darknet", "mindspore"] = "clip",
    nms_kind: NmsKind = "default",
    nms_beta: Annotated[float, Field(gt=0)] = 0.6,
) -> Detect:
    """Build the detection task; its keys are those of `postprocess.postprocess`.

    Raises:
        UsageError: a threshold outside 0..1, or a network without heads for boxes.
    """
    for name, value in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
        if not 0 <= value <= 1:
            raise UsageError(f"{recipe.at('postprocess')(name)} must be in 0..1, not {value}")
    heads = network_heads(recipe)
    if not heads:
        name = recipe.model["name"]
        raise UsageError(f"{recipe.at('model')('name')} {name} gives no boxes; task detect needs a detector")
    return Detect(
        class_names,
        heads,
        **loss,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        multi_label=multi_label,
        box_rule=box_rule,
        nms_kind=nms_kind,
        nms_beta=nms_beta,
    )
