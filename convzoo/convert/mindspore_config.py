"""`config.py` of the zoo's first Tiny-DarkNet edition: a Python file that is read as data and never run.

Taken are a docstring, imports (which are not followed) and assignments of plain values: a dictionary, `edict({...})`,
`dict(key=value)`, or `KEY = value` and `config.key = value` one by one. Anything else in the file is refused.
"""

import ast
from pathlib import Path

from convzoo.errors import ConvzooError
from convzoo.plain import JsonValue

DICTIONARIES = {"edict", "EasyDict", "ed", "dict"}

Values = dict[str, tuple[JsonValue, int]]  # key -> value and line


def read(text: str, path: Path) -> Values | None:
    """Return the values of a configuration with their lines; None of what is not Python.

    Raises:
        ConvzooError: code, or a value that is none, with file and line; several configurations, or none.
    """
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if any(isinstance(node, ast.AnnAssign) and node.value is None for node in body):
        return None  # `key: value`, which is YAML
    whole: dict[str, Values] = {}
    single: Values = {}
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom) or _is_text(node):
            continue
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            raise _code(path, node)
        target, dictionary = node.targets[0], _pairs(node.value)
        if dictionary is not None and isinstance(target, ast.Name):
            whole[target.id] = _values(dictionary, path)
        elif isinstance(target, ast.Name | ast.Attribute):
            single |= _values([(_name(target), node.value)], path)
        else:
            raise _code(path, node)
    configurations = {name: values for name, values in whole.items() if values}
    if len(configurations) > 1:
        raise ConvzooError(
            f"{path}: holds {len(configurations)} configurations, {', '.join(configurations)}: leave the one to convert"
        )
    values = {**(next(iter(configurations.values())) if configurations else {}), **single}
    if not values:
        raise ConvzooError(f"{path}: no configuration in it: no keys with values")
    return values


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _name(target: ast.Name | ast.Attribute) -> ast.Constant:
    text = target.id if isinstance(target, ast.Name) else target.attr
    return ast.copy_location(ast.Constant(text), target)


def _pairs(node: ast.expr) -> list[tuple[ast.expr | None, ast.expr]] | None:
    """Return keys and values of a dictionary, however it is written, or None of anything else."""
    if isinstance(node, ast.Dict):
        return list(zip(node.keys, node.values, strict=True))
    if not isinstance(node, ast.Call) or not _is_dictionary(node.func) or len(node.args) > 1:
        return None
    first = _pairs(node.args[0]) if node.args else []
    more = [(ast.copy_location(ast.Constant(word.arg), word.value), word.value) for word in node.keywords if word.arg]
    return None if first is None or len(more) < len(node.keywords) else [*first, *more]


def _is_dictionary(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
    return name in DICTIONARIES


def _values(pairs: list[tuple[ast.expr | None, ast.expr]], path: Path) -> Values:
    values: Values = {}
    for key, value in pairs:
        inner = _pairs(value)
        try:
            name = ast.literal_eval(key)  # type: ignore[arg-type]  # None, of `**more`, is a ValueError
            plain = (
                {k: v for k, (v, _) in _values(inner, path).items()} if inner is not None else ast.literal_eval(value)
            )
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise _code(path, value) from None
        if not isinstance(name, str):
            raise ConvzooError(f"{path}:{value.lineno}: key {name!r} is not a name")
        if name in values:
            raise ConvzooError(f"{path}:{value.lineno}: {name}: duplicate key")
        values[name] = (list(plain) if isinstance(plain, tuple) else plain, value.lineno)
    return values


def _code(path: Path, node: ast.AST) -> ConvzooError:
    try:
        shown = " ".join(ast.unparse(node).split())[:60]
    except RecursionError:
        shown = type(node).__name__
    return ConvzooError(
        f"{path}:{getattr(node, 'lineno', 1)}: '{shown}' is code, and a configuration is read, never run: write values"
    )
