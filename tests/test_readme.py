"""README.md's commands: the quick ones are run, of the others verbs, options, recipes and keys exist.

What needs data of the reader's, the network or minutes is checked by its arguments alone; RUN lists what is run.
"""

import re
import shlex
import shutil
import subprocess
from typing import Any

import pytest
import typer
from PIL import Image
from typer.core import TyperCommand, TyperGroup

from convzoo import build, cli
from convzoo.config import recipe as recipes
from convzoo.data.datasets.digits import digits
from helpers import REPO

TEXT = (REPO / "README.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S)
LINES = [line for language, block in FENCES if not language for line in block.splitlines() if line.strip()]
COMMANDS = [shlex.join(shlex.split(line, comments=True)) for line in LINES]
RUN = [
    "convzoo list",
    "convzoo list --weights",
    "convzoo eval runs/x --json",
    "convzoo predict MODEL 'holiday/**/*.jpg' --save annotated/",
    "convzoo export MODEL --format onnx",
    "convzoo convert model.safetensors --to darknet --out model.weights",
]
LAUNCHER = ["torchrun", "--nproc-per-node", "8", "--max-restarts", "3", "-m"]  # the same command, once a rank


def arguments(command: str) -> list[str]:
    words = shlex.split(command)
    return words[len(LAUNCHER) + 1 :] if words[: len(LAUNCHER)] == LAUNCHER else words[1:]


def parsed(words: list[str]) -> tuple[str | None, dict[str, Any]]:
    """Parse a command line as it is parsed to be run; return the verb and its parameters, or raise as it would."""
    command, name = typer.main.get_command(cli.app), "convzoo"
    while isinstance(command, TyperGroup):
        context = command.make_context(name, words, resilient_parsing=True)
        name, found, words = command.resolve_command(context, words)
        assert isinstance(found, TyperGroup | TyperCommand)
        command = found
    return name, command.make_context(name, words).params


def test_every_command_is_one_of_ours():
    assert len(COMMANDS) > 30 and set(RUN) <= set(COMMANDS)
    assert {shlex.split(command)[0] for command in COMMANDS} == {"make", "convzoo", "torchrun"}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_a_target_is_in_the_makefile(command):
    done = subprocess.run(["make", "-n", *arguments(command)], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith("make ")])
def test_a_command_parses_and_its_recipe_takes_its_keys(command):
    verb, options = parsed(arguments(command))
    if verb == "train" and options["recipe"] in recipes.shipped():
        build.check_recipe(recipes.load(options["recipe"], options["overrides"] or []))


def test_a_mistake_in_a_command_would_be_noticed():
    with pytest.raises(Exception, match="No such option"):
        parsed(["predict", "MODEL", "pictures/", "--sav", "drawn/"])


@pytest.mark.parametrize("command", RUN)
def test_a_quick_command_runs(command, run, digits_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/x/checkpoints", "holiday/2026"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("model.safetensors", "runs/x/checkpoints/last.safetensors"):
        shutil.copy(digits_run / "checkpoints/last.safetensors", tmp_path / name)
    Image.fromarray(digits(None, "val").load(0).image.permute(1, 2, 0).numpy()).save("holiday/2026/a.jpg")
    words = ["model.safetensors" if word == "MODEL" else word for word in arguments(command)]
    code, out, err = run(*words)
    assert code == 0 and out.strip(), err
    written = {"--save": "annotated/*", "--format": "model.onnx", "--out": "model.weights"}
    assert all(any(tmp_path.glob(files)) for option, files in written.items() if option in words)
