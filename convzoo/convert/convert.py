"""Foreign weights to a model file of ours, model files to Darknet and MindSpore, zoo configurations to recipes.

A conversion takes every tensor or fails; its file gets its name only when it is whole, and checked where that was
asked for.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from convzoo import build
from convzoo.config import recipe as recipes
from convzoo.config import registry
from convzoo.convert import darknet_recipe, mindspore_recipe, presets, writers
from convzoo.convert.mindspore_keys import is_text
from convzoo.convert.report import ConversionReport, report_checks, report_weights
from convzoo.convert.sources import ANY, WEIGHT_SUFFIXES, ExpectedWeights, WeightSource, is_own, is_remote, open_source
from convzoo.convert.state_dict import ConvertedWeights, network, resolve_model_spec
from convzoo.convert.statistics import batch_norm_statistics, pictures_of
from convzoo.convert.verify import Check, checks
from convzoo.data.datasets.cifar10 import CLASS_NAMES as CIFAR10_CLASSES
from convzoo.data.imagenet import wnids
from convzoo.errors import ToleranceError, UsageError
from convzoo.files import file_sha256, written_whole
from convzoo.inference import torch_model
from convzoo.model_file import ModelInfo, save_model, tensors_sha256
from convzoo.plain import JsonObject
from convzoo.version import __version__

RECIPE_SUFFIXES = (".yaml", ".yml")
# For training on from the weights; a recipe that somebody trains with is a file of its own.
TRAINING = {
    "loss": {"label_smoothing": 0.0},
    "optim": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0001},
    "schedule": {"name": "cosine_annealing"},
    "train": {"epochs": 30, "batch_size": 64, "precision": "auto"},
}


def convert(
    source: str,
    out: Path,
    expected: ExpectedWeights = ANY,
    *,
    check: bool = False,
    data: Path | None = None,
    data_name: str | None = None,
    download: bool = False,
) -> ConversionReport:
    """Convert another program's weights, a file or LIBRARY:NAME, to the model file `out`.

    Args:
        check: compare the network with where it comes from first.
        data: with it, on these pictures, what its batch norms get with what they got in training.
        data_name: the recipe's data set.
    Raises:
        UsageError: a wrong path or name.
        ConvzooError: an unreadable, damaged or mismatching file.
        ToleranceError: the network computes something else than its source, or than in training.
        DataError: pictures that cannot be read.
        MissingPackageError: the source library is not installed.
    """
    _check_out(out, source)
    if not is_remote(source) and is_own(Path(source)):
        raise UsageError(
            f"{source}: a model file of convzoo already; it can be written for {' or '.join(writers.SUFFIXES)}"
        )
    opened, info = complete(_whole(open_source(source, expected, download)), data_name)
    converted, report = opened.converted, ConversionReport()
    report_weights(opened, info, report)
    if check:
        done = checks(converted, opened.path)
        if data is not None:
            done.append(_check_statistics(_open(opened, info, torch.device("cpu")), data, report))
        info.provenance["checked"] = [check.what for check in done]
        report_checks(done, report)
    digest = save_model(out, converted.state_dict, info)
    report.add(
        "written", f"{out}  (SHA-256 over tensors and description {digest[:12]}...)", out=str(out), sha256=digest
    )
    return report


def _check_statistics(model: torch_model.TorchModel, data: Path, report: ConversionReport) -> Check:
    statistics = batch_norm_statistics(model, pictures_of(model, data))
    if statistics is None:
        return Check("not run on pictures: no batch norm in it with statistics to compare", None)
    statistics.require(str(model.path))
    report.lines += [("", line) for line in statistics.text().splitlines()]
    report.plain["batch_norms"] = statistics.plain()
    return Check(statistics.summary(), None)


def _whole(opened: WeightSource) -> WeightSource:
    if opened.converted.missing:
        network(opened.converted)  # says what is missing and what to do with a backbone
    return opened


def targets(folder: Path, out: Path, program: str | None = None) -> dict[Path, Path]:
    """Return the files to convert in a folder with the file that each becomes in the folder `out`, which is made.

    Args:
        program: the model files, for this program; None for other programs' weights.

    Raises:
        UsageError: no such file in the folder, or `out` is no folder and cannot become one.
    """
    suffix = writers.SUFFIXES.get(program or "", ".safetensors")
    named = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.endswith(".state.pt")]
    if program:
        files = [file for file in named if file.suffix == ".safetensors" and is_own(file)]
    else:
        files = [file for file in named if file.name.lower().endswith((".safetensors", *WEIGHT_SUFFIXES))]
        files = [file for file in files if not is_own(file)]
    if not files:
        kinds = (
            "model files (.safetensors)" if program else f"weights of another program ({', '.join(WEIGHT_SUFFIXES)})"
        )
        raise UsageError(f"{folder}: no {kinds} in it")
    if out.is_file() or not out.parent.is_dir():
        raise UsageError(f"{out}: {'a file' if out.is_file() else 'no such folder'}; a folder becomes a folder")
    out.mkdir(exist_ok=True)
    unique = len({file.stem for file in files}) == len(files) and not out.samefile(folder)
    return {file: out / f"{file.stem if unique else file.name}{suffix}" for file in files}


def _check_out(out: Path, source: str) -> None:
    if out.is_dir() or not out.parent.is_dir():
        raise UsageError(f"{out}: {'a folder, not a file to write' if out.is_dir() else 'no such folder'}")
    if not is_remote(source) and out.exists() and Path(source).exists() and out.samefile(source):
        raise UsageError(f"{out}: the source itself")


def complete(opened: WeightSource, data_name: str | None = None) -> tuple[WeightSource, ModelInfo]:
    """Return the weights with what their source does not state and notes on it, and what a model file says of them.

    Raises:
        UsageError: no such data set.
    """
    converted = opened.converted
    detects = converted.task == "detect"
    if data_name is not None and not detects:
        registry.builder("dataset", data_name)
    if data_name == "cifar10" and converted.model["name"] == "tinydarknet":
        converted = _as_for_cifar10(converted)
    transform, notes = converted.transform, list(converted.notes)
    if transform is None and not detects:
        transform = presets.crop_transform({"size_px": 256, "mode": "short_side", "antialias": True}, 224)
        notes.append("preprocessing assumed: short side 256, centre crop 224, ImageNet mean and std")
    names, provenance = converted.class_names, {}
    if names is None:
        names = [str(number) for number in range(resolve_model_spec(converted.model)["num_classes"])]
        provenance["class_names"] = "numbers"
        notes.append(f"no class names in the weights: classes are called {names[0]} to {names[-1]}")
    opened = replace(opened, converted=replace(converted, transform=transform, notes=notes))
    return opened, _model_info(opened, names, provenance, data_name)


def _model_info(opened: WeightSource, names: list[str], provenance: JsonObject, data_name: str | None) -> ModelInfo:
    converted = opened.converted
    detects = converted.task == "detect"
    default_data = "coco" if detects else "cifar10" if names == CIFAR10_CLASSES else "image_folder"
    plain = recipe_of(converted, data_name or default_data)
    recipe = recipes.from_plain(plain, Path(opened.name).name)
    provenance = {
        "converted_from": opened.name,
        "sha256": opened.sha256,
        "format": converted.source,
        "header": converted.header,
        "dropped": len(converted.dropped),
        "converter": f"convzoo {__version__}",
        **({"cfg": converted.cfg._asdict()} if converted.cfg else {}),
        **provenance,
    }
    as_they_are = names == CIFAR10_CLASSES and not recipe.transform.eval
    about: JsonObject = {"recipe": recipe.plain(), "class_names": names, "provenance": provenance}
    return ModelInfo(**about, licence=opened.licence, input_hw=(32, 32) if as_they_are else None)


def recipe_of(converted: ConvertedWeights, data_name: str) -> JsonObject:
    """Return a whole recipe for converted weights: theirs for evaluation, plain fine-tuning for training on."""
    detects = converted.task == "detect"
    transform = converted.transform or presets.transform([{"letterbox": {}}] if detects else [])
    return {
        "task": converted.task,
        "seed": 0,
        "data": {"name": data_name},
        "transform": {**transform, "train": _augmentation(transform["eval"], detects)},
        "model": dict(converted.model),
        **TRAINING,
        "postprocess": converted.postprocess,
    }


def _augmentation(operations: list[JsonObject], detects: bool) -> list[JsonObject]:
    if detects:
        sizes = [keys["size_px"] for operation in operations for keys in operation.values() if "size_px" in keys]
        place = {"size_px": sizes[-1]} if sizes else {}
        return [{"random_place": place}, {"flip_lr": {"prob": 0.5}}, {"hsv_distort": {}}]
    crop = next((keys["size_px"] for op in operations for name, keys in op.items() if name == "center_crop"), None)
    if crop is not None:
        return [{"random_resized_crop": {"size_px": crop}}, {"flip_lr": {"prob": 0.5}}]
    return [{"pad_crop": {"padding_px": 4}}, {"flip_lr": {"prob": 0.5}}, *operations]


def _as_for_cifar10(converted: ConvertedWeights) -> ConvertedWeights:
    """Return the weights with what the zoo means by CIFAR-10 for Tiny-DarkNet, which has 1000 outputs there too."""
    resize = {"resize": {"size_px": 227, "mode": "stretch", "antialias": False}}
    transform = presets.transform([resize], tuple(mindspore_recipe.CIFAR10_MEAN), tuple(mindspore_recipe.CIFAR10_STD))
    names, unused = converted.class_names, converted.model["num_classes"] - len(CIFAR10_CLASSES)
    if names in (None, wnids()) and unused >= 0:
        names = CIFAR10_CLASSES + [f"unused {number}" for number in range(unused)]
    notes = ["preprocessing and classes: the zoo's for CIFAR-10, stretched to 227x227"]
    return replace(converted, transform=transform, class_names=names, notes=notes)


def open_converted(opened: WeightSource, device: torch.device, data_name: str | None = None) -> torch_model.TorchModel:
    """Return foreign weights as an open model, as if converted and opened.

    Raises:
        UsageError: no such data set.
        ConvzooError: the weights are a backbone on its own.
    """
    return _open(*complete(opened, data_name), device)


def _open(opened: WeightSource, info: ModelInfo, device: torch.device) -> torch_model.TorchModel:
    model: Any = network(opened.converted)  # Any: Module.to has no type for a device together with a memory format
    model = model.to(device, memory_format=torch.channels_last)
    recipe = recipes.from_plain(info.recipe, Path(opened.name).name)
    return torch_model.TorchModel(model, recipe, info, Path(opened.name), tensors_sha256(opened.converted.state_dict))


def convert_to(
    program: str, source: str, out: Path, expected: ExpectedWeights = ANY, download: bool = False
) -> ConversionReport:
    """Write weights of any kind for another program, and read them back before the file gets its name.

    Raises:
        UsageError: a wrong path or name, or the program has no such network, or one that computes something else.
        ConvzooError: an unreadable, damaged or mismatching file.
        ToleranceError: read back, the tensors differ.
    """
    if program not in writers.SUFFIXES:
        raise UsageError(f"{program}: no program to write for; there are {', '.join(writers.SUFFIXES)}")
    _check_out(out, source)
    opened = _whole(open_source(source, expected, download))
    converted, report = opened.converted, ConversionReport()
    data = writers.encode(program, converted)
    num_tensors = writers.num_tensors_read_back(data, program, converted)
    if num_tensors is None:
        raise ToleranceError(f"{out}: not written: read back, the tensors differ")
    cfg = _write_cfg(opened, out) if program == "darknet" else None
    with written_whole(out) as temporary:
        temporary.write_bytes(data)
    report.add("source", f"{opened.name}: {converted.source}", source=opened.name, format=converted.source)
    report.add("tensors", f"{num_tensors}, read back equal", num_tensors=num_tensors)
    transform = converted.transform
    if program == "darknet" and transform and [*transform["mean"], *transform["std"]] != [0, 0, 0, 1, 1, 1]:
        keys = "transform.mean=[0,0,0] transform.std=[1,1,1]"
        report.add("note", "Darknet feeds values 0..1 without a mean; this network expects its own mean and std")
        report.add("note", f"one that Darknet's programs can use is trained with {keys}")
    report.add("note", "such a file holds neither class names nor preprocessing")
    report.plain["notes"] = [text for heading, text in report.lines if heading == "note"]
    report.add("written", f"{out}  ({len(data):,} bytes)", out=str(out), bytes=len(data), sha256=file_sha256(out))
    if cfg is not None:
        report.add("", f"{cfg}", cfg=str(cfg))
    return report


def _write_cfg(opened: WeightSource, out: Path) -> Path:
    """Write the `.cfg` beside a weight file for Darknet. Raises UsageError where another lies there."""
    path, data = out.with_suffix(".cfg"), writers.cfg_bytes(opened.converted, opened.info and opened.info.input_hw)
    if path.exists() and not (path.is_file() and path.read_bytes() == data):
        raise UsageError(f"{path}: another file than the .cfg of {out.name}, which is written beside it")
    with written_whole(path) as temporary:
        temporary.write_bytes(data)
    return path


def is_configuration(path: Path) -> bool:
    """Tell whether a file is a Darknet `.cfg` or a configuration of the MindSpore zoo, rather than weights."""
    return darknet_recipe.is_cfg(path) or is_text(path)


def convert_configuration(path: Path, out: Path, resize: str | None = None) -> ConversionReport:
    """Write a Darknet `.cfg` or a configuration of the MindSpore zoo as the recipe `out`.

    Args:
        resize: how a `.cfg`'s pictures get their size, "letterbox" or "stretch".
    Raises:
        UsageError, ConvzooError.
    """
    _check_out(out, str(path))
    if out.suffix not in RECIPE_SUFFIXES:
        raise UsageError(f"{out}: {path} is a configuration, which becomes a recipe: name it FILE.yaml")
    is_cfg = darknet_recipe.is_cfg(path)
    zoo = darknet_recipe.convert(path, resize) if is_cfg else mindspore_recipe.convert(path)
    recipe = recipes.from_plain(zoo.sections, out.name.removesuffix(out.suffix))
    if recipe.task in registry.names("task"):
        build.check_recipe(recipe)
    report = ConversionReport()
    name = recipe.model["name"]
    what = f"a Darknet .cfg of {name}" if is_cfg else f"a configuration of the MindSpore zoo's {name}"
    report.add("source", f"{path}: {what}", source=str(path))
    for key, why in zoo.dropped.items():
        report.add("left out", f"{key:30} {why}")
    for note in zoo.notes:
        report.add("note", note)
    sha256 = file_sha256(path)
    report.plain.update(recipe=recipe.plain(), dropped=zoo.dropped, notes=zoo.notes, source_sha256=sha256)
    header = [f"Converted by convzoo {__version__} from {path.name}, {what} (SHA-256 {sha256[:12]}...)."]
    header += [f"Note: {note}." for note in zoo.notes]
    header += [f"Left out: {key} ({why})" for key, why in zoo.dropped.items()]
    weights = " --weights FILE" if recipe.train.freeze else ""  # what is frozen must come from somewhere
    header.append(f"Run: convzoo train {out.name} --data DIR{weights}")
    with written_whole(out) as temporary:
        temporary.write_text("".join(f"# {line}\n" for line in header) + recipe.to_yaml(), encoding="utf-8")
    report.add("written", str(out), out=str(out))
    return report
