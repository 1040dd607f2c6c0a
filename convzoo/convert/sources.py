"""Weights by file or by name: our model files, foreign files, and what torchvision, timm and Darknet's site publish.

A name is LIBRARY:NAME, such as `timm:densenet121.ra_in1k`, `torchvision:DenseNet121_Weights.IMAGENET1K_V1` or
`darknet:tiny.weights`. It goes to the network, and only when that was asked for; torchvision's and Darknet's files are
kept in torch.hub's folder, timm's in the Hugging Face cache.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch

from convzoo.config.registry import nearest
from convzoo.convert import presets, published, torch_zoos
from convzoo.convert.readers import kind_of, read
from convzoo.convert.state_dict import ANY, CfgFile, ConvertedWeights, ExpectedWeights, Origin, model_label, one_line
from convzoo.errors import ConvzooError, MissingPackageError, UsageError
from convzoo.files import file_sha256
from convzoo.model_file import ModelInfo, load_model, tensors_sha256
from convzoo.storage import local_path

LIBRARIES = ("torchvision", "timm", "darknet")
WEIGHT_SUFFIXES = (".weights", ".ckpt", ".pth", ".pt", ".pth.tar")  # of other programs; content tells them apart
TORCHVISION_ENUMS = ("VGG16_Weights", "VGG16_BN_Weights", "DenseNet121_Weights")
TIMM_NETWORKS = ("vgg16", "vgg16_bn", "densenet121", "darknet53")


@dataclass(frozen=True)
class WeightSource:
    """Weights, and where they come from.

    Attributes:
        name: the file's name, or LIBRARY:NAME.
        path: the file, None for what a library gave.
        sha256: of the file; of the tensors where there is no file.
        licence: of the weights, where known.
        info: what a model file of ours says of itself, None for foreign weights.
    """

    name: str
    path: Path | None
    sha256: str
    converted: ConvertedWeights
    licence: str | None = None
    info: ModelInfo | None = None


def is_remote(source: str | Path) -> bool:
    """Tell whether this is LIBRARY:NAME rather than a file."""
    library, colon, _ = str(source).partition(":")
    return bool(colon) and library in LIBRARIES


def is_own(path: Path) -> bool:
    """Tell whether a file is a model file of ours, by its content."""
    if not path.is_file():
        return False
    try:
        with safetensors.safe_open(path, "pt") as file:
            return "convzoo" in (file.metadata() or {})
    except (safetensors.SafetensorError, OSError, ValueError):
        return False


def open_source(source: str | Path, expected: ExpectedWeights = ANY, download: bool = False) -> WeightSource:
    """Read weights of any kind.

    Raises:
        UsageError: no such file or name, or a name without `download`.
        ConvzooError: an unreadable, damaged or mismatching file, or the network does not answer.
        MissingPackageError: the library is not installed.
    """
    if is_remote(source):
        return _fetch(str(source), expected, download)
    path = local_path(source)
    if is_own(path):
        return _open_own(path, expected)
    converted = read(path, expected)
    return _from_file(path.name, path, converted)


def source_sha256(source: str | Path, download: bool = False) -> str:
    """Return the SHA-256 of a file, or of the tensors that a library gives. Raises as `open_source`."""
    if is_remote(source):
        return open_source(source, download=download).sha256
    path = local_path(source)
    if not path.is_file():
        raise UsageError(f"{source}: no such file")
    return file_sha256(path)


def _open_own(path: Path, expected: ExpectedWeights) -> WeightSource:
    tensors, info, _ = load_model(path)
    model = info.recipe["model"]
    expected.require(str(path), model)
    converted = ConvertedWeights(
        origin="convzoo",
        source=f"convzoo model file: {model_label(model)}",
        model=model,
        state_dict=tensors,
        task=info.recipe["task"],
        transform=info.recipe["transform"],
        class_names=info.class_names,
        header=info.provenance.get("header") or {},
        cfg=CfgFile(**info.provenance["cfg"]) if "cfg" in info.provenance else None,
    )
    return WeightSource(path.name, path, file_sha256(path), converted, info.licence, info)


def _from_file(name: str, path: Path, converted: ConvertedWeights) -> WeightSource:
    sha256 = file_sha256(path)
    entry = published.of_file(sha256)
    return WeightSource(name, path, sha256, converted, entry.licence if entry else None)


def _fetch(source: str, expected: ExpectedWeights, download: bool) -> WeightSource:
    library, _, name = source.partition(":")
    if not download:
        raise UsageError(f"{source}: comes from the network, which is used only when asked for")
    fetch: Callable[[str, ExpectedWeights], WeightSource] = {
        "torchvision": _from_torchvision,
        "timm": _from_timm,
        "darknet": _from_darknet,
    }[library]
    return fetch(name, expected)


def _unreachable(source: str, error: Exception) -> ConvzooError:
    return ConvzooError(f"{source}: cannot be fetched: {one_line(getattr(error, 'reason', error))}")


def _from_torchvision(name: str, expected: ExpectedWeights) -> WeightSource:
    import torchvision

    source = f"torchvision:{name}"
    enum, _, member = name.partition(".")
    known_names = published.names("torchvision")
    if enum not in TORCHVISION_ENUMS or member not in getattr(torchvision.models, enum).__members__:
        raise UsageError(f"{source}: no weights of that name for a network that is here{nearest(source, known_names)}")
    weights: Any = torchvision.models.get_weight(name)  # Any: one of many enumerations
    try:
        tensors = weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError) as error:  # a URLError is an OSError; a wrong hash a RuntimeError
        raise _unreachable(source, error) from None
    converted = _named(torch_zoos.convert(tensors, source, expected), source, "torchvision")
    preset = weights.transforms()
    resize = {"size_px": preset.resize_size[0], "mode": "short_side", "interpolation": preset.interpolation.value}
    converted.transform = presets.crop_transform(
        {**resize, "antialias": True}, preset.crop_size[0], tuple(preset.mean), tuple(preset.std)
    )
    entry = published.find(source)
    return WeightSource(
        source, None, tensors_sha256(converted.state_dict), converted, entry.licence if entry else published.TORCHVISION
    )


def _from_timm(name: str, expected: ExpectedWeights) -> WeightSource:
    source = f"timm:{name}"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is imported
    try:
        import timm
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
    except ImportError:
        raise MissingPackageError(f"{source} comes through timm: install convzoo[zoos]") from None
    networks = [full for network in TIMM_NETWORKS for full in (network, *timm.list_pretrained(f"{network}.*"))]
    if name not in networks:
        raise UsageError(f"{source}: no weights of that name for a network that is here{nearest(name, networks)}")
    cfg: Any = timm.get_pretrained_cfg(name)  # Any: an optional library
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports every retry
    cached = try_to_load_from_cache(cfg.hf_hub_id, "model.safetensors")
    try:
        path = cached if isinstance(cached, str) else hf_hub_download(cfg.hf_hub_id, "model.safetensors")
    except Exception as error:  # huggingface_hub's own errors and those of its HTTP client share no base
        raise _unreachable(source, error) from None
    converted = _named(torch_zoos.read(Path(path), expected), source, "timm")
    size_px = cfg.input_size[-1]
    resize = {"size_px": int(size_px / cfg.crop_pct), "mode": "short_side", "interpolation": cfg.interpolation}
    converted.transform = presets.crop_transform({**resize, "antialias": True}, size_px, cfg.mean, cfg.std)
    return WeightSource(
        f"timm:{cfg.architecture}.{cfg.tag}", None, tensors_sha256(converted.state_dict), converted, cfg.license
    )


def _named(converted: ConvertedWeights, source: str, library: Origin) -> ConvertedWeights:
    """Say whose weights they are, which a bare state dict cannot."""
    converted.origin = library
    converted.source = f"{source.replace(':', ' ', 1)}: {model_label(converted.model)}"
    converted.notes = [f"preprocessing: that of {library} for these weights"]
    return converted


def _from_darknet(name: str, expected: ExpectedWeights) -> WeightSource:
    source = f"darknet:{name}"
    entry = published.find(source)
    if entry is None:
        raise UsageError(f"{source}: no weights of that name{nearest(source, published.names('darknet'))}")
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(entry.source, str(path), entry.sha256, progress=False)
        except (OSError, RuntimeError) as error:
            raise _unreachable(source, error) from None
    if kind_of(path) != "darknet":
        raise ConvzooError(f"{path}: not a Darknet weight file; remove it and try again")
    converted = read(path, expected)
    return _from_file(source, path, converted)
