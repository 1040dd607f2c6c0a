"""The folder that a training run leaves: what was asked, where it ran, what was measured, the weights.

A second run never writes into a first one's folder; only the continuation of the same run does (`continuation`). Only
rank 0 writes, but for the other ranks' logs.
"""

import contextlib
import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import torch

from convzoo.config.recipe import Recipe
from convzoo.environment import environment
from convzoo.files import named_in_errors, written_whole
from convzoo.plain import JsonObject
from convzoo.training.checkpoints import RunCheckpoints
from convzoo.training.lock import RunLock
from convzoo.version import __version__


class MetricRows:
    """The whole rows of a metrics.jsonl that somebody else writes, or this process does: each time what is new is read.

    A file that was replaced, as a continued run does, is read from its start again.
    """

    def __init__(self, path: Path):
        self._path = path
        self._identity, self._offset = 0, 0
        self._rows: list[JsonObject] = []

    def read(self) -> list[JsonObject]:
        """Return all rows there are, the same list each time; a line that is not whole yet is left for later."""
        try:
            with open(self._path, "rb") as file:
                facts = os.fstat(file.fileno())
                if facts.st_ino != self._identity or facts.st_size < self._offset:
                    self._identity, self._offset = facts.st_ino, 0
                    self._rows.clear()
                file.seek(self._offset)
                news = file.read()
        except FileNotFoundError:
            return self._rows
        whole = news[: news.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # cut by a crash, then gone on after
                self._rows.append(json.loads(line))
        return self._rows


class RunFolder:
    """One run's folder.

    Attributes:
        stage: "new", "continued" where the same run stopped or was killed there, or "finished".
    """

    def __init__(self, path: Path, recipe: Recipe, stage: str, lock: RunLock | None = None):
        self.path = path
        self.recipe = recipe
        self.stage = stage
        self.checkpoints = RunCheckpoints(path / "checkpoints", recipe.train.keep_checkpoint_max)
        self._lock = lock
        self._metrics_file: TextIO | None = None

    @property
    def interrupted(self) -> Path:
        return self.path / "interrupted"

    @property
    def finished(self) -> Path:
        """The file that is there once everything of the run is."""
        return self.path / "finished"

    def write_description(
        self, command: str, device: torch.device, data: JsonObject, split_lists: Mapping[str, list[str]] = {}
    ) -> None:
        """Write the data's account and lists of its splits, the environment, the command, and the resolved recipe.

        The recipe comes last: it makes the folder a run's.
        """
        header = f"# {self.recipe.name}, every key written out. convzoo {__version__}\n"
        lists = {f"splits/{split}.txt": "".join(f"{path}\n" for path in paths) for split, paths in split_lists.items()}
        texts = lists | {
            "data.json": _json(data),
            "env.json": _json(environment(device)),
            "command.txt": f"{command}\n",
            "recipe.yaml": header + self.recipe.to_yaml(),
        }
        for name, text in texts.items():
            (self.path / name).parent.mkdir(exist_ok=True)
            with written_whole(self.path / name) as temporary:
                temporary.write_text(text, encoding="utf-8", errors="surrogateescape")

    def add_metrics(self, row: JsonObject) -> None:
        """Append a row to metrics.jsonl; the file stays open, and each row is in it at once."""
        path = self.path / "metrics.jsonl"
        with named_in_errors(path):
            if self._metrics_file is None:
                self._metrics_file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
            self._metrics_file.write(json.dumps(row) + "\n")

    def metrics(self, kind: str = "") -> list[JsonObject]:
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
            self._lock.release()

    def _close_metrics(self) -> None:
        if self._metrics_file is not None:
            with contextlib.suppress(OSError):  # of a full disk, which was said when the row was written
                self._metrics_file.close()
            self._metrics_file = None

    def write_results(self) -> list[JsonObject]:
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


def _json(value: JsonObject) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
