"""The training loop: one, visible, in the order in which data runs."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from convzoo import distributed, logs
from convzoo.config.recipe import Recipe
from convzoo.data.transforms.pipeline import to_input
from convzoo.environment import environment
from convzoo.errors import ConvzooError, InterruptedRun
from convzoo.inference.evaluate import Evaluation, evaluate
from convzoo.inference.torch_model import TorchRunner
from convzoo.logs import log
from convzoo.report.tables import summary
from convzoo.training.continuation import open_run
from convzoo.training.loggers import check_trackers
from convzoo.training.optim import scaled_lr
from convzoo.training.pretrained import check_pretrained_hash
from convzoo.training.progress import ProgressLogger, profiled
from convzoo.training.run_folder import RunFolder
from convzoo.training.setup import RunOptions, TrainState
from convzoo.training.stop import StopRequest
from convzoo.training.upload import to_url
from convzoo.types import Batch

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@to_url
def train(recipe: Recipe, options: RunOptions, stop: StopRequest | None = None) -> Path:
    """Train as the recipe says, and return the run's folder: begun, continued where it was, or as it was finished.

    Args:
        stop: one that listens already; by default it does from here on.

    Raises:
        InterruptedRun: a signal stopped it after saving; the same command continues, on a CPU to bit-identical weights.
        ConvzooError: the loss or a gradient is not finite, or a file cannot be written.
        UsageError, DataError: what the recipe, the command line or the data have wrong.
    """
    with _opened(recipe, options, stop) as (state, run, stop, profiler_step):
        if run.stage == "finished":
            return run.path
        recipe, progress = state.recipe, state.progress
        trained = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
        progress_logger, batches = ProgressLogger(state, run), state.batches()
        evaluation, stopping = None, distributed.any_rank(stop.requested)

        while True:
            # --- what is due after the step before: the end of an epoch, a stop, a checkpoint
            if progress.step > progress.closed_step and progress.step % state.steps_per_epoch == 0 and not stopping:
                evaluation, stopping = _close_epoch(state, run, progress_logger, stop)
            if stopping:
                _save(state, run, {}, is_best=False)
                raise _stopped(state, run, progress_logger)
            if progress.step == state.total_steps:
                break
            if (
                state.options.save_every_steps
                and progress.step % state.options.save_every_steps == 0
                and progress.step > progress.closed_step
            ):
                _save(state, run, {}, is_best=False)

            # --- learning rate, and the randomness of dropout: functions of step, seed and rank
            step = progress.step
            lr = state.lr_at(step)
            for group in state.optimizer.param_groups:
                group["lr"] = lr
            torch.manual_seed((recipe.seed * 1_000_003 + step) * 4096 + distributed.rank())

            # --- gradients of one global batch
            state.train_mode()
            state.optimizer.zero_grad()
            scalars, left_out, waited_s = forward_backward(state, batches)
            state.loss_scale.unscale(trained)
            grad_norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])

            # --- one small exchange between ranks: the loss, and whether anybody was asked to stop
            facts = torch.stack(
                [*scalars.values(), *torch.tensor([left_out, stop.requested], dtype=torch.float32, device=state.device)]
            )
            *values, left_out, asked_to_stop = distributed.sum_over_ranks(facts).tolist()
            logged = dict(zip(scalars, values, strict=True))
            if not math.isfinite(logged["loss"]):
                raise ConvzooError(
                    f"step {step}: the loss is {logged['loss']}; nothing was updated. "
                    "Lower optim.lr, add schedule.warmup_epochs, or look at the data"
                )

            # --- update
            if state.loss_scale.accept(bool(torch.isfinite(grad_norm)), step):
                if recipe.train.clip_grad_norm is not None:
                    nn.utils.clip_grads_with_norm_(trained, recipe.train.clip_grad_norm, grad_norm)
                state.optimizer.step()
                if state.average:
                    state.average.update(state.model, step)
            else:
                progress.updates_left_out += 1

            # --- account
            progress.step += 1
            progress.images_left_out += int(left_out)
            for name, value in logged.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            progress_logger.step(logged, lr, float(grad_norm), waited_s)
            profiler_step()
            stopping = asked_to_stop > 0

        if state.val_data is not None and evaluation is None:
            evaluation = _evaluate(state, lambda: stop.requested)
            if distributed.any_rank(stop.requested):
                raise _stopped(state, run, progress_logger)
        _finish(state, run, progress_logger, evaluation)
    return run.path


@contextlib.contextmanager
def _opened(
    recipe: Recipe, options: RunOptions, listening: StopRequest | None
) -> Iterator[tuple[TrainState, RunFolder, StopRequest, Callable[[], None]]]:
    """Take the device, ranks, data, network and the run's folder, continued where it was; give them back."""
    with contextlib.ExitStack() as stack:
        stop = listening or stack.enter_context(StopRequest())
        check_trackers(options.log_to)
        device = distributed.resolve_device(options.device)
        if distributed.start(device):
            stack.callback(distributed.stop)
        logs.setup(distributed.rank())
        log_copy = logs.Copy()
        stack.callback(log_copy.close)
        state = TrainState(check_pretrained_hash(recipe, options.weights, options.download), options, device)
        run = _open_on_rank_0(state)
        stack.callback(run.close)
        steps_left = 0
        if run.stage == "finished":
            log.info(f"{run.path}: finished already; nothing to do")
        else:
            rank = distributed.rank()
            log_copy.open(run.path / ("train.log" if rank == 0 else f"logs/rank-{rank}.log"))
            if run.stage == "continued":
                _restore(state, run)
            _log_start(state, run)
            state.keep_pictures()
            steps_left = state.total_steps - state.progress.step
        profile = options.profile and run.stage != "finished"
        profiler_step = stack.enter_context(profiled(profile, run.path / "profile", steps_left))
        yield state, run, stop, profiler_step


def forward_backward(state: TrainState, batches: Iterator[Batch]) -> tuple[dict[str, Tensor], int, float]:
    """Add up the gradients of one global batch.

    Returns:
        This rank's part of each logged scalar (they add up to the mean over the batch), how many pictures could not be
        read, and the seconds spent waiting for data.
    """
    transform, device, accumulate = state.recipe.transform, state.device, state.options.accumulate
    scalars: dict[str, Tensor] = {}
    left_out, waited_s = 0, 0.0
    for micro in range(accumulate):
        asked = time.perf_counter()
        batch = next(batches)
        waited_s += time.perf_counter() - asked
        left_out += len(batch.bad)
        batch.targets = batch.targets.to(device, non_blocking=True)
        images = to_input(batch.images.to(device, non_blocking=True), transform.mean, transform.std)
        share = len(batch) / state.effective_batch
        exchange = micro == accumulate - 1 or distributed.world_size() == 1
        with contextlib.nullcontext() if exchange else state.network.no_sync():  # type: ignore[operator]
            with torch.autocast(device.type, AUTOCAST[state.precision], enabled=state.precision != "fp32"):
                outputs = state.network(images)
            losses = state.task.loss(outputs, batch)
            # DDP averages over ranks, so each rank's part counts world_size times.
            (losses["loss"] * (share * distributed.world_size() * state.loss_scale.value)).backward()
        for name, value in losses.items():
            scalars[name] = scalars.get(name, 0.0) + value.detach().float() * share
    return scalars, left_out, waited_s


def _close_epoch(
    state: TrainState, run: RunFolder, progress_logger: ProgressLogger, stop: "StopRequest"
) -> tuple[Evaluation | None, bool]:
    """Evaluate if it is due, write the epoch's row, save if it is due or the best so far.

    Return the evaluation and whether a stop was asked for meanwhile.
    """
    progress, train_recipe = state.progress, state.recipe.train
    epoch = progress.step // state.steps_per_epoch
    evaluation = None
    progress_logger.end_training()
    every = train_recipe.eval_every_epochs
    if every and (epoch % every == 0 or epoch == train_recipe.epochs):
        evaluation = _evaluate(state, lambda: stop.requested)
        if distributed.any_rank(stop.requested):
            return None, True
    result = evaluation.result if evaluation else {}
    score = result.get(state.task.best_metric)
    is_best = score is not None and (progress.best is None or score > progress.best)
    progress.best = score if is_best else progress.best
    progress.closed_step = progress.step
    means = {name: value / state.steps_per_epoch for name, value in progress.sums.items()}
    progress.sums = {}
    progress_logger.close_epoch(epoch, means, evaluation)
    if is_best or epoch % train_recipe.save_every_epochs == 0 or epoch == train_recipe.epochs:
        _save(state, run, result, is_best)
    if progress.step < state.total_steps:
        progress_logger.report(draw=False)
    progress_logger.restart()
    return evaluation, False


def _evaluate(state: TrainState, stop: Callable[[], bool]) -> Evaluation:
    """Evaluate the weights that would be published, in float32, exactly as `convzoo eval` does."""
    assert state.val_data is not None
    distributed.broadcast_buffers(state.model)
    trained = {name: tensor.clone() for name, tensor in state.model.state_dict().items()} if state.average else None
    if state.average:
        state.model.load_state_dict(state.average.average)
        distributed.broadcast_buffers(state.model)  # each rank averages its own
    try:
        runner = TorchRunner(state.model, state.recipe, state.device)
        options = state.options
        return evaluate(
            runner,
            state.task,
            state.val_data,
            loader=state.val_loader,
            on_bad_sample=options.on_bad_sample,
            stop=stop,
        )
    finally:
        if trained:
            state.model.load_state_dict(trained)


def _save(state: TrainState, run: RunFolder, metrics: dict, is_best: bool) -> None:
    if distributed.rank() == 0:
        info = state.info(metrics, environment(state.device))
        run.checkpoints.save(state.progress.step, state.weights_to_save(), info, state.snapshot(), is_best)


def _stopped(state: TrainState, run: RunFolder, progress_logger: ProgressLogger) -> InterruptedRun:
    """Mark a run that was saved as interrupted, and return what says so once rank 0 is done: it ends no rank sooner."""
    step = state.progress.step
    if distributed.rank() == 0:
        progress_logger.report()
        progress_logger.trackers.end("interrupted")
        run.interrupted.write_text(f"step {step}, {time.strftime('%Y-%m-%dT%H:%M:%S')}\n", encoding="utf-8")
    first_here = distributed.first_here()
    return InterruptedRun(
        f"stopped at step {step} of {state.total_steps} and saved; the same command continues it ({run.path})",
        first_here,
    )


def _open_on_rank_0(state: TrainState) -> RunFolder:
    """Let rank 0 open the folder and describe the run in it, and tell the others, its error included."""
    run: RunFolder | None = None
    answer: tuple[Path, str] | Exception | None = None
    options = state.options
    if distributed.rank() == 0:
        try:
            fresh = options.fresh and not distributed.restarts()  # torchrun's second start continues its first
            run = open_run(state.recipe, state.data_account, options.out, resume=options.resume, fresh=fresh)
            if run.stage != "finished":
                run.write_description(options.command, state.device, state.data_account, state.split_lists)
            answer = (run.path, run.stage)
        except (ConvzooError, OSError) as error:
            answer = error
    answer = distributed.from_rank_0(answer)
    if isinstance(answer, Exception):
        if run:
            run.close()
        raise answer
    assert answer is not None  # rank 0 always has one
    path, stage = answer
    return run or RunFolder(path, state.recipe, stage)


def _restore(state: TrainState, run: RunFolder) -> None:
    """Continue from the newest whole checkpoint: rank 0 reads it, the others get it from there."""
    is_main = distributed.rank() == 0
    checkpoint = distributed.from_rank_0(run.checkpoints.newest_whole() if is_main else None)
    steps = distributed.from_rank_0(run.checkpoints.steps() if is_main else None)
    if checkpoint is None and steps:
        raise ConvzooError(f"{run.path}: no checkpoint of this run is whole; start again in another folder")
    if checkpoint:
        state.restore(*checkpoint)
    elif is_main:
        log.info(f"{run.path}: stopped before its first checkpoint, so it begins again")
    if is_main:
        run.forget_after(state.progress.step)
        run.interrupted.unlink(missing_ok=True)


def _log_start(state: TrainState, run: RunFolder) -> None:
    if distributed.rank() != 0:
        return
    recipe, count = state.recipe, sum(p.numel() for p in state.model.parameters())
    log.info(state.arithmetic)
    log.info(
        f"{recipe.model['name']} with {count:,} parameters on {state.device} in {state.precision}; "
        f"{len(state.class_names)} classes; {recipe.train.epochs} epochs into {run.path}"
    )
    if recipe.optim.lr_batch_size is not None:
        lr, own = recipe.optim.lr, recipe.optim.lr_batch_size
        scaled = scaled_lr(recipe.optim, state.effective_batch)
        log.info(
            f"learning rate {scaled:g} = {lr:g} x batch {state.effective_batch} / {own}; the schedule starts there"
        )
    if state.val_data is None:
        log.info("no validation (train.eval_every_epochs=0): the last weights count, and there are no best ones")
    if state.progress.step:
        log.info(f"continued at step {state.progress.step} of {state.total_steps}")


def _finish(state: TrainState, run: RunFolder, progress_logger: ProgressLogger, evaluation: Evaluation | None) -> None:
    """Write what a finished run leaves: curves, tables, worst images and its README."""
    if distributed.rank() != 0:
        return
    if evaluation and state.val_data is not None:
        evaluation.write(run.path / "eval", state.val_data.dataset)
    progress_logger.report(evaluation, finished=True)
    run.finished.touch()
    measured = summary(evaluation.result) if evaluation else "nothing was evaluated (train.eval_every_epochs=0)"
    log.info(f"done: {measured}; see {run.path}/README.md")
