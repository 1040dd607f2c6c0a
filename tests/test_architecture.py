"""docs/architecture.md and CHANGELOG.md: what they say of the code is what the code says."""

import re

import pytest
import yaml

import import_graph
from convzoo import model_file, version
from convzoo.deploy import metadata
from helpers import REPO

TEXT = import_graph.DOCUMENT.read_text(encoding="utf-8")


def test_the_import_graph_is_the_codes():
    assert import_graph.updated(TEXT) == TEXT, "run `python tests/import_graph.py --write`"


def test_an_arrow_that_follows_from_others_is_not_drawn():
    graph = {"c": {"b", "a"}, "b": {"a"}, "a": set()}
    assert import_graph.reduced(graph) == {"c": {"b"}, "b": {"a"}, "a": set()}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:convzoo|tests|docs|examples)/[\w./-]*)`", TEXT))))
def test_a_path_in_the_document_exists(path):
    assert (REPO / path).exists()


def test_before_a_commit_runs_what_lint_runs():
    (hooks,) = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert lint is not None
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in lint[1].splitlines()]
    assert [hook["entry"] for hook in hooks["hooks"]] == commands


def test_the_changelog_names_the_versions_and_formats():
    newest = (REPO / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1]
    assert newest.startswith(version.__version__)
    assert (
        f"Model file format: {model_file.FORMAT}." in newest and f"Exported file format: {metadata.FORMAT}." in newest
    )
