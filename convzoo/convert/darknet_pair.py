"""A Darknet weight file together with the `.cfg` that describes its network, and what is known without one.

One of ours becomes that network, any other becomes `darknet`, which keeps the text. The preprocessing is that of the
program that wrote the weights, as far as the two files tell.
Facts: github.com/pjreddie/darknet, github.com/AlexeyAB/darknet and github.com/hank-ai/darknet, src/detector.c.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from convzoo.convert import darknet, presets, published
from convzoo.convert.darknet import IMAGENET_ORDER, LONG_HEADER, VALID, crop, layers_of, read_header
from convzoo.convert.darknet_network import load_weights, weights_header
from convzoo.convert.darknet_own import cfg_text, own_model
from convzoo.convert.state_dict import (
    ANY,
    CfgFile,
    ConvertedWeights,
    ExpectedWeights,
    assemble,
    file_bytes,
    meta_network,
    model_label,
)
from convzoo.data.imagenet import darknet_wnids
from convzoo.errors import ConvzooError, UsageError
from convzoo.models.darknet_cfg import MAX_CHARACTERS
from convzoo.models.darknet_layers import DarknetCfg, read_cfg
from convzoo.models.darknet_network import Network
from convzoo.plain import JsonObject
from convzoo.types import Head

STRETCHING = 5  # the revision that AlexeyAB's and hank-ai's programs write, which stretch; pjreddie's writes 0
# The published yolov3-tiny.weights, trained with other anchors at its fine head than its published .cfg has:
# pjreddie/darknet issue 851. On 128 pictures of COCO AP 21.36 with those of its training, 14.15 with the others.
YOLOV3_TINY = 35_434_956, "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c"
TINY_ANCHORS = ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))
TRAINED_ROWS, PUBLISHED_ROW = (TINY_ANCHORS[1:4], TINY_ANCHORS[3:]), TINY_ANCHORS[:3]
MASKS = "these weights were trained with masks 1,2,3 at the fine head"
COCO_NAMES = "class names: COCO's, as if trained on COCO, which has 80 classes too"


def read_cfg_file(path: Path) -> CfgFile:
    """Read a `.cfg` as it is, Windows line ends included; comments in another encoding as Latin-1.

    Raises:
        UsageError: no such file, or one that is too large for a `.cfg`.
    """
    if not path.is_file():
        raise UsageError(f"{path}: {'a folder, not a .cfg file' if path.is_dir() else 'no such .cfg file'}")
    if path.stat().st_size > MAX_CHARACTERS:
        raise UsageError(f"{path}: {path.stat().st_size} bytes; a network's description has at most {MAX_CHARACTERS}")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return CfgFile(str(path), text, hashlib.sha256(data).hexdigest())


def read(source: Path | bytes | memoryview, expected: ExpectedWeights) -> ConvertedWeights:
    """Read a weight file by the `.cfg` that `expected` names.

    Raises:
        UsageError: no such file, a `.cfg` that is not read, or class names that are not as many as its classes.
        ConvzooError: no weight file, or that of another network.
    """
    assert expected.cfg is not None
    converted = read_as(read_cfg_file(expected.cfg), source, expected)
    heads: tuple[Head, ...] = getattr(meta_network(converted.model), "heads", ())
    if _is_yolov3_tiny(source) and PUBLISHED_ROW in [head.anchors_px for head in heads]:
        converted.notes.append(f"anchors: {MASKS}, the .cfg says 0,1,2: AP is a third lower with them")
    return converted


def read_alone(source: Path | bytes | memoryview, expected: ExpectedWeights = ANY) -> ConvertedWeights:
    """Read a weight file without its `.cfg`: of one of our networks, or a published one.

    Raises:
        UsageError: no such file, or its size says whose `.cfg` it needs.
        ConvzooError: not such a file, or its size fits no network that is known.
    """
    if _is_yolov3_tiny(source):
        text = cfg_text("yolov3_tiny", 80, TRAINED_ROWS, (416, 416))
        converted = read_as(CfgFile("yolov3-tiny.cfg", text, ""), source, expected)
        note = f"anchors: {MASKS} (pjreddie/darknet issue 851); their published .cfg says 0,1,2"
        return replace(converted, cfg=None, notes=[*converted.notes, note])
    data, where = file_bytes(source), str(source) if isinstance(source, Path) else "Darknet weights"
    header = read_header(data, where)
    name = published.DARKNET_CFGS.get(len(data) - header.num_bytes + LONG_HEADER)
    if name is not None and expected.model_name is None:
        raise UsageError(
            f"{where}: {len(data)} bytes, as {name} takes, without which it is not known what they mean", ("cfg",)
        )
    return darknet.read(source, expected)


def _is_yolov3_tiny(source: Path | bytes | memoryview) -> bool:
    data = file_bytes(source)
    num_bytes, sha256 = YOLOV3_TINY
    return len(data) == num_bytes and hashlib.sha256(data.data).hexdigest() == sha256


def read_as(cfg_file: CfgFile, source: Path | bytes | memoryview, expected: ExpectedWeights = ANY) -> ConvertedWeights:
    """Read a weight file as that of the network that a `.cfg` describes. Raises as `read`."""
    text = cfg_file.text
    cfg = read_cfg(text, cfg_file.name)
    where = str(source) if isinstance(source, Path) else "Darknet weights"
    data = file_bytes(source)
    state = load_weights(text, data, where)
    if cfg.num_classes is None:
        raise ConvzooError(
            f"{where}: a backbone, for training a whole network from (train --weights): "
            f"{cfg_file.name} ends with neither heads nor [softmax]"
        )
    header = weights_header(data, where)
    model = own_model(cfg)
    if model is None:
        model = {"name": "darknet", "cfg": text, "num_classes": cfg.num_classes}
    else:
        state = _renamed(state, model)
    expected.require(where, model)
    described = meta_network({"name": "darknet", "cfg": text})
    assert isinstance(described, Network)
    state_dict, table, _ = assemble(where, model, state, {})
    known, note = _class_names(described)
    names = expected.class_names(model, known)
    transform, why = preprocessing(cfg, header.revision, bool(described.heads), expected.resize)
    return ConvertedWeights(
        origin="darknet",
        source=f"Darknet weights, version {'.'.join(map(str, header[:3]))}, {header.seen} images seen, "
        f"with {Path(cfg_file.name).name}: {model_label(model)}",
        model=model,
        state_dict=state_dict,
        task="detect" if described.heads else "classify",
        transform=transform,
        postprocess=suppression(described),
        class_names=names,
        table=table,
        header={**header._asdict(), "bytes_used": len(data), "bytes_left": 0},
        notes=[why, *([note] if note and expected.classes is None else [])],
        cfg=cfg_file._replace(name=Path(cfg_file.name).name),
    )


def _renamed(state: dict[str, Tensor], model: JsonObject) -> dict[str, Tensor]:
    """Return the tensors under the names that our network has for them, which has its modules in the file's order."""
    tensors = [tensor for tensor in state.values() if tensor.dim()]
    layers = layers_of(model["name"], model["num_classes"], model.get("width"))
    names = {name: shape for layer in layers for name, shape in layer.items()}
    return {name: tensor.view(shape) for (name, shape), tensor in zip(names.items(), tensors, strict=True)}


def _class_names(network: Network) -> tuple[list[str] | None, str | None]:
    """Return the names that as many classes usually have, and a note that says so."""
    if network.heads and network.num_classes == 80:
        return presets.coco_names(), COCO_NAMES
    if not network.heads and network.num_classes == 1000:
        return list(darknet_wnids()), IMAGENET_ORDER
    return None, None


def preprocessing(cfg: DarknetCfg, revision: int | None, detects: bool, resize: str | None) -> tuple[JsonObject, str]:
    """Return the `transform` section, and a note on where it comes from.

    Args:
        revision: of the weight file's header, which tells the program; None without one.
        resize: "letterbox" or "stretch", against what the files tell.
    """
    height, width = cfg.height, cfg.width
    size = width if width == height else [height, width]
    if not detects and resize is None and width == height:
        return crop(width), "preprocessing: short side and centre crop, which measures best for Darknet's classifiers"
    if resize is not None:
        why = "as asked for"
    elif cfg.letter_box:
        resize, why = "letterbox", "letterboxed, as the .cfg says letter_box=1"
    elif revision == STRETCHING:
        resize, why = "stretch", f"stretched, as by the programs that write revision {STRETCHING}"
    elif revision is None:
        resize, why = "letterbox", "letterboxed, as by pjreddie's program; AlexeyAB's and its successors stretch"
    else:
        resize, why = "letterbox", f"letterboxed, as by the programs that write revision {revision}"
    why = f"preprocessing: {why}"
    if resize == "letterbox":
        return presets.transform([{"letterbox": {"size_px": size, "align_corners": True}}]), why
    return presets.transform([{"resize": {"size_px": size, "mode": "stretch", "antialias": False}}]), why


def suppression(network: Network) -> JsonObject:
    """Return the `postprocess` section: of `detector valid`, with the suppression that the last head names."""
    if not network.heads:
        return {}
    kind: JsonObject = {} if network.nms_kind == "default" else {"nms_kind": network.nms_kind}
    return {**VALID, **kind, **({"nms_beta": network.nms_beta} if network.nms_kind == "diounms" else {})}
