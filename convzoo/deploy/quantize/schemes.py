"""Write INT8 networks from float ones, by NNCF or by ONNX Runtime: per channel, ranges fixed by calibration."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convzoo.deploy import format_module, library
from convzoo.deploy.graph import quiet
from convzoo.deploy.metadata import ExportInfo, first_line
from convzoo.deploy.quantize.calibration import Calibration
from convzoo.errors import ConvzooError
from convzoo.plain import Keywords

WEIGHTED = ("Conv", "Gemm", "MatMul", "Convolution", "GroupConvolution")


@dataclass(frozen=True)
class QuantizationScheme:
    """How a network is quantised.

    Attributes:
        tool: whose quantiser.
        preset: NNCF's: "performance" is symmetric, "mixed" has asymmetric activations.
        spares: what stays in float: nothing, the "ends" - the layers that give the outputs: the classifier, or a
            detector's heads - or also the three "worst", by the errors that the scheme before had.
        exact_bias: NNCF corrects each layer's bias by what the layers before really give, not by an estimate: slower.
    """

    tool: Literal["nncf", "onnxruntime", "amct"]
    preset: Literal["performance", "mixed"] = "mixed"
    spares: Literal["nothing", "ends", "worst"] = "nothing"
    exact_bias: bool = False

    def __str__(self) -> str:
        if self.tool == "amct":
            return "amct"  # which decides by itself
        preset = f" {self.preset}" if self.tool == "nncf" else ""
        return f"{self.tool}{preset}, {self.spares} in float{', exact bias' * self.exact_bias}"


# In the order in which they are tried, as measured (docs/deploy.md). Symmetric activations of a leaky ReLU waste half
# their range: Tiny Darknet lost 17 points so, and was no faster. ONNX Runtime runs what NNCF writes for it slower than
# float.
SCHEMES = {
    "openvino": [
        QuantizationScheme("nncf"),
        QuantizationScheme("nncf", spares="ends"),
        QuantizationScheme("nncf", spares="ends", exact_bias=True),
        QuantizationScheme("nncf", spares="worst", exact_bias=True),
        QuantizationScheme("nncf", "performance", exact_bias=True),
    ],
    "onnx": [
        QuantizationScheme("onnxruntime"),
        QuantizationScheme("onnxruntime", spares="ends"),
        QuantizationScheme("onnxruntime", spares="worst"),
        QuantizationScheme("nncf"),
        QuantizationScheme("nncf", spares="ends"),
    ],
}
WORST = 3
Feed = Callable[[np.ndarray], object]  # a picture -> what the network's runtime takes
Network = Any  # Any: an OpenVINO model or an ONNX ModelProto, as the format's optional library holds it


def quantised(
    source: Path, format: str, scheme: QuantizationScheme, calibration: Calibration, worst: Sequence[str] = ()
) -> Network:
    """Return the INT8 network as its library holds it.

    Args:
        source: the float network, as `export` wrote it.
        worst: layers, worst first, for a scheme that spares those.
    Raises:
        ConvzooError: the library fails on this network.
        MissingPackageError: the library is not installed.
    """
    try:
        with _silent():
            if format == "openvino":
                model: Network = library("openvino", "INT8 for OpenVINO").Core().read_model(source)
                return _by_nncf(
                    model, scheme, _spared(scheme, _ends_of_ir(model), worst), calibration, lambda image: image
                )
            model = library("onnx", "INT8 for ONNX").load(source)
            spared = _spared(scheme, _ends_of_onnx(model), worst)
            if scheme.tool == "nncf":
                return _by_nncf(model, scheme, spared, calibration, lambda image: {"images": image})
            return _by_onnxruntime(source, spared, calibration)
    except (ConvzooError, MemoryError, OSError):
        raise
    except Exception as error:
        raise ConvzooError(f"{scheme.tool} cannot quantise this network: {first_line(error)}") from error


def write(model: Network, format: str, info: ExportInfo, path: Path) -> list[Path]:
    """Write an INT8 network with its metadata; return the other files that belong to it. Raises OSError."""
    return format_module(format).save(model, info, path)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the progress bars of the libraries out of stdout, which is the result's."""
    with quiet(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _spared(scheme: QuantizationScheme, ends: list[str], worst: Sequence[str]) -> list[str]:
    more = worst[:WORST] if scheme.spares == "worst" else ()
    return [] if scheme.spares == "nothing" else list(dict.fromkeys([*ends, *more]))


def _by_nncf(
    model: Network, scheme: QuantizationScheme, spared: list[str], calibration: Calibration, feed: Feed
) -> Network:
    nncf = library("nncf", "INT8")
    options: Keywords = {"preset": nncf.QuantizationPreset(scheme.preset), "subset_size": len(calibration)}
    options["fast_bias_correction"] = not scheme.exact_bias
    if spared:
        options["ignored_scope"] = nncf.IgnoredScope(names=spared)
    return nncf.quantize(model, nncf.Dataset(calibration, feed), **options)


def _by_onnxruntime(source: Path, spared: list[str], calibration: Calibration) -> Network:
    tools = library("onnxruntime.quantization", "INT8 for ONNX")
    images = iter(calibration)

    class Reader(tools.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(images, None)
            return None if image is None else {"images": image}

    path = source.with_name("onnxruntime-int8.onnx")
    # 7 bits of weight: without VNNI the 8-bit product sums of two saturate, and the file may run on such a machine.
    tools.quantize_static(
        source,
        path,
        Reader(),
        per_channel=True,
        reduce_range=True,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
        calibrate_method=tools.CalibrationMethod.MinMax,
        nodes_to_exclude=spared,
    )
    model = library("onnx", "INT8 for ONNX").load(path)
    path.unlink()
    return model


def _ends_of_ir(model: Network) -> list[str]:
    """Return the names of the last layers with weights before each output of an OpenVINO network."""
    ends, seen, waiting = [], set(), [result.input_value(0).get_node() for result in model.get_results()]
    while waiting:
        node = waiting.pop()
        name = node.get_friendly_name()
        if name in seen:
            continue
        seen.add(name)
        if node.get_type_name() in WEIGHTED:
            ends.append(name)
        else:
            waiting += [port.get_source_output().get_node() for port in node.inputs()]
    return ends


def _ends_of_onnx(model: Network) -> list[str]:
    """Return the names of the last nodes with weights before each output of an ONNX graph."""
    producer = {name: node for node in model.graph.node for name in node.output}
    ends, seen, waiting = [], set(), [output.name for output in model.graph.output]
    while waiting:
        name = waiting.pop()
        node = producer.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type in WEIGHTED:
            ends.append(node.name)
        else:
            waiting += node.input
    return ends
