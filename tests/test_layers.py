"""The architecture: imports point one way and in no circle, rooms, files and functions stay within their budgets."""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "convzoo"
# A room imports from rooms of earlier layers, and from itself. Files and folders directly in convzoo/ are rooms.
LAYERS = [
    {"version", "errors", "logs", "plain"},
    {"boxes", "files", "environment", "distributed"},
    {"types", "storage"},
    {"config"},
    {"report"},
    {"data", "models", "model_file"},
    {"tasks", "build"},
    {"inference", "machine"},
    {"convert"},
    {"deploy"},  # which opens files of every kind, foreign weights among them
    {"training"},
    {"tune", "hub"},
    {"api"},
    {"serve"},
    {"cli"},
    {"modelarts", "__main__", "__init__"},
]
# Lines with comments that a room may have; changed only in a commit that says why.
BUDGETS = {
    "data": 5600,  # seven layouts of labels; shards and packed files are data sets too
    "tasks": 1800,
    "models": 1600,
    "training": 3400,  # what a run's page shows and where its rows go on to among it
    "inference": 1400,
    "convert": 4200,
    "deploy": 5000,
    "report": 1800,
    "serve": 1500,
    "cli": 2000,
    "storage": 1200,  # archives, the cache, URLs, leases, shards: a room of its own since it is a folder
    "machine": 350,  # what doctor says of a machine and tries on it: a room of its own beside the rest
    "the rest": 2600,  # modelarts, restarted ranks, data sets, plain values, free memory and packed files among it
}
COLUMNS, FILE_LINES, FUNCTION_LINES, TRAIN_LINES = 120, 400, 50, 120
# What starts without waiting for torch: the command line's help and its errors.
WITHOUT_TORCH = ["__init__", "__main__", "version", "errors", "logs", "plain", "files", "environment", "config", "cli"]
# Rooms that write or repeat commands; a run's README and page repeat its own, and environment.py asks git.
NAME_FLAGS = {"cli", "errors", "convert", "deploy", "api", "modelarts", "machine"}
REPEATERS = {"run_readme.py", "run_report.py", "environment.py"}
HEAVY = {"torch", "torchvision", "numpy"}

FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    ".".join(["convzoo", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in FILES
}
NAMES = {path: name for name, path in MODULES.items()}
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(name: str) -> int:
    found = [i for i, layer in enumerate(LAYERS) if name in layer]
    assert found, f"{name} is in no layer: give it a place in LAYERS"
    return found[0]


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Yield what these nodes import: of ours the module that is meant (`convzoo` for the package's own names)."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def ours(nodes: Iterator[ast.AST]) -> set[Path]:
    return {MODULES[name] for name in imported(nodes) if name.split(".")[0] == "convzoo"}


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when the file is imported: none in functions or under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from at_import(node)


@every_file
def test_a_file_imports_only_from_earlier_layers(path):
    own = room(path)
    for other in {room(found) for found in ours(ast.walk(TREES[path]))} - {own}:
        assert level(other) < level(own), f"{own} imports {other}"


@every_file
def test_only_the_command_line_names_flags(path):
    """A message of the library names what is wrong with what; the flag is added where there is one."""
    texts = (node.value for node in ast.walk(TREES[path]) if isinstance(node, ast.Constant))
    flags = [text for text in texts if isinstance(text, str) and re.search(r"--[a-z]", text)]
    assert not flags or room(path) in NAME_FLAGS or path.name in REPEATERS


def test_tasks_draw_nothing():
    """A metric reports plain values; inference has them drawn and written."""
    rooms = {path: {room(other) for other in ours(ast.walk(TREES[path]))} for path in FILES if room(path) == "tasks"}
    assert len(rooms) > 1 and not [str(path) for path, others in rooms.items() if "report" in others]


@every_file
def test_imports_are_absolute_and_by_name(path):
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            assert all(alias.name != "*" for alias in node.names), "star import"


def test_no_files_import_each_other_in_a_circle():
    """Imports within functions count: they hide a circle, they do not open it."""
    graph = {NAMES[path]: {NAMES[other] for other in ours(ast.walk(tree)) - {path}} for path, tree in TREES.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@every_file
def test_files_and_functions_stay_small(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= FILE_LINES
    assert not [i for i, line in enumerate(lines, 1) if len(line) > COLUMNS]
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = TRAIN_LINES if (room(path), node.name) == ("training", "train") else FUNCTION_LINES
            assert node.end_lineno is not None and node.end_lineno - node.lineno + 1 <= limit, node.name


@every_file
def test_an_any_has_its_reason_beside_it(path):
    """Or is an alias that has one: `convzoo/plain.py` holds those that many rooms need."""
    lines = path.read_text(encoding="utf-8").splitlines()
    numbers = {node.lineno for node in ast.walk(TREES[path]) if isinstance(node, ast.Name) and node.id == "Any"}
    assert not [f"{number}: {lines[number - 1]}" for number in numbers if "# Any: " not in lines[number - 1]]


@pytest.mark.parametrize("name", BUDGETS)
def test_rooms_stay_within_their_budgets(name):
    lines = [
        path.read_text(encoding="utf-8").count("\n")
        for path in FILES
        if (room(path) if room(path) in BUDGETS else "the rest") == name
    ]
    assert sum(lines) <= BUDGETS[name]


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_what_the_command_line_starts_with_does_not_import_torch(name):
    """Neither directly nor through what is imported, the packages around each file included."""
    waiting, seen = [path for path in FILES if room(path) == name], set()
    assert waiting
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        heavy = {module.split(".")[0] for module in imported(at_import(TREES[path]))} & HEAVY
        assert not heavy, f"{path.relative_to(PACKAGE)} imports {', '.join(heavy)}"
        waiting += ours(at_import(TREES[path]))
        waiting += [folder / "__init__.py" for folder in path.parents if folder.is_relative_to(PACKAGE)]
