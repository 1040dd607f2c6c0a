"""Foreign weights and ours: Darknet, MindSpore, torchvision and timm, dict -> dict, strict both ways."""

from pathlib import Path

from convzoo.convert import darknet, darknet_pair, mindspore, torch_zoos
from convzoo.convert.state_dict import ANY, ConvertedWeights, ExpectedWeights, network, require_file
from convzoo.errors import ConvzooError, UsageError

__all__ = ["kind_of", "network", "read"]

READERS = {
    "darknet": darknet_pair.read_alone,
    "mindspore": mindspore.read,
    "torch": torch_zoos.read,
    "safetensors": torch_zoos.read,
}


def read(path: Path, expected: ExpectedWeights = ANY) -> ConvertedWeights:
    """Read a foreign weight file, whose format its content tells.

    Raises:
        UsageError: no such file, an unknown network, or a `.cfg` that is not read or not of such weights.
        ConvzooError: none of the formats, damaged, or not exactly the tensors of one of the networks.
    """
    if expected.cfg is None:
        return READERS[kind_of(path)](path, expected)
    kind = kind_of(path, with_cfg=True)
    if kind != "darknet":
        raise UsageError(f"{path}: {kind} weights; a .cfg describes Darknet's alone")
    return darknet_pair.read(path, expected)


def kind_of(path: Path, with_cfg: bool = False) -> str:
    """Tell the format from the first bytes: darknet, mindspore, torch or safetensors.

    Args:
        with_cfg: there is a `.cfg` for it: a file of no known kind may be one of Darknet's first, of any version.
    Raises:
        UsageError: no such file.
        ConvzooError: none of them.
    """
    require_file(path)
    with open(path, "rb") as file:
        head = file.read(256)
    impostor = _impostor(head)
    if impostor:
        raise ConvzooError(f"{path}: {impostor}")
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "torch"
    if head[8:9] == b"{":
        return "safetensors"
    if mindspore.looks_like(head):
        return "mindspore"
    if darknet.looks_like(head) or with_cfg:
        return "darknet"
    raise ConvzooError(f"{path}: not a Darknet, MindSpore, PyTorch or safetensors weight file")


def _impostor(head: bytes) -> str | None:
    """Recognise by its first bytes what is often found in a weight file's place."""
    text = head.lstrip().lower()
    if not head:
        return "an empty file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "an HTML page, not a weight file; the download went wrong"
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself; run git lfs pull"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file, perhaps of Keras, which convzoo does not read"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
        return "a compressed file; unpack it first"
    return None
