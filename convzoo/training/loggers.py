"""Trackers of experiments: a run's rows go on to TensorBoard, MLflow or Weights & Biases, while it goes or afterwards.

They are fed from the run's folder and know nothing of training. What was sent stands in the folder's trackers.json, so
that nothing is sent twice. One that fails is left out from then on, with one warning: a run never stops for it.
"""

import importlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

from convzoo.config import recipe as recipes
from convzoo.errors import ConvzooError, MissingPackageError, UsageError, exit_code_and_message
from convzoo.files import written_whole
from convzoo.logs import log
from convzoo.plain import JsonObject
from convzoo.report.html import flat
from convzoo.training.run_folder import MetricRows

SENT = "trackers.json"
SEND_EVERY_S = 30.0  # within an epoch
MLFLOW_METRICS, MLFLOW_PARAMS = 1000, 100  # in one request
MLFLOW_PARAM_LENGTH = 500
# Nothing is reported home, and a server that does not answer holds the run up for half a minute, not for half an hour.
MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}


@dataclass
class TrackedRun:
    """What a tracker is told of a run.

    Attributes:
        recipe: keys as section.key, and their values as text.
        identity: by which the tracker knows the run again; empty the first time, then what `start` put there.
    """

    path: Path
    name: str
    project: str
    recipe: dict[str, str]
    identity: str = ""


class Tracker(Protocol):
    """Where rows go; its three methods may fail."""

    @staticmethod
    def library() -> ModuleType:
        """Import what it needs. Raises MissingPackageError."""
        ...

    def start(self, run: TrackedRun) -> None:
        """Begin, or go on with, the run of this identity."""
        ...

    def log(self, rows: Sequence[JsonObject]) -> None:
        """Take rows of metrics.jsonl; they are safe when it returns."""
        ...

    def end(self, status: str) -> None:
        """Take how the run ended: "finished", "interrupted" or "running", which it will go on with."""
        ...


def scalars(row: JsonObject) -> dict[str, float]:
    """Return the numbers of a row by KIND/NAME."""
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
    return {f"{row['kind']}/{name}": value for name, value in numbers.items()}


class TensorBoard:
    """Event files in the run's folder, in double precision: what is read there is what was measured."""

    @staticmethod
    def library() -> ModuleType:
        return _library("tensorboard", "convzoo[loggers]")

    def start(self, run: TrackedRun) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(run.path / "tensorboard"))
        if not run.identity:
            lines = "\n".join(f"| {key} | {value} |" for key, value in run.recipe.items())
            self._writer.add_text("recipe", f"| key | value |\n| --- | --- |\n{lines}", 0)
        run.identity = run.name

    def log(self, rows: Sequence[JsonObject]) -> None:
        for row in rows:
            for name, value in scalars(row).items():
                self._writer.add_scalar(name, value, row["step"], new_style=True, double_precision=True)
        self._writer.flush()

    def end(self, status: str) -> None:
        self._writer.close()


class MLflow:
    """A run of MLflow, wherever MLFLOW_TRACKING_URI says; the experiment is the recipe's name."""

    @staticmethod
    def library() -> ModuleType:
        for name, value in MLFLOW_SETTINGS.items():
            os.environ.setdefault(name, value)
        return _library("mlflow", "mlflow")

    def start(self, run: TrackedRun) -> None:
        self._entities, self._client = importlib.import_module("mlflow.entities"), self.library().MlflowClient()
        if not run.identity:
            experiment = self._client.get_experiment_by_name(run.project)
            number = experiment.experiment_id if experiment else self._client.create_experiment(run.project)
            run.identity = self._client.create_run(number, run_name=run.name).info.run_id
            params = [
                self._entities.Param(key, value[:MLFLOW_PARAM_LENGTH] or "-") for key, value in run.recipe.items()
            ]
            for i in range(0, len(params), MLFLOW_PARAMS):
                self._client.log_batch(run.identity, params=params[i : i + MLFLOW_PARAMS])
        self._id = run.identity

    def log(self, rows: Sequence[JsonObject]) -> None:
        now = int(1000 * time.time())
        metrics = [
            self._entities.Metric(name, value, now, row["step"]) for row in rows for name, value in scalars(row).items()
        ]
        for i in range(0, len(metrics), MLFLOW_METRICS):
            self._client.log_batch(self._id, metrics=metrics[i : i + MLFLOW_METRICS])

    def end(self, status: str) -> None:
        ends = {"finished": "FINISHED", "interrupted": "KILLED"}
        if status in ends:
            self._client.set_terminated(self._id, ends[status])


class WandB:
    """A run of Weights & Biases; without an API key it is kept offline in the run's folder, for `wandb sync`."""

    @staticmethod
    def library() -> ModuleType:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        return _library("wandb", "wandb")

    def start(self, run: TrackedRun) -> None:
        wandb = self.library()
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.identity or None,
            resume="allow" if run.identity and mode == "online" else None,
            config=run.recipe,
            dir=str(run.path),
            mode=mode,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True),
        )
        run.identity = self._run.id

    def log(self, rows: Sequence[JsonObject]) -> None:
        for row in rows:
            self._run.log(scalars(row), step=row["step"])

    def end(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "finished" else 1)


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def check_trackers(names: Sequence[str]) -> None:
    """Raise UsageError for an unknown tracker, MissingPackageError where its library is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"no tracker '{name}'; there are {', '.join(TRACKERS)}", ("log_to", "to"))
        TRACKERS[name].library()


def _library(name: str, install: str) -> ModuleType:
    """Import a tracker's library. Raises MissingPackageError."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(f"{name} is not installed: pip install '{install}' ({error})") from None


class TrackerFeed:
    """Send a run's rows to trackers, those that have not been sent."""

    def __init__(self, run: Path, names: Sequence[str]):
        """Start the trackers.

        Raises:
            UsageError, MissingPackageError: as `check_trackers`. Any other failure is a warning.
        """
        check_trackers(names)
        self._path, self._rows = run, MetricRows(run / "metrics.jsonl")
        self._sent: dict[str, JsonObject] = {}
        if (run / SENT).is_file():
            self._sent = json.loads((run / SENT).read_text(encoding="utf-8"))
        self._trackers: dict[str, Tracker] = {}
        self._last_s = time.monotonic()
        for name in dict.fromkeys(names):
            tracker = TRACKERS[name]()
            if self._succeeds(name, lambda name=name, tracker=tracker: self._start(name, tracker)):
                self._trackers[name] = tracker

    def _start(self, name: str, tracker: Tracker) -> None:
        recipe = recipes.load(str(self._path / "recipe.yaml"))
        sent = self._sent.get(name, {"identity": "", "rows": 0})
        run = TrackedRun(
            self._path, self._path.resolve().name, recipe.name, flat(recipe.plain()), str(sent["identity"])
        )
        tracker.start(run)
        self._sent[name] = {"identity": run.identity, "rows": sent["rows"]}

    def send(self, at_once: bool = True) -> dict[str, int]:
        """Send what is new, and return how many rows each tracker got.

        Args:
            at_once: False not to, unless it was not done for a while.
        """
        if not self._trackers or (not at_once and time.monotonic() - self._last_s < SEND_EVERY_S):
            return {}
        rows, counts = self._rows.read(), {}
        for name, tracker in list(self._trackers.items()):
            news = rows[self._sent[name]["rows"] :]
            if self._succeeds(name, lambda tracker=tracker, news=news: tracker.log(news)):
                self._sent[name]["rows"], counts[name] = len(rows), len(news)
        with written_whole(self._path / SENT) as temporary:
            temporary.write_text(json.dumps(self._sent, indent=2) + "\n", encoding="utf-8")
        self._last_s = time.monotonic()
        return counts

    def end(self, status: str) -> None:
        """Close the trackers."""
        for name, tracker in list(self._trackers.items()):
            self._succeeds(name, lambda tracker=tracker: tracker.end(status))
        self._trackers = {}

    def _succeeds(self, name: str, act: Callable[[], object]) -> bool:
        """Do it; a failure is a warning, and the end of this tracker."""
        try:
            act()
        except Exception as error:
            log.warning(f"{name}: {exit_code_and_message(error)[1]}; nothing more is sent there")
            self._trackers.pop(name, None)
            return False
        return True


def send_run(run: Path, names: Sequence[str]) -> dict[str, int]:
    """Send a run that lies there to trackers, and return how many rows each got.

    Raises:
        UsageError: a folder that is no run's, or an unknown tracker.
        MissingPackageError: its library is not installed.
        ConvzooError: one of them failed; its warning says why.
    """
    if not (run / "recipe.yaml").is_file():
        raise UsageError(f"{run}: no folder of a run (there is no recipe.yaml in it)")
    feed = TrackerFeed(run, names)
    counts = feed.send()
    marks = [name for name in ("finished", "interrupted") if (run / name).is_file()]
    feed.end(marks[0] if marks else "running")
    failed = [name for name in names if name not in counts]
    if failed:
        raise ConvzooError(f"{run}: not sent to {', '.join(failed)}")
    return counts
