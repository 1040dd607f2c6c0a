"""Compare a converted network with the library that its weights come from, on random input."""

import importlib
from typing import Any

import torch
from torch import nn

from convzoo.errors import MissingPackageError
from convzoo.weights.converted import Converted, network

# By the first word of `Converted.source`.
LIBRARIES = {"torchvision": "torchvision.models", "timm": "timm.models"}


def source_network(converted: Converted) -> nn.Module | None:
    """Build the source library's network with the file's weights, or return None where no library has it.

    Raises:
        MissingPackageError: the library is not installed.
    """
    library = converted.source.split()[0]
    if library not in LIBRARIES:
        return None
    try:
        models: Any = importlib.import_module(LIBRARIES[library])
    except ImportError:
        raise MissingPackageError(f"checking against {library} needs it: install convzoo[zoos]") from None
    name = converted.model["name"] + ("_bn" if converted.model.get("batch_norm") else "")
    with torch.device("meta"):
        theirs = getattr(models, name)(num_classes=converted.model["num_classes"])
    # The first DenseNet files have old names; ours are torchvision's present ones.
    has_our_names = converted.model["name"] == "densenet121"
    ours = {row.name if has_our_names else row.source: converted.state_dict[row.name] for row in converted.table}
    state_dict = {
        key: torch.tensor(0) if key.endswith("num_batches_tracked") else ours[key].reshape(expected.shape)
        for key, expected in theirs.state_dict().items()
    }
    theirs.load_state_dict(state_dict, assign=True)
    return theirs.eval()


def difference_from_source(converted: Converted, size_px: int = 224, seed: int = 0) -> float | None:
    """Return max|ours - theirs| / max|theirs| over the logits of a random picture, or None where there is no source.

    Raises:
        MissingPackageError: the source library is not installed.
    """
    theirs = source_network(converted)
    if theirs is None:
        return None
    images = torch.rand(1, 3, size_px, size_px, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        logits, wanted = network(converted)(images), theirs(images)
    return float((logits - wanted).abs().max() / wanted.abs().max())
