"""YAML into plain values that remember where each was written: what messages about a recipe point at."""

from collections.abc import Callable

import yaml

from convzoo.errors import UsageError
from convzoo.plain import JsonObject, JsonValue


def parse(text: str, shown: str, places: dict[tuple, str]) -> JsonObject:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise UsageError(f"{shown}:{mark.line + 1 if mark else 1}: not YAML: {' '.join(problem.split())}") from None
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(
            f"{shown}:1: a recipe is a mapping of sections, this file {'is empty' if node is None else 'is not'}"
        )
    return _plain(node, (), places, lambda mark: f"{shown}:{mark.line + 1}:", set())


def _plain(
    node: yaml.Node, path: tuple, places: dict[tuple, str], where: Callable[[yaml.Mark], str], seen: set[int]
) -> JsonValue:
    """Turn YAML nodes into plain values and remember where each stood; duplicate keys, aliases and tags are refused."""
    here = where(node.start_mark)
    places.setdefault(path, here)
    if id(node) in seen:
        raise UsageError(f"{here} aliases are not allowed in a recipe; write the value out")
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*path, i), places, where, seen) for i, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        plain: JsonObject = {}
        for key_node, child in node.value:
            key = key_node.value
            place = where(key_node.start_mark)
            if key_node.tag != "tag:yaml.org,2002:str":
                raise UsageError(f"{place} key {key!r} is not text; put it in quotes")
            if key in plain:
                raise UsageError(f"{place} {'.'.join(map(str, (*path, key)))}: duplicate key")
            places[(*path, key)] = place
            plain[key] = _plain(child, (*path, key), places, where, seen)
        return plain
    if node.tag.removeprefix("tag:yaml.org,2002:") not in ("str", "int", "float", "bool", "null"):
        raise UsageError(
            f"{here} {'.'.join(map(str, path))}: {node.tag.removeprefix('tag:yaml.org,2002:')} is not a value that a "
            "recipe can hold"
        )
    value = yaml.SafeLoader("").construct_object(node)
    if isinstance(value, float) and value - value != 0:
        raise UsageError(f"{here} {'.'.join(map(str, path))}: must be a finite number, not {node.value}")
    return value


def apply_override(override: str, plain: JsonObject, places: dict[tuple, str]) -> None:
    """Set `section.key=value`; a number in the path is a place in a list: transform.train.0.flip_lr.prob=0.5."""
    dotted, equals, text = override.partition("=")
    path: tuple[str | int, ...] = tuple(int(key) if key.isdecimal() else key for key in dotted.split("."))
    if not equals or "" in path or isinstance(path[0], int):
        raise UsageError(f"'{override}' is not an override; write section.key=value, such as optim.lr=0.05")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UsageError(f"command line: {dotted}: not a YAML value: {getattr(error, 'problem', error)}") from None
    for known in [known for known in places if known[: len(path)] == path]:
        del places[known]
    value = None if node is None else _plain(node, path, places, lambda mark: "command line:", set())
    places[path] = "command line:"
    target: JsonValue = plain
    above: JsonValue = plain
    for depth, key in enumerate(path):
        above = target
        is_list = isinstance(above, list)
        if not isinstance(above, dict) and not (is_list and key in range(len(above))):
            what = f"has {len(above)} entries, counted from 0" if is_list else "has no keys of its own"
            raise UsageError(f"command line: {override}: {'.'.join(map(str, path[:depth]))} {what}")
        if depth < len(path) - 1:
            target = above[key] if is_list else above.setdefault(key, {})
    above[path[-1]] = value
