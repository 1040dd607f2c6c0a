"""Recipes: what changes the numbers, in one YAML file, checked key by key before anything runs.

A message names the file, the line and the key, and the nearest valid name. Keys of `data`, `model`, `loss`,
`postprocess` and the transform operations belong to their builders and are checked by `registry.bind`, with the places
this module remembers.
"""

import itertools
import json
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import yaml
from pydantic import AfterValidator, Field

from convzoo.config.registry import explain, nearest
from convzoo.config.yaml_places import apply_override, parse
from convzoo.errors import UsageError
from convzoo.plain import JsonObject, JsonValue

SHIPPED = resources.files("convzoo") / "recipes"


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


def _one_operation(operation: dict[str, JsonObject]) -> dict[str, JsonObject]:
    if len(operation) != 1:
        raise ValueError("an operation is one name with its keys, such as `flip_lr: {prob: 0.5}`")
    return operation


def _rising(milestones: list[int]) -> list[int]:
    if any(later <= earlier for earlier, later in itertools.pairwise(milestones)):
        raise ValueError("milestones must rise")
    return milestones


def _named(part: JsonObject) -> JsonObject:
    if not isinstance(part.get("name"), str):
        raise ValueError("needs a `name`")
    return part


Operation = Annotated[dict[str, JsonObject], AfterValidator(_one_operation)]
Named = Annotated[JsonObject, AfterValidator(_named)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Rgb = tuple[float, float, float]


class Transform(_Part):
    """Operations on uint8 RGB pictures, then (value / 255 - mean) / std.

    With multi_scale_px every training batch has one of these sizes, drawn anew every multi_scale_every_steps.
    """

    train: list[Operation] = []
    eval: list[Operation] = []
    mean: Rgb = (0.0, 0.0, 0.0)
    std: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    multi_scale_px: list[Annotated[int, Field(gt=0)]] = []
    multi_scale_every_steps: Annotated[int, Field(gt=0)] = 1


class Optim(_Part):
    """lr_batch_size: the batch that lr is meant for; another batch multiplies lr by its share of it (Goyal et al. 2017,
    arXiv:1706.02677, section 2.1). Without it lr is lr."""

    name: Literal["sgd"] = "sgd"
    lr: Positive
    lr_batch_size: Annotated[int, Field(gt=0)] | None = None
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 0.0


class Schedule(_Part):
    """Learning rate over time; `convzoo.training.optim.build_schedule` says what each key does."""

    name: Literal["constant", "multi_step", "cosine_annealing", "polynomial"] = "constant"
    warmup_epochs: NotNegative = 0.0
    warmup_start_lr: NotNegative | None = None
    warmup_power: Positive = 1.0
    milestones: Annotated[list[Annotated[int, Field(gt=0)]], AfterValidator(_rising)] = []
    gamma: Positive = 0.1
    eta_min: NotNegative = 0.0
    T_max: Positive | None = None
    power: Positive = 1.0
    per: Literal["step", "epoch"] = "step"

    @pydantic.model_validator(mode="after")
    def _only_own_keys(self) -> "Schedule":
        own = {
            "multi_step": {"milestones", "gamma"},
            "cosine_annealing": {"eta_min", "T_max", "per"},
            "polynomial": {"eta_min", "power"},
        }
        common = {"name", "warmup_epochs", "warmup_start_lr", "warmup_power"}
        for key, field in type(self).model_fields.items():
            if key not in common | own.get(self.name, set()) and getattr(self, key) != field.get_default():
                raise ValueError(f"{key} has no meaning for {self.name}")
        if self.name == "multi_step" and not self.milestones:
            raise ValueError("multi_step needs milestones")
        return self


class Train(_Part):
    """eval_every_epochs: 0 for never: no validation data is needed, no epoch is the best, and nothing is measured;
    save_every_epochs: checkpoints at the end of every so many epochs, of the last and of each best one so far."""

    epochs: Annotated[int, Field(gt=0)]
    batch_size: Annotated[int, Field(gt=0)]
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    loss_scale: Positive | Literal["dynamic"] | None = None
    ema_decay: Fraction | None = None
    clip_grad_norm: Positive | None = None
    freeze: list[str] = []
    sync_batch_norm: bool = False
    eval_every_epochs: Annotated[int, Field(ge=0)] = 1
    save_every_epochs: Annotated[int, Field(gt=0)] = 1
    keep_checkpoint_max: Annotated[int, Field(gt=0)] = 10
    weights_sha256: str | None = None


class Recipe(_Part):
    """Everything that changes the numbers of a run, in the order in which data runs."""

    task: str
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: Named
    transform: Transform
    model: Named
    loss: JsonObject = {}
    optim: Optim
    schedule: Schedule = Schedule()
    train: Train
    postprocess: JsonObject = {}

    _name: str = pydantic.PrivateAttr(default="recipe")
    _places: dict[tuple, str] = pydantic.PrivateAttr(default_factory=dict)

    @property
    def name(self) -> str:
        return self._name

    def at(self, *path: str | int) -> Callable[[str], str]:
        """Return what turns a key under `path` into the place that a message should point at."""
        return lambda key: _place(self._places, (*path, key), self._name)

    def plain(self) -> JsonObject:
        """Return the recipe as plain JSON values, every default written out."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        options: JsonObject = {"sort_keys": False, "default_flow_style": None, "width": 120, "allow_unicode": True}
        return yaml.dump(self.plain(), Dumper=_Dumper, **options)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines, such as a network's description, as they are, where YAML can: as a literal."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # YAML reads these line ends as others, but in double quotes; what a literal cannot hold, PyYAML quotes by itself.
    is_folded = any(character in text for character in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, '"' if is_folded else "|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def shipped() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in SHIPPED.iterdir() if path.name.endswith(".yaml"))


def load(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe: a shipped one by name or any file by path, with overrides `section.key=value`.

    Raises:
        UsageError: no such recipe, or the first thing in it that is wrong.
    """
    text, shown = _read(str(name_or_path))
    places: dict[tuple, str] = {}
    plain = parse(text, shown, places)
    for override in overrides:
        apply_override(override, plain, places)
    return from_plain(plain, Path(str(name_or_path)).name.removesuffix(".yaml"), places)


def with_overrides(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """Return a checked copy of a recipe with overrides `section.key=value` applied."""
    plain, places = recipe.plain(), dict(recipe._places)
    for override in overrides:
        apply_override(override, plain, places)
    return from_plain(plain, recipe.name, places)


def from_plain(plain: JsonValue, name: str, places: dict[tuple, str] | None = None) -> Recipe:
    """Check plain values, such as those in a model file's metadata. Raises UsageError."""
    places = places or {}
    try:
        recipe = Recipe.model_validate_json(json.dumps(_own_keys(plain)), strict=True)
    except pydantic.ValidationError as error:
        raise UsageError(_first_error(error, places, name)) from None
    recipe._name, recipe._places = name, places
    return recipe


def _own_keys(plain: JsonValue) -> JsonValue:
    """Drop what classifiers' recipes said of a detector's loss, as files of version 0.1 do."""
    loss = plain.get("loss") if isinstance(plain, dict) and plain.get("task") == "classify" else None
    if not isinstance(loss, dict) or loss.get("ignore_threshold") != 0.7:
        return plain
    return {**plain, "loss": {key: value for key, value in loss.items() if key != "ignore_threshold"}}


def _read(name_or_path: str) -> tuple[str, str]:
    path = Path(name_or_path)
    looks_like_path = path.suffix in (".yaml", ".yml") or "/" in name_or_path
    if not looks_like_path and name_or_path in shipped():
        return (SHIPPED / f"{name_or_path}.yaml").read_text(encoding="utf-8"), f"{name_or_path}.yaml"
    if not path.is_file():
        if looks_like_path:
            raise UsageError(f"recipe {name_or_path}: no such file")
        raise UsageError(f"no recipe '{name_or_path}'{nearest(name_or_path, shipped())} (`convzoo list` shows all)")
    try:
        return path.read_text(encoding="utf-8-sig"), name_or_path
    except UnicodeDecodeError:
        raise UsageError(f"{name_or_path}:1: not UTF-8 text") from None


def _place(places: dict[tuple, str], path: tuple, name: str) -> str:
    """Return `file:line: dotted.key:` for the deepest part of the path that was written somewhere."""
    known = next((path[:depth] for depth in range(len(path), -1, -1) if path[:depth] in places), ())
    return f"{places.get(known, f'{name}:')} {'.'.join(map(str, path))}:"


def _first_error(error: pydantic.ValidationError, places: dict[tuple, str], name: str) -> str:
    problems = error.errors()
    # A misspelt key is also a missing one.
    first = next((e for e in problems if e["type"] == "extra_forbidden"), problems[0])
    path = tuple(first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{_place(places, path, name)} unknown key{_near_key(path)}"
    while len(path) > 1 and path not in places and path[:-1] in places and first["type"] != "missing":
        path = path[:-1]
    if first["type"] == "missing":
        return f"{_place(places, path, name)} required, and not there"
    return f"{_place(places, path, name)} {explain(first)}"


def _near_key(path: tuple) -> str:
    """Name the nearest key of the same section; a key written outside its section is looked for in all of them."""
    sections = {
        key: list(field.annotation.model_fields)
        for key, field in Recipe.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel)
    }
    *above, key = path
    if above:
        return nearest(key, sections[above[0]])
    home = next((section for section, keys in sections.items() if key in keys), None)
    return f"; did you mean '{home}.{key}'?" if home else nearest(key, Recipe.model_fields)
