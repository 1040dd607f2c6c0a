"""How far each layer of an INT8 network is from the float one: where the accuracy went."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from convzoo.deploy import library
from convzoo.deploy.quantize.schemes import WEIGHTED

PICTURES = 4


def layer_errors(format: str, before: Path, after: Path, images: Iterable[np.ndarray]) -> list[tuple[str, float]]:
    """Run both files on a few pictures and compare what every layer with weights gives out.

    Args:
        images: float32 [1, 3, H, W] each.
    Returns:
        the layers and their errors, worst first: the root mean square of the difference, relative to the float values'.
    """
    outputs = _openvino_layers if format == "openvino" else _onnx_layers
    floats, ints = outputs(before), outputs(after)
    squares: dict[str, list[float]] = {}
    for image, _ in zip(images, range(PICTURES), strict=False):
        float_outputs, int_outputs = floats(image), ints(image)
        for name in float_outputs.keys() & int_outputs.keys():
            a, b = int_outputs[name].astype(np.float64), float_outputs[name].astype(np.float64)
            sums = squares.setdefault(name, [0.0, 0.0])
            sums[0], sums[1] = sums[0] + float(((a - b) ** 2).sum()), sums[1] + float((b**2).sum())
    errors = [(name, (difference / max(size, 1e-30)) ** 0.5) for name, (difference, size) in squares.items()]
    return sorted(errors, key=lambda item: -item[1])


def shown(name: str) -> str:
    """Return a layer's name without what OpenVINO adds to it."""
    return name.removesuffix("/WithoutBiases")


def report(errors: list[tuple[str, float]]) -> str:
    """Return the errors as a table, worst first."""
    lines = [f"  {shown(name):40} {100 * error:7.2f} %" for name, error in errors]
    return "\n".join(["error of each layer's output, of its size (root mean square), worst first:", *lines])


def _openvino_layers(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    openvino = library("openvino", "the report")
    core = openvino.Core()
    model = core.read_model(path)
    nodes = [node for node in model.get_ops() if node.get_type_name() in WEIGHTED]
    own = len(model.outputs)
    model.add_outputs([node.output(0) for node in nodes])
    names = [node.get_friendly_name() for node in nodes]
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        outputs = compiled(image)
        return {name: outputs[own + i].copy() for i, name in enumerate(names)}

    return run


def _onnx_layers(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    onnx, runtime = library("onnx", "the report"), library("onnxruntime", "the report")
    model = onnx.load(path)
    names = {node.output[0]: node.name for node in model.graph.node if node.op_type in WEIGHTED}
    have = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(model.SerializeToString(), options)

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names.values(), session.run(list(names), {"images": image}), strict=True))

    return run
