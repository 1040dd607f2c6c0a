"""What a run shows and writes while it goes."""

import contextlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from convzoo import distributed, logs
from convzoo.files import written_whole
from convzoo.inference.evaluate import Evaluation
from convzoo.logs import log
from convzoo.report.plots import plot_curves
from convzoo.report.run_readme import write_card
from convzoo.report.tables import summary
from convzoo.training.loggers import TrackerFeed
from convzoo.training.run_folder import RunFolder
from convzoo.training.run_report import RunReport
from convzoo.training.setup import TrainState

LOG_EVERY_S = 20.0
DRAW_EVERY_S = 30.0  # drawing takes half a second, which epochs may be shorter than


class ProgressLogger:
    """A bar on a terminal, a line now and then elsewhere, or every so many steps where asked for, rows of metrics."""

    def __init__(self, state: TrainState, run: RunFolder):
        self.state, self.run = state, run
        self.is_main = distributed.rank() == 0
        self.bar = logs.bar(state.total_steps if self.is_main else 0, state.progress.step, state.recipe.name)
        self.restart()
        self.drawn = -math.inf
        self.page = RunReport(run.path)
        self.trackers = TrackerFeed(run.path, state.options.log_to if self.is_main else ())

    def restart(self) -> None:
        """Measure speed from now on."""
        self.since, self.steps, self.waited_s = time.perf_counter(), 0, 0.0
        self.last_line = self.since
        self.line_since, self.line_steps = self.since, 0

    def _speed(self) -> tuple[float, float]:
        seconds = max(1e-9, time.perf_counter() - self.since)
        return self.steps * self.state.effective_batch / seconds, self.waited_s / seconds

    def end_training(self) -> None:
        """Take the epoch's speed before its evaluation begins."""
        self.epoch_speed, self.epoch_s = self._speed(), time.perf_counter() - self.since

    def step(self, logged: dict[str, float], lr: float, grad_norm: float, waited_s: float) -> None:
        self.steps, self.line_steps, self.waited_s = self.steps + 1, self.line_steps + 1, self.waited_s + waited_s
        if not self.is_main:
            return
        step = self.state.progress.step
        self.run.add_metrics({"kind": "step", "step": step, "lr": lr, **logged, "grad_norm": grad_norm})
        self.trackers.send(at_once=False)
        images_per_s, waiting = self._speed()
        self.bar.update()
        self.bar.set_postfix_str(
            f"loss {logged['loss']:.3f}, {images_per_s:.0f} img/s, waiting for data {100 * waiting:.0f} %",
            refresh=False,
        )
        every = self.state.options.log_every_steps
        if every is None and not logs.on_terminal() and time.perf_counter() - self.last_line > LOG_EVERY_S:
            self.last_line = time.perf_counter()
            left_s = (self.state.total_steps - step) * self.state.effective_batch / images_per_s
            log.info(
                f"step {step}/{self.state.total_steps}  loss {logged['loss']:.4f}  lr {lr:.6f}  "
                f"{images_per_s:.0f} img/s  waiting for data {100 * waiting:.0f} %  {left_s / 60:.1f} min left"
            )
        elif every is not None and step % every == 0:
            self._line(step, logged["loss"], lr)

    def _line(self, step: int, loss: float, lr: float) -> None:
        """Log a step, and the speed since the line before or the start of the epoch."""
        now = time.perf_counter()
        step_s = max(1e-9, now - self.line_since) / self.line_steps
        self.line_since, self.line_steps = now, 0
        log.info(
            f"step {step}/{self.state.total_steps}  loss {loss:.4f}  lr {lr:.6f}  "
            f"{self.state.effective_batch / step_s:.0f} img/s  {1000 * step_s:.1f} ms a step"
        )

    def close_epoch(self, epoch: int, means: dict[str, float], evaluation: Evaluation | None) -> None:
        if self.is_main:
            images_per_s, waiting = self.epoch_speed
            step, epochs = self.state.progress.step, self.state.recipe.train.epochs
            lr = self.state.lr_at(step - 1)
            result = evaluation.result if evaluation else {}
            self.run.add_metrics(
                {
                    "kind": "epoch",
                    "step": step,
                    "epoch": epoch,
                    "lr": lr,
                    **means,
                    **result,
                    "images_per_s": round(images_per_s, 1),
                }
            )
            measured = f"  {summary(result)}" if result else ""
            seconds = f"trained {self.epoch_s:.1f} s" + (
                f", evaluated {evaluation.seconds:.1f} s" if evaluation else ""
            )
            log.info(
                f"epoch {epoch}/{epochs}  loss {means['loss']:.4f}{measured}  lr {lr:.6f}  {images_per_s:.0f} img/s  "
                f"waiting for data {100 * waiting:.0f} %  {seconds}"
            )

    def report(self, evaluation: Evaluation | None = None, finished: bool = False, draw: bool = True) -> None:
        """Bring results.csv, the curves, README.md and report.html up to date.

        Args:
            evaluation: the final one of a finished run that evaluates.
            draw: the curves too, whenever they were drawn last.
        """
        if not self.is_main:
            return
        state, run, progress = self.state, self.run, self.state.progress
        rows = run.write_results()
        if draw or time.perf_counter() - self.drawn > DRAW_EVERY_S:
            plot_curves(run.metrics(), run.path / "plots", state.recipe.name)
            self.drawn = time.perf_counter()
        facts = {
            "command": state.options.command,
            "recipe": state.recipe.plain(),
            "env": json.loads((run.path / "env.json").read_text()),
            "data": state.data_account,
            "best": progress.best,
            "model_file": run.path / "checkpoints" / "last.safetensors",
            "skipped": {
                "unreadable training images were left out": progress.images_left_out,
                "updates were left out (overflow)": progress.updates_left_out,
            },
            "unfinished": None if finished else f"step {progress.step} of {state.total_steps}",
        }
        with written_whole(run.path / "README.md") as temporary:
            write_card(temporary, state.recipe.name, facts, evaluation.result if evaluation else {}, rows)
        self.page.update(finished, state.val_data.dataset if state.val_data else None)
        self.trackers.send()
        if finished:
            self.trackers.end("finished")


@contextlib.contextmanager
def profiled(enabled: bool, folder: Path, steps_left: int) -> Iterator[Callable[[], None]]:
    """Profile three steps after two that do not count, or what a shorter run has, into trace.json and operators.txt.

    Args:
        steps_left: how many the run still has; with fewer than five the profiled ones are fewer, then the others.
    Yields:
        what to call after every step.
    """
    if not enabled or distributed.rank() != 0:
        yield lambda: None
        return
    active = max(1, min(3, steps_left - 2))
    before = min(2, max(0, steps_left - active))  # the last of them with the profiler on, whose start costs time
    done = 0

    def write(profiler: torch.profiler.profile) -> None:
        folder.mkdir(exist_ok=True)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        by = "self_device_time_total" if torch.accelerator.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=30)
        (folder / "operators.txt").write_text(table)
        few = f", all that the run of {steps_left} has" if steps_left < 5 else ""
        log.info(f"steps profiled: {done - before}, after {before}{few}: {folder}/trace.json and operators.txt")

    def step() -> None:
        nonlocal done
        done += 1
        profiler.step()

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Profiler won't be using warmup")  # a run of one step has none
        schedule = torch.profiler.schedule(wait=max(0, before - 1), warmup=min(1, before), active=active, repeat=1)
    try:
        with torch.profiler.profile(schedule=schedule, on_trace_ready=write) as profiler:
            yield step
    finally:
        if done <= before:
            log.info(f"no profile: steps made: {done}, of which the first {before} do not count")
