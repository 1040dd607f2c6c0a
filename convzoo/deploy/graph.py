"""The network as it is exported: preprocessing before it and decoding and suppression after it, where asked for."""

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator

import torch
import torch.fx
import torch.fx.experimental._config as symbolic_config
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from convzoo.data.transforms.pipeline import normalize
from convzoo.deploy.metadata import ExportInfo
from convzoo.errors import UsageError
from convzoo.inference.torch_model import TorchModel
from convzoo.plain import JsonObject
from convzoo.tasks.postprocess import FAR_PX

FUSIONS: dict[tuple[type, type], Callable[..., nn.Module]] = {
    (nn.Conv2d, nn.BatchNorm2d): fuse_conv_bn_eval,
    (nn.Linear, nn.BatchNorm1d): fuse_linear_bn_eval,
}

# boxes_xyxy [B, N, 4], scores [B, K, N], most of a class, IoU and score thresholds -> (image, class, box) [M, 3] int64
Suppress = Callable[[Tensor, Tensor, int, float, float], Tensor]


class Deployed(nn.Module):
    """images, float32 [B, 3, H, W] normalised or uint8 [B, H, W, 3] RGB -> a tuple of outputs.

    Outputs of each stage: `types.Runner` and `Detect.postprocess` say what they hold.
    """

    def __init__(self, opened: TorchModel, info: ExportInfo, suppress: Suppress):
        super().__init__()
        self.network = folded(opened.model)
        self.info = info
        self.mean, self.std = opened.recipe.transform.mean, opened.recipe.transform.std
        self.suppress = suppress
        self.task = opened.task()
        self.options = self.task.options

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.info.input == "uint8_nhwc":
            images = normalize(images.permute(0, 3, 1, 2), self.mean, self.std)
        outputs = self.network(images)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if self.info.stage == "raw":
            return outputs
        boxes_xyxy, scores = self.task.decode(outputs)
        if self.info.stage == "decoded":
            return boxes_xyxy, scores
        return self._detections(boxes_xyxy, scores)

    def _detections(self, boxes_BN4: Tensor, scores_BNK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best D boxes [B, D, 4], scores [B, D] and labels [B, D], -1 for padding."""
        most, num_classes = self.options["max_detections"], scores_BNK.shape[2]
        boxes_BN4 = boxes_BN4.clamp(-FAR_PX, FAR_PX)
        label = scores_BNK.argmax(2)
        if not self.options["multi_label"]:
            is_best = torch.arange(num_classes, device=label.device) == label[..., None]
            scores_BNK = torch.where(is_best, scores_BNK, -1.0)
        thresholds = self.options["iou_threshold"], self.options["score_threshold"]
        image, class_, box = self.suppress(boxes_BN4, scores_BNK.transpose(1, 2), most, *thresholds).unbind(1)
        # One slot a box, or one a box and class where a box may be several; the scores of what survived go there.
        slots = num_classes if self.options["multi_label"] else 1
        per_image = scores_BNK.shape[1] * slots
        where = image * per_image + box * slots + (class_ if slots > 1 else 0)
        slot_scores = torch.zeros(scores_BNK.shape[0] * per_image, device=label.device)
        slot_scores = slot_scores.index_put((where,), scores_BNK[image, box, class_]).unflatten(0, (-1, per_image))
        score, order = F.pad(slot_scores, (0, most)).topk(most)
        order = order.clamp(max=per_image - 1)
        box, is_real = order // slots, score > 0
        labels = order % slots if slots > 1 else label.gather(1, box)
        boxes = boxes_BN4.gather(1, box[..., None].expand(-1, -1, 4))
        return boxes * is_real[..., None], score, torch.where(is_real, labels, -1)


def check_suppression(options: JsonObject) -> None:
    """Raise UsageError for settings of the post-processing that a graph cannot have."""
    if options["max_detections"] is None:
        raise UsageError("--stage nms: postprocess.max_detections must be a number, the graph's outputs have that size")
    if options["box_rule"] != "clip":
        raise UsageError(f"--stage nms: box_rule {options['box_rule']} needs the original picture; use --stage decoded")
    if options["nms_kind"] != "default":
        raise UsageError(f"--stage nms: a graph cannot suppress by nms_kind {options['nms_kind']}; use --stage decoded")


def folded(network: nn.Module) -> nn.Module:
    """Return a copy, in evaluation mode and contiguous, with batch norms folded into the layers they follow."""
    network = copy.deepcopy(network).cpu().eval().to(memory_format=torch.contiguous_format)
    modules = dict(network.named_modules())
    for node in torch.fx.symbolic_trace(network).graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if isinstance(before, torch.fx.Node) and before.op == "call_module" and len(before.users) == 1:
            layer, norm = modules[str(before.target)], modules[str(node.target)]
            fuse = FUSIONS.get((type(layer), type(norm)))
            if fuse:
                # In double precision, so that folding rounds once.
                network.set_submodule(str(before.target), fuse(layer.double(), norm.double()).float())
                network.set_submodule(str(node.target), nn.Identity())
    return network.requires_grad_(False)


def trace(deployed: Deployed) -> torch.export.ExportedProgram:
    """Trace with free dimensions as the info says. Raises UsageError where the network does not allow them."""
    info = deployed.info
    # Free dimensions are traced at values that are like no other, and as if 1 were nothing special.
    height, width = (2 * info.size_step, 3 * info.size_step) if info.dynamic_size else info.size
    batch = info.batch or 2
    if info.input == "uint8_nhwc":
        images, rows = torch.zeros(batch, height, width, 3, dtype=torch.uint8), 1
    else:
        images, rows = torch.zeros(batch, 3, height, width), 2
    free: dict[int, torch.export.Dim] = {} if info.batch else {0: torch.export.Dim("batch", min=1)}
    if info.dynamic_size:
        for axis, name in ((rows, "height"), (rows + 1, "width")):
            free[axis] = info.size_step * torch.export.Dim(name, min=1)
    from torch._dynamo.exc import UserError  # a second or two that running a file must not wait for

    with torch.no_grad(), quiet(), symbolic_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        try:
            return torch.export.export(deployed, (images,), dynamic_shapes=(free or None,))
        except (UserError, RuntimeError) as error:
            if not info.dynamic_size:
                raise
            why = str(error).strip().splitlines()[0]
            raise UsageError(f"--dynamic-size: this network takes one size only ({why})") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and logs of libraries, whose errors reach the user as one line anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
