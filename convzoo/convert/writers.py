"""A network of ours in another program's format, and the proof that its reader gives the same tensors back."""

import torch

from convzoo.convert import darknet, darknet_own, darknet_pair, mindspore
from convzoo.convert.darknet_network import dump_weights, load_weights
from convzoo.convert.state_dict import ConvertedWeights, ExpectedWeights, resolve_model_spec
from convzoo.errors import ToleranceError
from convzoo.models.darknet_layers import read_cfg

SUFFIXES = {"darknet": ".weights", "mindspore": ".ckpt"}


def encode(program: str, weights: ConvertedWeights) -> bytes:
    """Return the file of that program; Darknet's header is the one that the weights came with.

    Raises:
        UsageError: the program has no such network, or one that computes something else.
        ConvzooError: the tensors are not exactly the network's.
    """
    if program == "mindspore":
        return mindspore.write(weights.state_dict, weights.model)
    header = header_of(weights)
    if weights.model["name"] == "darknet":
        return dump_weights(weights.state_dict, weights.model["cfg"], header)
    return darknet.write(weights.state_dict, weights.model, header.seen, header[:3])


def header_of(weights: ConvertedWeights) -> darknet.Header:
    """Return the header that the weights came with, else one whose revision says how their pictures get their size."""
    if weights.header.get("num_bytes"):
        return darknet.Header(*(weights.header[key] for key in darknet.Header._fields))
    operations = weights.transform["eval"] if weights.transform else []
    stretches = any("resize" in operation and operation["resize"].get("mode") == "stretch" for operation in operations)
    return darknet.Header(0, 2, darknet_pair.STRETCHING if stretches else 0, 0, 20)


def cfg_bytes(weights: ConvertedWeights, trained_hw: tuple[int, int] | None) -> bytes:
    """Return the `.cfg` that belongs to a file for Darknet: the one that the weights came with, else one written anew.

    Args:
        trained_hw: (height, width) of the network's pictures, where its transform does not give them.
    Raises:
        ToleranceError: read back, it is another network.
    """
    if weights.cfg is not None:
        return weights.cfg.encoded()
    if weights.model["name"] == "darknet":
        return weights.model["cfg"].encode()
    operations = weights.transform["eval"] if weights.transform else []
    sizes = [keys["size_px"] for operation in operations for keys in operation.values() if "size_px" in keys]
    size = sizes[-1] if sizes else trained_hw or darknet.input_px(weights.model["name"])
    text = darknet_own.model_cfg(
        weights.model,
        (size, size) if isinstance(size, int) else (size[0], size[1]),
        letter_box=any("letterbox" in operation for operation in operations),
    )
    again, spec = darknet_own.own_model(read_cfg(text)), resolve_model_spec(weights.model)
    if again is None or any(spec[key] != value for key, value in resolve_model_spec(again).items() if key in again):
        raise ToleranceError(f"a .cfg written for {spec['name']} reads back as another network")
    return text.encode()


def num_tensors_read_back(data: bytes, program: str, weights: ConvertedWeights) -> int | None:
    """Return how many tensors the program's file holds, read again, or None where one is not what was written."""
    spec = resolve_model_spec(weights.model)
    if program == "darknet" and spec["name"] == "darknet":
        again = load_weights(spec["cfg"], memoryview(data), "the file written")
        names = [name for name, tensor in again.items() if tensor.dim()]
    elif program == "darknet":
        again = darknet.read_written(data, weights.model)
        names = list(again)
    else:
        converted = mindspore.read(data, ExpectedWeights(spec["name"], spec["num_classes"]))
        again, names = converted.state_dict, [row.name for row in converted.table]
    equal = all(torch.equal(again[name], weights.state_dict[name].float()) for name in names)
    return len(names) if equal else None
