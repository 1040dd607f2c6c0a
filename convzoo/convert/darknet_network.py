"""The weight file of any Darknet network: which tensors its `.cfg` puts where, read and written back.

Per layer with weights: biases, with batch norm (whose beta they are) scales, means and variances, then the weights; of
a fully connected layer the weights come before the scales. Every float belongs to a layer, or the file is refused.
Facts: github.com/pjreddie/darknet, src/parser.c, load_convolutional_weights and load_connected_weights.
"""

import math
import struct
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from convzoo.convert.darknet import Header, looks_like, read_header
from convzoo.convert.state_dict import StateDict, file_bytes, meta_network
from convzoo.errors import ConvzooError
from convzoo.models.darknet_cfg import Section
from convzoo.models.darknet_network import Network

OLDEST = 1000  # a version above this is none: the first files began with other numbers
STATISTICS = ("weight", "running_mean", "running_var")  # of a batch norm after its bias: scales, means, variances


class LayerTensors(NamedTuple):
    """A layer that has weights: its place in the `.cfg`, and its tensors' names and shapes in the file's order."""

    section: Section
    shapes: dict[str, tuple[int, ...]]

    @property
    def num_floats(self) -> int:
        return sum(map(math.prod, self.shapes.values()))


def darknet_layers(network: Network) -> list[LayerTensors]:
    """Return the layers that have weights, in the order of a weight file."""
    layers = []
    for layer, module in zip(network.cfg.layers, network.layers, strict=True):
        path, parts = f"layers.{layer.section.number}", dict(module.named_children())
        if not parts.keys() & {"conv", "linear"}:
            continue
        weights = "conv.weight" if "conv" in parts else "linear.weight"
        biases = "norm.bias" if "norm" in parts else weights.replace("weight", "bias")
        statistics = [f"norm.{name}" for name in STATISTICS] if "norm" in parts else []
        names = [biases, *statistics, weights] if "conv" in parts else [biases, weights, *statistics]
        tensors = module.state_dict()
        layers.append(LayerTensors(layer.section, {f"{path}.{name}": tuple(tensors[name].shape) for name in names}))
    return layers


def load_weights(
    cfg_text: str, weights: bytes | memoryview | np.ndarray, where: str, partial: bool = False
) -> StateDict:
    """Read the weights of the network that a `.cfg` describes.

    Args:
        weights: the whole file; the tensors may be views of an array.
        where: the weight file's name, for messages.
        partial: the file may end with a layer before the last, as a backbone's does; of the others nothing is returned.
    Raises:
        UsageError: the `.cfg` is none that is read.
        ConvzooError: no weight file, or one with fewer or more floats than the network takes.
    """
    data = weights if isinstance(weights, np.ndarray) else file_bytes(weights)
    header = weights_header(data, where)
    network = _meta_network(cfg_text)
    num_floats, odd_bytes = divmod(len(data) - header.num_bytes, 4)
    if odd_bytes:
        raise ConvzooError(f"{where}: cut off: {len(data)} bytes do not end with a whole float")
    floats = torch.from_numpy(data[header.num_bytes :].view("<f4"))
    # What is no weight counts batches.
    state = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
    at = 0
    for section, shapes in (layers := darknet_layers(network)):
        if partial and 0 < at == num_floats:
            break
        for name, shape in shapes.items():
            end = at + math.prod(shape)
            if end > num_floats:
                needed = sum(layer.num_floats for layer in layers)
                raise ConvzooError(
                    f"{where}: too short for its .cfg: it ends in layer {section.number} [{section.name}] of line "
                    f"{section.line}, {num_floats} of {needed} floats"
                )
            state[name] = _oriented(floats[at:end], shape, name, header)
            at = end
    if at < num_floats:
        raise ConvzooError(f"{where}: too long for its .cfg: {num_floats - at} of {num_floats} floats are left")
    return state


def class_tensors(network: Network) -> list[str]:
    """Return the names of the tensors whose shape follows the number of classes: of the last layers with weights."""
    weighted = {layer.section.number: list(layer.shapes) for layer in darknet_layers(network)}
    names: dict[str, None] = {}
    for number in network.ends:
        while number >= 0 and number not in weighted:
            number = network.cfg.layers[number].sources[0]
        names |= dict.fromkeys(weighted.get(number, []))
    return list(names)


def dump_weights(state: Network | Mapping[str, Tensor], cfg_text: str, header: Header) -> bytes:
    """Write a weight file, the inverse of `load_weights`.

    Args:
        state: the network, or its state dict.
        header: version and images seen, as they are to stand in the file.
    Raises:
        UsageError: the `.cfg` is none that is read.
        ConvzooError: the tensors are not those of its network.
    """
    tensors = state.state_dict() if isinstance(state, nn.Module) else state
    parts = [struct.pack("<iiiq" if header.num_bytes == 20 else "<iiii", *header[:4])]
    for layer in darknet_layers(_meta_network(cfg_text)):
        for name, shape in layer.shapes.items():
            if name not in tensors or tuple(tensors[name].shape) != shape:
                raise ConvzooError(f"the network to write has no '{name}' {list(shape)}: it is not that of its .cfg")
            tensor = tensors[name].detach().cpu()
            parts.append(
                (tensor.T if _is_transposed(name, header) else tensor).contiguous().numpy().astype("<f4").tobytes()
            )
    return b"".join(parts)


def _meta_network(cfg_text: str) -> Network:
    network = meta_network({"name": "darknet", "cfg": cfg_text})
    assert isinstance(network, Network)
    return network


def weights_header(data: np.ndarray, where: str) -> Header:
    """Read the header, also of the oldest files, whose version is above 1000 and whose `seen` takes 4 bytes.

    Raises:
        ConvzooError: anything but one.
    """
    if len(data) >= 16 and not looks_like(data[:12].tobytes()):
        major, minor, revision, seen = struct.unpack("<iiii", data[:16].tobytes())
        if max(major, minor) > OLDEST:
            return Header(major, minor, revision, seen, 16)
    return read_header(data, where)


def _is_transposed(name: str, header: Header) -> bool:
    return name.endswith("linear.weight") and max(header.major, header.minor) > OLDEST


def _oriented(floats: Tensor, shape: tuple[int, ...], name: str, header: Header) -> Tensor:
    """Return a tensor of the file in its shape; very old files have the weights of connected layers input by input."""
    return floats.view(shape[::-1]).T if _is_transposed(name, header) else floats.view(shape)
