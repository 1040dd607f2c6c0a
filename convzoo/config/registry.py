"""Find builders by kind and name, and check a recipe's keys against a builder's signature before anything is created.

A builder is a function marked with `@register(kind)`; its keyword-only parameters are the keys that a recipe may set,
its positional ones come from the program (a path, a split). Builders live in the package of their kind, and that
package is searched when the kind is first asked for: a new model is one new file.
"""

import ast
import difflib
import functools
import importlib
import importlib.util
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pydantic
from pydantic_core import ErrorDetails

from convzoo.errors import UsageError
from convzoo.plain import JsonObject, JsonValue

PACKAGES = {
    "model": "convzoo.models",
    "dataset": "convzoo.data.datasets",
    "transform": "convzoo.data.transforms",
    "task": "convzoo.tasks",
    "loss": "convzoo.tasks",  # by the name of its task
}

_builders: dict[str, dict[str, Callable]] = {kind: {} for kind in PACKAGES}


def register(kind: str, name: str | None = None) -> Callable[[Callable], Callable]:
    """Register a builder, under its own function name if no other. Raises ValueError for a name that is taken."""

    def mark(builder: Callable) -> Callable:
        key = name or builder.__name__
        previous = _builders[kind].get(key)
        if previous is not None and previous.__module__ != builder.__module__:
            raise ValueError(f"{kind} {key} is registered twice: {previous.__module__} and {builder.__module__}")
        _builders[kind][key] = builder
        return builder

    return mark


@functools.cache
def _load(package: str) -> None:
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def names(kind: str) -> list[str]:
    """Return the sorted names of all builders of a kind."""
    _load(PACKAGES[kind])
    return sorted(_builders[kind])


def declared(kind: str) -> list[str]:
    """Return the sorted names that the files of a kind's package register, read without running them."""
    spec = importlib.util.find_spec(PACKAGES[kind])
    names = []
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).glob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                names += _marks(node, kind)
    return sorted(names)


def _marks(node: ast.stmt, kind: str) -> Iterator[str]:
    """Yield the name under which each `@register(kind)` of a definition registers it."""
    for mark in getattr(node, "decorator_list", ()):
        if isinstance(mark, ast.Call) and getattr(mark.func, "id", None) == "register":
            arguments = [ast.literal_eval(argument) for argument in mark.args]
            if arguments[0] == kind:
                yield arguments[1] if len(arguments) > 1 else node.name  # type: ignore[attr-defined]


def builder(kind: str, name: str) -> Callable:
    """Return a builder. Raises UsageError, with the nearest name, for an unknown one."""
    if name not in names(kind):
        raise UsageError(f"unknown {kind} '{name}'{nearest(name, names(kind))}")
    return _builders[kind][name]


def bind(
    kind: str, spec: Mapping[str, JsonValue], at: Callable[[str], str] = lambda key: f"{key}:"
) -> functools.partial:
    """Check a specification `{name: ..., key: value ...}` and return the builder with those keys bound.

    Args:
        at: turns a key into the place where a message should point, such as `recipe.yaml:12: model.num_clases:`.
    Raises:
        UsageError: unknown name, unknown key or wrong type, with the place and the nearest valid name.
    """
    if not isinstance(spec.get("name"), str):
        raise UsageError(f"{at('name')} name one of: {', '.join(names(kind))}")
    try:
        build = builder(kind, spec["name"])
    except UsageError as error:
        raise UsageError(f"{at('name')} {error}") from None
    options = {key: value for key, value in spec.items() if key != "name"}
    schema = _schema(build)
    for key in options:
        if key not in schema.model_fields:
            raise UsageError(f"{at(key)} unknown key of {kind} {spec['name']}{nearest(key, schema.model_fields)}")
    try:
        checked = schema.model_validate_json(json.dumps(options), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else "name"
        raise UsageError(f"{at(key)} {explain(first)}") from None
    return functools.partial(build, **{key: getattr(checked, key) for key in options})


@functools.cache
def _schema(build: Callable) -> type[pydantic.BaseModel]:
    fields: JsonObject = {}
    for parameter in inspect.signature(build, eval_str=True).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[parameter.name] = (parameter.annotation, default)
    return pydantic.create_model(build.__name__, __config__=pydantic.ConfigDict(arbitrary_types_allowed=True), **fields)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or the list of what there is when nothing is near."""
    known = list(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean '{match[0]}'?" if match else f"; there are: {', '.join(known) or 'none'}"


def explain(error: ErrorDetails) -> str:
    """Say in one line what a pydantic error means, with what was given."""
    given = error.get("input")
    shown = json.dumps(given) if isinstance(given, str | int | float | bool | list | dict | type(None)) else repr(given)
    hint = ""
    if isinstance(given, str) and error["type"] in ("float_type", "int_type"):
        try:
            float(given)
        except ValueError:
            pass
        else:
            mantissa, _, exponent = given.lower().partition("e")
            dotted = mantissa if "." in mantissa else f"{mantissa}.0"
            better = f"{dotted}e{exponent if exponent[:1] in '+-' else '+' + exponent}" if exponent else given
            hint = f"; YAML reads {given} as text, write {better} without quotes"
    message = error["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]}, not {shown[:80]}{hint}"
