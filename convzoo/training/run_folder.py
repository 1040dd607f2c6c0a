"""The folder that a training run leaves: what was asked, where it ran, what was measured, the weights.

A second run never writes into a first one's folder; only the continuation of the same run does. A lock keeps two
processes apart. Only rank 0 writes.
"""

import contextlib
import csv
import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml

from convzoo.config.recipe import Recipe
from convzoo.environment import environment
from convzoo.errors import UsageError
from convzoo.files import written_whole
from convzoo.training.checkpoints import RunCheckpoints
from convzoo.version import __version__

FREE_KEYS = {"train.keep_checkpoint_max", "train.save_every_epochs"}  # may change between two parts of a run


class RunFolder:
    """One run's folder, open for writing."""

    def __init__(self, path: Path, recipe: Recipe, lock: TextIO | None):
        self.path = path
        self.recipe = recipe
        self.checkpoints = RunCheckpoints(path / "checkpoints", recipe.train.keep_checkpoint_max)
        self._lock = lock  # held until it is closed, at the latest when the process ends
        self._metrics_file: TextIO | None = None

    @property
    def interrupted(self) -> Path:
        return self.path / "interrupted"

    @property
    def finished(self) -> Path:
        """The file that is there once everything of the run is."""
        return self.path / "finished"

    def write_description(
        self, command: str, device: torch.device, data: dict[str, Any], split_lists: Mapping[str, list[str]] = {}
    ) -> None:
        """Write the resolved recipe, the command, the environment, the data's account and lists of its splits."""
        header = f"# {self.recipe.name}, every key written out. convzoo {__version__}\n"
        (self.path / "recipe.yaml").write_text(header + self.recipe.to_yaml(), encoding="utf-8")
        (self.path / "command.txt").write_text(f"{command}\n", encoding="utf-8")
        _write_json(self.path / "env.json", environment(device))
        _write_json(self.path / "data.json", data)
        for split, paths in split_lists.items():
            (self.path / "splits").mkdir(exist_ok=True)
            lines = "".join(f"{path}\n" for path in paths)
            (self.path / "splits" / f"{split}.txt").write_text(lines, encoding="utf-8", errors="surrogateescape")

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl; the file stays open, and each row is in it at once."""
        if self._metrics_file is None:
            self._metrics_file = open(self.path / "metrics.jsonl", "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        self._metrics_file.write(json.dumps(row) + "\n")

    def metrics(self, kind: str = "") -> list[dict[str, Any]]:
        """Return the whole rows of metrics.jsonl, or those of one kind; a line cut by a crash is left out."""
        if not (self.path / "metrics.jsonl").is_file():
            return []
        start = f'{{"kind": "{kind}"' if kind else ""
        rows = []
        for line in (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            if line.startswith(start):  # of a hundred thousand steps only the few epochs are parsed
                with contextlib.suppress(json.JSONDecodeError):
                    rows.append(json.loads(line))
        return rows

    def forget_after(self, step: int) -> None:
        """Drop rows that a continued run will measure again."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        self._close_metrics()
        with written_whole(self.path / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def close(self) -> None:
        """Close what is open and give the folder free for another process."""
        self._close_metrics()
        if self._lock is not None:
            self._lock.close()

    def _close_metrics(self) -> None:
        if self._metrics_file is not None:
            self._metrics_file.close()
            self._metrics_file = None

    def write_results(self) -> list[dict[str, Any]]:
        """Write one row an epoch to results.csv and return them."""
        rows = self.metrics("epoch")
        if rows:
            names = list(dict.fromkeys(key for row in rows for key in row if key != "kind"))
            with (
                written_whole(self.path / "results.csv") as temporary,
                open(temporary, "w", newline="", encoding="utf-8") as file,
            ):
                writer = csv.DictWriter(file, names, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)
        return rows


def open_run(out: Path | None, recipe: Recipe, resume: bool) -> tuple[RunFolder, bool]:
    """Return a run's folder and whether an earlier part of the same run is continued there.

    Without `out` it is runs/NAME, or runs/NAME-2 and so on. A run that was interrupted and saved is continued by the
    same command; `resume` also continues one that was killed.

    Raises:
        UsageError: the folder is in use, holds another run, or there is nothing to resume.
    """
    path = out or _next_default(recipe, resume)
    continued = (path / "recipe.yaml").is_file() and (resume or (path / "interrupted").is_file())
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: a file, not a folder", ("out",))
    if path.is_dir() and any(path.iterdir()) and not continued:
        raise UsageError(f"{path}: not empty; choose another folder, or continue the run in it", ("out", "resume"))
    if resume and not continued:
        raise UsageError(f"{path}: there is no run in it to continue", ("out",))
    if continued:
        _check_same_recipe(path, recipe)
    path.mkdir(parents=True, exist_ok=True)
    return RunFolder(path, recipe, _take_lock(path)), continued


def _next_default(recipe: Recipe, resume: bool) -> Path:
    base = Path("runs") / recipe.name
    folders = []
    path, number = base, 1
    while path.exists():
        folders.append(path)
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    for earlier in reversed(folders):
        same = (earlier / "recipe.yaml").is_file() and not _differences(earlier, recipe)
        if same and (resume or (earlier / "interrupted").is_file()):
            return earlier
    if resume:
        raise UsageError(f"{base.parent}: no run of this recipe below it to continue; name its folder", ("out",))
    return path


def _plain_recipe(path: Path) -> Any:
    return yaml.safe_load((path / "recipe.yaml").read_text(encoding="utf-8"))


def _differences(path: Path, recipe: Recipe) -> list[tuple[str, Any, Any]]:
    """Return (key, value there, value now) of what keeps a run from being continued with a recipe."""
    earlier, now = _flat(_plain_recipe(path)), _flat(recipe.plain())
    keys = sorted((earlier.keys() | now.keys()) - FREE_KEYS)
    return [(key, earlier.get(key), now.get(key)) for key in keys if earlier.get(key) != now.get(key)]


def _check_same_recipe(path: Path, recipe: Recipe) -> None:
    for key, earlier, now in _differences(path, recipe)[:1]:
        raise UsageError(
            f"{path} is a run with {key}={earlier}, not {now}: a run is continued with its own recipe, "
            "or a new one started elsewhere"
        )


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, child in value.items() for k, v in _flat(child, f"{path}.{key}" if path else key).items()}
    return {path: value}


def _take_lock(path: Path) -> TextIO:
    lock = open(path / ".lock", "w")  # noqa: SIM115 (held until the run ends)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UsageError(f"{path}: another process is training there", ("out",)) from None
    return lock


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
