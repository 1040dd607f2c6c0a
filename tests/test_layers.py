"""The architecture: imports point one way, files stay small."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "convzoo"
LAYERS = [
    {"errors", "logs", "registry", "types", "boxes", "dist"},
    {"recipe_yaml"},
    {"recipe"},
    {"report"},
    {"data", "models"},
    {"tasks"},
    {"optim", "checkpoint"},
    {"weights"},
    {"evaluate"},
    {"train_setup", "run_folder"},
    {"meter"},
    {"training"},
    {"predict_files"},
    {"predict", "convert"},
    {"deploy"},
    {"bench", "serve"},
    {"api"},
    {"cli_data"},
    {"cli_predict", "cli_deploy", "cli_bench"},
    {"cli"},
    {"__main__", "__init__"},
]
WITHOUT_TORCH = ["errors", "logs", "registry", "recipe_yaml", "recipe", "cli"]
FILES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def imported_parts(tree: ast.AST) -> set[str]:
    """The parts of convzoo that a file imports, wherever in it."""
    parts = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "convzoo":
            parts |= {alias.name for alias in node.names if any(alias.name in layer for layer in LAYERS)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("convzoo."):
            parts.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            parts |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("convzoo.")}
    return parts


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_earlier_layers(path):
    tree = ast.parse(path.read_text())
    own = part(path)
    for other in imported_parts(tree) - {own}:
        # types names nothing of convzoo; within one layer files may use each other, which Python itself keeps acyclic
        assert level(other) <= level(own), f"{own} imports {other}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            assert all(alias.name != "*" for alias in node.names), "star import"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            limit = 120 if node.name == "train" else 50
            assert node.end_lineno - node.lineno + 1 <= limit, node.name


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_the_early_layers_do_not_import_torch(name):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.name for node in top for alias in node.names} | {getattr(node, "module", "") or "" for node in top}
    assert not any(module.split(".")[0] in ("torch", "torchvision", "numpy") for module in modules)
