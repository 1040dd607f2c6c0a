"""Detection: boxes with classes, YOLOv3's loss, COCO's measures."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from convzoo.boxes import clip_boxes, to_original
from convzoo.config.recipe import Recipe
from convzoo.config.registry import register
from convzoo.data.loader import base_batch
from convzoo.errors import ConvzooError, UsageError
from convzoo.models.yolov3 import ANCHORS_PX, STRIDES
from convzoo.tasks.detect_metric import DetectMetric
from convzoo.tasks.postprocess import Detections, postprocess
from convzoo.tasks.yolo import assign_targets, decode, ignore_masks, yolo_loss
from convzoo.types import Batch, Boxes, BoxTargets, Prediction, Sample


class Detect:
    """Object detection with YOLOv3's heads.

    Crowds and boxes without area are not learned. `options` are `postprocess.postprocess`'s keywords.
    """

    best_metric = "AP"

    def __init__(
        self,
        class_names: list[str],
        anchors_px: Sequence[Any] = ANCHORS_PX,
        label_smoothing: float = 0.0,
        ignore_threshold: float = 0.7,
        **options: Any,
    ):
        self.class_names = class_names
        self.anchors_px = torch.tensor(anchors_px, dtype=torch.float32)
        self.label_smoothing = label_smoothing
        self.ignore_threshold = ignore_threshold
        self.options = options

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

    def loss(self, outputs: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the loss of raw head maps and its parts, means over the batch's pictures."""
        boxes_xyxy, labels, image_index = batch.targets
        where: dict[str, Any] = {"anchors_px": self.anchors_px.to(boxes_xyxy), "strides": STRIDES}
        height, width = batch.images.shape[-2:]
        targets = assign_targets(
            boxes_xyxy,
            labels,
            image_index,
            image_size=(height, width),
            num_classes=len(self.class_names),
            label_smoothing=self.label_smoothing,
            **where,
        )
        ignored = ignore_masks(outputs, boxes_xyxy, image_index, iou_threshold=self.ignore_threshold, **where)
        return yolo_loss(outputs, targets, ignored)

    def postprocess(self, outputs: Sequence[Tensor], batch: Batch) -> list[Prediction]:
        """Return each picture's detections in pixels of the original.

        Args:
            outputs: raw head maps; or boxes_xyxy [B, N, 4] in input pixels and scores [B, N, K]; or boxes_xyxy
                [B, D, 4], scores [B, D] and labels [B, D], -1 where there is none, after suppression in the graph.
        """
        tensors = [torch.as_tensor(output) for output in outputs]
        place, original_hw = batch.placement.to(tensors[0].device), batch.original_hw
        if len(tensors) == 3 and tensors[0].ndim == 3:
            detections = _selected(tensors[0], tensors[1], tensors[2], place, original_hw)
        elif len(tensors) == 2:
            detections = postprocess(tensors[0], tensors[1], place, original_hw, **self.options)
        elif len(tensors) == 3:
            boxes_xyxy, scores = decode(tensors, self.anchors_px, STRIDES)
            detections = postprocess(boxes_xyxy, scores, place, original_hw, **self.options)
        else:
            raise ConvzooError(f"{len(tensors)} outputs are not those of a detector")
        return [
            Prediction(
                i, detection.labels.cpu().numpy(), detection.scores.cpu().numpy(), detection.boxes_xyxy.cpu().numpy()
            )
            for i, detection in zip(batch.ids.tolist(), detections, strict=True)
        ]

    def new_metric(self) -> DetectMetric:
        return DetectMetric(self.class_names)


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


@register("task")
def detect(
    class_names: list[str],
    recipe: Recipe,
    *,
    score_threshold: float = 0.001,
    iou_threshold: float = 0.5,
    max_detections: int | None = 100,
    multi_label: bool = False,
    box_rule: Literal["clip", "darknet", "mindspore"] = "clip",
) -> Detect:
    """Build the detection task; its keys are those of `postprocess.postprocess`.

    Raises:
        UsageError: a threshold outside 0..1, or anchors that are not three for each of three scales.
    """
    for name, value in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
        if not 0 <= value <= 1:
            raise UsageError(f"{recipe.at('postprocess')(name)} must be in 0..1, not {value}")
    anchors_px = recipe.model.get("anchors_px") or ANCHORS_PX
    return Detect(
        class_names,
        anchors_px,
        recipe.loss.label_smoothing,
        recipe.loss.ignore_threshold,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        multi_label=multi_label,
        box_rule=box_rule,
    )
