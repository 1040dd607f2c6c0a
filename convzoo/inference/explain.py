"""Which parts of a picture speak for a class: LayerCAM (Jiang et al. 2021, doi:10.1109/TIP.2021.3089943).

The heat of a feature map is its activations, each weighted by the positive part of the gradient of the class's score
there, summed over the channels (equations 5 to 7 of the paper).
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convzoo.boxes import pairwise_iou, to_input
from convzoo.data.transforms.pipeline import normalize
from convzoo.errors import UsageError
from convzoo.inference.answers import Answer, unique_name
from convzoo.inference.loaded import LoadedModel
from convzoo.inference.torch_model import TorchModel
from convzoo.report.draw import heated, save_png
from convzoo.types import Batch, ExplainedPicture, Key, Pictures, Sample, Task, WorstPicture

LONGEST_PX = 512  # side of a heat map
MIN_CELLS = 4  # on each side of a feature map that shows anything


def explain(
    opened: LoadedModel, image: Tensor, label: int | None = None, box_xyxy: tuple[float, ...] | None = None
) -> np.ndarray:
    """Return how much each part of a picture speaks for a class.

    Args:
        image: [3, H, W] uint8 RGB.
        label: index of the class; of a classifier None for the best.
        box_xyxy: of a detector, the detection that is meant, in pixels of the picture; None for the class's best.
    Returns:
        heat: [h, w] float32 in 0..1, the whole picture, its longer side at most LONGEST_PX. 0 everywhere: nothing.
    Raises:
        UsageError: the model is no PyTorch network, or it has no such class.
    """
    opened = explainable(opened)
    if label is not None and not 0 <= label < len(opened.class_names):
        raise UsageError(f"class {label}: the model has {len(opened.class_names)}")
    task, height_width = opened.task(), (image.shape[1], image.shape[2])
    sample = Sample(image, 0, 0, str(opened.path), height_width)
    batch = task.collate([opened.pipeline()(sample, Key(0, 0))])
    box = None if box_xyxy is None else to_input(torch.tensor([box_xyxy], dtype=torch.float32), batch.placement[0])[0]
    device = next(opened.model.parameters()).device
    x = normalize(batch.images.to(device), opened.recipe.transform.mean, opened.recipe.transform.std)
    heat = layer_cam(opened.model, x, lambda outputs: _score(task, outputs, label, box))
    return _in_picture(heat.float().cpu(), batch, height_width)


def explainable(opened: LoadedModel) -> TorchModel:
    """Return the model, which can be explained. Raises UsageError: it is no PyTorch network."""
    if isinstance(opened, TorchModel):
        return opened
    raise UsageError(f"{opened.path}: has no gradients; an explanation takes the model file it was exported from")


def explain_worst(opened: LoadedModel, worst: Sequence[WorstPicture], dataset: Pictures) -> list[ExplainedPicture]:
    """Return what speaks for the worst mistakes of an evaluation.

    Of a classifier each picture twice, for the class that was said and for the true one; of a detector for the best of
    its false boxes, or where it has none for the first object that it missed.

    Args:
        dataset: what was evaluated; its pictures are loaded by their ids.
    Raises:
        UsageError: as `explain`.
    """
    explained = []
    for picture in worst:
        image = dataset.load(picture.id).image
        for name, box, is_true in _mistakes(picture):
            heat = explain(opened, image, opened.class_names.index(name), box)
            pixels = np.asarray(heated(image.permute(1, 2, 0).numpy(), heat))
            explained.append(ExplainedPicture(picture, pixels, name, is_true))
    return explained


def _mistakes(picture: WorstPicture) -> Iterator[tuple[str, tuple[float, ...] | None, bool]]:
    """Yield the class to explain, a detector's box, and whether the picture shows it there."""
    if picture.classes is not None:
        answer, truth = picture.classes
        yield answer, None, False
        yield truth, None, True
    elif picture.boxes is not None:
        boxes = picture.boxes
        false = [i for i, right in enumerate(boxes.is_right) if not right]
        missed = [i for i, was_found in enumerate(boxes.truth_found) if not was_found]
        if false:
            yield boxes.names[false[0]], tuple(boxes.boxes_xyxy[false[0]].tolist()), False
        elif missed:
            yield boxes.truth_names[missed[0]], tuple(boxes.truth_xyxy[missed[0]].tolist()), True


def save_explained(answers: Iterable[Answer], folder: Path, opened: LoadedModel) -> Iterator[Answer]:
    """Pass answers on and write each picture with the heat of its best class, or best box, as PICTURE.png.

    Raises:
        UsageError: as `explain`; a picture in which nothing was detected is left out.
    """
    used_names: dict[str, int] = {}
    for answer in answers:
        if answer.labels:
            box = None if answer.boxes_xyxy is None else tuple(answer.boxes_xyxy[0].tolist())
            heat = explain(opened, torch.from_numpy(answer.image).permute(2, 0, 1), answer.labels[0], box)
            save_png(heated(answer.image, heat), folder / f"{unique_name(answer, used_names)}.png")
        yield answer


def layer_cam(
    network: nn.Module, x: Tensor, score: Callable[[tuple[Tensor, ...]], tuple[Tensor, Tensor | None]]
) -> Tensor:
    """Return the heat [h, w] in 0..1 of the last feature map that the score depends on as a whole.

    That is for a classifier its last map of at least MIN_CELLS a side. A detector's score comes from one cell of its
    last maps: there it is the last one of which so many cells count that they reach over the whole box.

    Args:
        x: [1, 3, H, W], normalised.
        score: gives of the raw outputs the number to be explained, and of a detector its box [4] in input pixels.
    """
    with torch.enable_grad(), _feature_maps(network) as maps:
        outputs = network(x.requires_grad_())
        number, box = score(outputs if isinstance(outputs, tuple) else (outputs,))
        maps = [feature for feature in maps if feature.requires_grad and min(feature.shape[2:]) >= MIN_CELLS]
        gradients = torch.autograd.grad(number, maps, allow_unused=True)
    heat = torch.zeros(x.shape[2:])
    for feature, gradient in zip(reversed(maps), reversed(gradients), strict=True):
        if gradient is None or not (gradient != 0).any():
            continue
        heat = (gradient[0].clamp(min=0) * feature[0].detach()).sum(0).clamp(min=0)
        if heat.any() and _sees(gradient[0], box, (x.shape[2], x.shape[3])):
            break
    return heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)


@contextlib.contextmanager
def _feature_maps(network: nn.Module) -> Iterator[list[Tensor]]:
    """Give a list that a forward pass fills with the maps [1, C, h, w] of its innermost modules, in order."""
    maps: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            maps.append(output)

    hooks = [module.register_forward_hook(keep) for module in network.modules() if not any(module.children())]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def _sees(gradient: Tensor, box: Tensor | None, input_hw: tuple[int, int]) -> bool:
    """Tell whether the cells with a gradient reach over a box, cut to the input; without one, over most of the map."""
    rows, columns = (gradient != 0).any(0).nonzero().unbind(1)
    step_y, step_x = input_hw[0] / gradient.shape[1], input_hw[1] / gradient.shape[2]
    width, height = (int(c.max() - c.min() + 1) for c in (columns, rows))
    if box is None:
        return width * height >= 0.5 * gradient[0].numel()
    limits = torch.tensor([input_hw[1], input_hw[0]] * 2)
    x1, y1, x2, y2 = torch.minimum(box.detach().cpu().clamp(min=0), limits).tolist()
    return width * step_x >= min(x2 - x1, input_hw[1]) and height * step_y >= min(y2 - y1, input_hw[0])


def _score(
    task: Task, outputs: tuple[Tensor, ...], label: int | None, box: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the number that stands for a class, and the box that has it."""
    if task.predicts == "classes":
        logits = outputs[0][0]
        return logits[logits.argmax() if label is None else label], None
    # In float64, where a score that is nearly 1 still has a slope.
    boxes, scores = (part[0] for part in task.decode(tuple(output.double() for output in outputs)))
    best = scores if label is None else scores[:, [label]]
    if box is not None:
        best = best * pairwise_iou(boxes.detach(), box[None].to(boxes))
    candidate, column = divmod(int(best.argmax()), best.shape[1])
    number = scores[candidate, column if label is None else label]
    return number.clamp(min=torch.finfo(number.dtype).tiny).log(), boxes[candidate]


def _in_picture(heat: Tensor, batch: Batch, height_width: tuple[int, int]) -> np.ndarray:
    """Return the heat of the network's input as that of the picture, which lies in it as the batch says."""
    scale = min(1.0, LONGEST_PX / max(height_width))
    height, width = (max(1, round(scale * side)) for side in height_width)
    scale_x, scale_y, offset_x, offset_y = batch.placement[0].tolist()
    input_height, input_width = batch.images.shape[2:]
    # Where each point of the picture lies in the input, -1..1 from edge to edge, as `grid_sample` counts.
    x = ((torch.arange(width) + 0.5) / width * height_width[1] * scale_x + offset_x) / input_width * 2 - 1
    y = ((torch.arange(height) + 0.5) / height * height_width[0] * scale_y + offset_y) / input_height * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
    moved = F.grid_sample(heat[None, None], grid, mode="bicubic", padding_mode="border", align_corners=False)[0, 0]
    inside = (grid.abs() <= 1).all(-1)[0]  # what a crop cut off says nothing
    return (moved.clamp(0, 1) * inside).numpy()
