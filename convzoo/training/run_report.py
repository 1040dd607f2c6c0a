"""A run's page: what lies in its folder, read into plain values for `report.html`."""

import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from convzoo.build import build_dataset
from convzoo.config import recipe as recipes
from convzoo.config.recipe import Recipe
from convzoo.errors import ConvzooError, UsageError, exit_code_and_message
from convzoo.files import written_whole
from convzoo.inference.bootstrap import wilson
from convzoo.logs import log
from convzoo.plain import JsonObject
from convzoo.report.charts import Chart, Series
from convzoo.report.html import Number, RunView, page
from convzoo.report.pictures import Room
from convzoo.report.tables import percent
from convzoo.storage import url_of
from convzoo.training.continuation import list_sha256
from convzoo.training.run_deployment import deployment
from convzoo.training.run_folder import MetricRows
from convzoo.training.run_pictures import EvaluatedPictures
from convzoo.types import Dataset, Pictures

PICTURES_BYTES = 3_400_000  # of all pictures of a page, which is to stay below 5 MB
CHANGING = ("metrics.jsonl", "eval/metrics.json", "interrupted", "finished")  # of a run's files
MOST_SHARE = 0.02  # of a run's time that its page may take
NAMES = {"top1": "top-1", "top5": "top-5", "AP": "AP", "AP50": "AP50", "AP75": "AP75"}


class Report:
    """The page of one run, or of several beside each other; asked again, what is new in their folders is read on."""

    def __init__(self, runs: Sequence[Path], data: Path | None = None):
        """Take the folders.

        Args:
            data: where the validation pictures are now; None for where they were.
        Raises:
            UsageError: a folder that is no run's.
        """
        for run in runs:
            if not (run / "recipe.yaml").is_file():
                raise UsageError(f"{run}: no folder of a run (there is no recipe.yaml in it)")
        names = [run.resolve().name for run in runs]
        names = names if len(set(names)) == len(names) else [str(run) for run in runs]
        self._runs, self._data = [RunFiles(run, name) for run, name in zip(runs, names, strict=True)], data

    def page(self, live: bool = False) -> str:
        """Return the page; `live`: see `report.html.page`."""
        room = PICTURES_BYTES // len(self._runs)
        return page([run.view(self._data, Room(room)) for run in self._runs], live)

    def version(self) -> str:
        """Return what is another text once anything that the page shows is new."""
        return " ".join(run.version() for run in self._runs)


def write_report(runs: Sequence[Path], out: Path, data: Path | None = None) -> None:
    """Write a `Report` as a file. Raises UsageError: a folder that is no run's."""
    text = Report(runs, data).page()
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


class RunReport:
    """The page of a run that goes on: written at the ends of epochs, never for more than a small share of the time."""

    def __init__(self, run: Path):
        self._files = RunFiles(run, run.resolve().name)
        self._out = run / "report.html"
        self._ended_s, self._cost_s = -np.inf, 0.0
        self._failed = False

    def update(self, finished: bool = False, dataset: Pictures | None = None) -> None:
        """Bring the page up to date, unless that was just done. A failure is one warning, and never stops a run.

        Args:
            finished: everything else of the run is there, its pictures belong to the page.
            dataset: the validation data.
        """
        started = time.perf_counter()
        if not finished and (self._failed or started - self._ended_s < self._cost_s / MOST_SHARE):
            return
        try:
            view = self._files.view(None, Room(PICTURES_BYTES if finished else 0), dataset, finished)
            with written_whole(self._out) as temporary:
                temporary.write_text(page([view]), encoding="utf-8")
        except Exception as error:
            if not self._failed:
                log.warning(f"{self._out}: not written: {exit_code_and_message(error)[1]}; the run goes on without it")
            self._failed = True
        self._ended_s = time.perf_counter()
        self._cost_s = self._ended_s - started


class RunFiles:
    """A run's folder, read; asked again, what grew is read on."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        self._metrics = MetricRows(path / "metrics.jsonl")

    @functools.cached_property
    def _recipe(self) -> Recipe:
        return recipes.load(str(self.path / "recipe.yaml"))

    @functools.cached_property
    def _account(self) -> JsonObject:
        return _json(self.path / "data.json")

    def version(self) -> str:
        facts = [path.stat() for name in CHANGING if (path := self.path / name).is_file()]
        return ",".join(f"{fact.st_size}.{fact.st_mtime_ns}" for fact in facts)

    def view(
        self, data: Path | None, room: Room, dataset: Pictures | None = None, finished: bool | None = None
    ) -> RunView:
        """Return what the page shows.

        Args:
            data: where the validation pictures are now; None for where they were.
            room: for pictures; without any nothing is looked for beyond the numbers.
            dataset: the validation data where it is open already.
            finished: None for what the folder says.
        """
        recipe, account = self._recipe, self._account
        rows = self._metrics.read()
        steps, epochs = ([row for row in rows if row["kind"] == kind] for kind in ("step", "epoch"))
        finished = (self.path / "finished").is_file() if finished is None else finished
        result = _json(self.path / "eval/metrics.json") if finished else {}
        view = RunView(
            self.name,
            str(self.path),
            "finished" if finished else "interrupted" if (self.path / "interrupted").is_file() else "running",
            _progress(recipe, account, steps, finished),
            _summary(recipe, account),
            _text(self.path / "command.txt").strip(),
            _again(self.path, account) if result else "",
            recipe.plain(),
            _text(self.path / "recipe.yaml"),
            charts=_charts(steps, epochs),
            machine={key: str(value) for key, value in _json(self.path / "env.json").items() if value is not None},
        )
        _add_numbers(view, result, epochs)
        if not result:
            why = "" if finished else "This comes with the evaluation at the end of the run."
            why = why or "Not measured: the run did not evaluate."
            view.missing |= dict.fromkeys(("confusion", "curve", "pictures", "explained"), why)
        elif room.left:
            load = self._loader(recipe, account, data, dataset, view)
            EvaluatedPictures(self.path, account["class_names"], load, room).show(view)
        view.deployment = deployment(self.path) if finished else []
        if not view.deployment:
            view.missing["deployment"] = "No exported file lies in the run's folder, and no measurement of one."
        return view

    def _loader(
        self, recipe: Recipe, account: JsonObject, data: Path | None, dataset: Pictures | None, view: RunView
    ) -> Callable[[int], np.ndarray] | None:
        """Return what gives the evaluated pictures [H, W, 3] uint8; without them None, and the reason in the view."""
        root = account.get("val_root", account["root"])
        place = data or (None if root == "None" else Path(root))
        try:
            if dataset is None and data is None and place is not None and url_of(place):
                raise UsageError(f"{root} is behind a URL, which is not asked unless it is named")
            pictures = self._opened(recipe, account, place) if dataset is None else dataset
            pictures.load(0)
        except (ConvzooError, OSError) as error:
            reason = exit_code_and_message(error)[1]
            view.missing["pictures"] = f"The pictures are not here: {reason}."
            view.missing["explained"], view.pictures_gone = view.missing["pictures"], True
            return None
        return lambda i: pictures.load(i).image.permute(1, 2, 0).numpy()

    def _opened(self, recipe: Recipe, account: JsonObject, place: Path | None) -> Dataset:
        """Return the validation data, which must be what was evaluated. Raises UsageError, DataError."""
        dataset = build_dataset(recipe, place, "val", alone="val_root" in account)
        if account.get("val_list_sha256") not in (None, list_sha256(dataset)):
            raise UsageError(f"{place}: not the pictures that were evaluated; their list or labels differ")
        return dataset


def _json(path: Path) -> JsonObject:
    return json.loads(_text(path) or "{}")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _summary(recipe: Recipe, account: JsonObject) -> str:
    validation = f"{account['val_images']:,}" if account["val_images"] else "no"
    return (
        f"{recipe.model['name']} on {recipe.data['name']}: {account['train_images']:,} training and {validation} "
        f"validation images, {len(account['class_names'])} classes, {recipe.train.epochs} epochs, seed {recipe.seed}."
    )


def _progress(recipe: Recipe, account: JsonObject, steps: list[JsonObject], finished: bool) -> str:
    per_epoch = max(1, account["train_images"] // recipe.train.batch_size)
    epochs, done = recipe.train.epochs, steps[-1]["step"] if steps else 0
    if finished:
        return f"{epochs * per_epoch:,} steps in {epochs} epochs"
    return f"step {done:,} of {epochs * per_epoch:,}, epoch {min(done // per_epoch + 1, epochs)} of {epochs}"


def _again(path: Path, account: JsonObject) -> str:
    root = account.get("val_root", account["root"])
    return f"convzoo eval {path}/checkpoints/last.safetensors" + ("" if root == "None" else f" --data {root}")


def _charts(steps: list[JsonObject], epochs: list[JsonObject]) -> list[Chart]:
    def line(name: str, rows: list[JsonObject], key: str, colour: int | None, scale: float = 1.0) -> Series:
        points = [(float(row["step"]), scale * row[key]) for row in rows if row.get(key) is not None]
        return Series(name, points, colour)

    parts = dict.fromkeys(key for row in epochs for key in row if key.startswith("loss_"))
    losses = [line("per step", steps, "loss", None), line("epoch mean", epochs, "loss", 0)]
    losses += [line(part.removeprefix("loss_"), epochs, part, i % 7 + 1) for i, part in enumerate(parts)]
    charts = [Chart("Training loss", "step", losses, log=bool(parts), main=1)]
    if any("AP" in row for row in epochs):
        shares = [line("AP", epochs, "AP", 0, 100), line("AP50", epochs, "AP50", 1, 100)]
        charts.append(Chart("Average precision on validation images", "step", shares, "%"))
    elif any(row.get(key) is not None for row in epochs for key in ("top1", "train_top1")):
        shares = [line("validation images", epochs, "top1", 0, 100)]
        shares.append(line("training images, augmented", epochs, "train_top1", 1, 100))
        charts.append(Chart("Top-1 accuracy", "step", shares, "%"))
    return [*charts, Chart("Learning rate", "step", [line("learning rate", steps, "lr", 2)])]


def _add_numbers(view: RunView, result: JsonObject, epochs: list[JsonObject]) -> None:
    """Add the final evaluation's numbers, or those of the last epoch that evaluated."""
    row = result or next((row for row in reversed(epochs) if "images" in row), {})
    if not row:
        finished = view.state == "finished"
        view.missing["numbers"] = "Nothing was evaluated." if finished else "No epoch was evaluated yet."
        return
    count = f"n = {row['images']:,} of {row['images_expected']:,} images"
    note = "" if result else f"after epoch {row['epoch']}"
    skipped = {"loss", "lr", "seconds", "images_per_s", "train_top1", "grad_norm"}
    for key, value in row.items():
        if isinstance(value, float) and key not in skipped and not key.startswith("loss_"):
            interval = row.get("intervals", {}).get(key)
            if interval is None and key in ("top1", "top5"):
                interval = wilson(value, row["images"])
            shown = "" if interval is None else f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f} %"
            number = Number(NAMES.get(key, key.replace("_", ", ")), percent(value), shown, count, note)
            (view.numbers if key in NAMES else view.more_numbers).append(number)
