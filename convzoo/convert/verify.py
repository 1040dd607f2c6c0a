"""Compare converted weights with where they come from: the source library, outputs beside the file, the file itself."""

import importlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from convzoo.convert import writers
from convzoo.convert.state_dict import ConvertedWeights, network
from convzoo.errors import MissingPackageError, ToleranceError, UsageError

TOLERANCE = 1e-4  # relative

LIBRARIES = {"torchvision": "torchvision.models", "timm": "timm.models"}


def source_network(converted: ConvertedWeights) -> nn.Module | None:
    """Build the source library's network with the file's weights, or return None where no library has it.

    Raises:
        MissingPackageError: the library is not installed.
    """
    library = converted.origin
    if library not in LIBRARIES:
        return None
    try:
        models = importlib.import_module(LIBRARIES[library])
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


def difference_from_source(converted: ConvertedWeights, size_px: int = 224, seed: int = 0) -> float | None:
    """Return max|ours - theirs| / max|theirs| over the logits of a random picture, or None where there is no source.

    Raises:
        MissingPackageError: the source library is not installed.
    """
    theirs = source_network(converted)
    if theirs is None:
        return None
    images = torch.rand(1, 3, size_px, size_px, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        logits, expected = network(converted)(images), theirs(images)
    return float((logits - expected).abs().max() / expected.abs().max())


class Check(NamedTuple):
    """What was compared, and max|a - b| / max|b|; None where nothing could be compared."""

    what: str
    difference: float | None


def checks(converted: ConvertedWeights, path: Path | None) -> list[Check]:
    """Compare the network with its source in every way there is.

    Args:
        path: the weight file; `input.npy` and `output.npy` beside it are outputs that come with it.
    Raises:
        ToleranceError: a difference of more than 1e-4, or a file that cannot be written again as it was.
        MissingPackageError: the source library is not installed.
    """
    ran = []
    if path is not None and (path.parent / "input.npy").is_file() and (path.parent / "output.npy").is_file():
        ran.append(_outputs_beside(converted, path.parent))
    difference = difference_from_source(converted, _size_px(converted))
    if difference is not None:
        ran.append(Check(f"{converted.origin}'s own network on random input", difference))
    for what, difference in ran:
        if difference is None or not difference <= TOLERANCE:
            raise ToleranceError(f"{converted.source}: {difference:.1e} from {what}, more than {TOLERANCE:g} relative")
    if not ran:
        ran.append(
            Check("not run against its source: no library here runs such a file, no outputs lie beside it", None)
        )
    if path is not None and converted.origin in writers.SUFFIXES:
        ran.append(_written_again(converted, path))
    return ran


def _size_px(converted: ConvertedWeights) -> int:
    operations = converted.transform["eval"] if converted.transform else []
    sizes = [keys["size_px"] for operation in operations for keys in operation.values() if "size_px" in keys]
    return sizes[-1] if sizes else 224


def _outputs_beside(converted: ConvertedWeights, folder: Path) -> Check:
    images, expected = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("input", "output"))
    what = "the outputs beside the file"
    with torch.no_grad():
        outputs = network(converted)(images) if images.dim() == 4 and images.shape[1] == 3 else None
    if not isinstance(outputs, torch.Tensor) or outputs.shape != expected.shape:
        return Check(f"{what}, which are not of this network", float("inf"))
    return Check(what, float((outputs - expected).abs().max() / expected.abs().max()))


def _written_again(converted: ConvertedWeights, path: Path) -> Check:
    """Write the file again from our tensors; it must come out as it was, or at least read back as the same tensors."""
    try:
        data = writers.encode(converted.origin, converted)
    except UsageError as error:
        return Check(f"not written again: {error}", None)
    if np.array_equal(np.frombuffer(data, np.uint8), np.memmap(path, np.uint8, "r")):
        return Check("written again: byte for byte the same file", 0.0)
    # A Darknet file has one layout; a checkpoint's records may come in any order.
    if converted.origin == "darknet" or writers.num_tensors_read_back(data, converted.origin, converted) is None:
        raise ToleranceError(f"{path}: written again from the converted tensors it is another file")
    return Check("written again and read back: every tensor the same", 0.0)
