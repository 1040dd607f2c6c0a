"""A network of ours in another program's format, and the proof that its reader gives the same tensors back."""

import torch

from convzoo.convert import darknet, mindspore
from convzoo.convert.state_dict import ConvertedWeights, ExpectedWeights, resolve_model_spec

SUFFIXES = {"darknet": ".weights", "mindspore": ".ckpt"}


def encode(program: str, weights: ConvertedWeights) -> bytes:
    """Return the file of that program; Darknet's header is the one that the weights came with.

    Raises:
        UsageError: the program has no such network, or one that computes something else.
        ConvzooError: the tensors are not exactly the network's.
    """
    if program == "mindspore":
        return mindspore.write(weights.state_dict, weights.model)
    header = weights.header
    version = (header.get("major", 0), header.get("minor", 2), header.get("revision", 0))
    return darknet.write(weights.state_dict, weights.model, header.get("seen", 0), version)


def num_tensors_read_back(data: bytes, program: str, weights: ConvertedWeights) -> int | None:
    """Return how many tensors the program's file holds, read again, or None where one is not what was written."""
    read = mindspore.read if program == "mindspore" else darknet.read
    spec = resolve_model_spec(weights.model)
    again = read(data, ExpectedWeights(spec["name"], spec["num_classes"]))
    pairs = ((again.state_dict[row.name], weights.state_dict[row.name].float()) for row in again.table)
    return len(again.table) if all(torch.equal(*pair) for pair in pairs) else None
