"""The weights that training starts from."""

from pathlib import Path

from torch import nn

from convzoo import distributed
from convzoo.config import recipe as recipes
from convzoo.config.recipe import Recipe
from convzoo.convert.darknet_network import class_tensors, darknet_layers, load_weights
from convzoo.convert.readers import kind_of
from convzoo.convert.sources import is_remote, open_source, source_sha256
from convzoo.convert.state_dict import (
    BACKBONE,
    TRAINING_KEYS,
    backbone_numerics,
    file_bytes,
    load_backbone,
    meta_network,
    resolve_model_spec,
)
from convzoo.errors import ConvzooError, UsageError
from convzoo.logs import log
from convzoo.model_file import first_mismatch
from convzoo.models.darknet_network import Network
from convzoo.plain import JsonObject
from convzoo.storage import local_path


def check_pretrained_hash(recipe: Recipe, weights: str | Path | None, download: bool = False) -> Recipe:
    """Return the recipe with the SHA-256 of the weights that training starts from.

    Of a file it is over its bytes, of what a library gives over the tensors.

    Raises:
        UsageError: no such weights, or others than the recipe names.
        ConvzooError: they cannot be read or fetched.
    """
    expected = recipe.train.weights_sha256
    if weights is None:
        if expected:
            raise UsageError(
                f"{recipe.at('train')('weights_sha256')} this recipe starts from weights {expected[:12]}...; name them",
                ("weights",),
            )
        return recipe
    try:
        # Rank 0 fetches, the others find it fetched.
        digest = distributed.gather_objects(source_sha256(weights, download) if distributed.rank() == 0 else "")[0]
    except UsageError as error:
        raise UsageError(str(error), ("weights",)) from None
    if expected and expected != digest:
        raise UsageError(
            f"{weights}: SHA-256 is {digest[:12]}..., {recipe.at('train')('weights_sha256')} {expected[:12]}...",
            ("weights",),
        )
    return recipes.with_overrides(recipe, [f"train.weights_sha256='{digest}'"])


def load_pretrained(
    model: nn.Module, recipe: Recipe, source: str | Path, class_names: list[str], download: bool = False
) -> None:
    """Load weights of any kind; the last layers only where they know the same classes in the same order.

    Weights of another network, or a part of one, give their backbone where this network has the same. A Darknet file is
    read by the `.cfg` of a `darknet`, as far as the file goes.

    Raises:
        ConvzooError: unreadable weights, or anything but the last layers does not fit.
    """
    source = source if is_remote(source) else local_path(source)
    if recipe.model["name"] == "darknet" and not is_remote(source) and kind_of(Path(source)) == "darknet":
        _load_by_cfg(model, recipe.model["cfg"], Path(source))
        return
    converted = open_source(source, download=download).converted
    theirs, ours = resolve_model_spec(converted.model), resolve_model_spec(recipe.model)
    if theirs["name"] != ours["name"] or converted.missing:
        if not any(name.startswith(BACKBONE) for name in model.state_dict()):
            raise ConvzooError(f"{source}: it holds a {theirs['name']}, the recipe's is a {ours['name']}", ("weights",))
        count = load_backbone(model, converted)
        log.info(f"backbone of {count} convolutions from {source}; all else is new")
        numerics = backbone_numerics(recipe.model)
        for key, value in backbone_numerics(converted.model).items():
            if numerics[key] != value:
                log.warning(f"{source}: its backbone was trained with {key} {value}, this recipe has {numerics[key]}")
        return
    weights, own = converted.state_dict, model.state_dict()
    if converted.class_names != class_names:
        head = _class_tensors(recipe.model)
        weights = {**weights, **{name: own[name] for name in head}}
        log.info(f"weights from {source}; new head {', '.join(head)} for {len(class_names)} classes")
    else:
        log.info(f"weights from {source}")
    problem = first_mismatch(model, weights)
    if problem:
        raise ConvzooError(f"{source}: {problem}; it holds a {theirs['name']}", ("weights",))
    for key, value in theirs.items():
        if key == "cfg" and ours[key] != value:
            log.warning(f"{source}: trained with another .cfg than this recipe has")
        elif key not in TRAINING_KEYS | {"num_classes"} and ours[key] != value:
            log.warning(f"{source}: trained with model.{key}={value}, this recipe has {ours[key]}")
    model.load_state_dict(weights)


def _load_by_cfg(model: nn.Module, cfg: str, path: Path) -> None:
    """Load what a Darknet weight file has of the network that a `.cfg` describes. Raises ConvzooError."""
    try:
        weights = load_weights(cfg, file_bytes(path), str(path), partial=True)
    except ConvzooError as error:
        raise ConvzooError(f"{error}; weights of another .cfg are converted with it first", ("weights",)) from None
    model.load_state_dict(weights, strict=False)
    assert isinstance(model, Network)
    layers = darknet_layers(model)
    count = sum(layer.shapes.keys() <= weights.keys() for layer in layers)
    log.info(f"{count} of {len(layers)} layers with weights from {path}; all else is new")


def _class_tensors(spec: JsonObject) -> list[str]:
    """Return the names of the tensors whose shape follows the number of classes."""
    if spec["name"] == "darknet":
        network = meta_network(spec)
        assert isinstance(network, Network)
        return class_tensors(network)
    num_classes = resolve_model_spec(spec)["num_classes"]
    one_more = meta_network({**spec, "num_classes": num_classes + 1}).state_dict()
    return [name for name, tensor in meta_network(spec).state_dict().items() if tensor.shape != one_more[name].shape]
