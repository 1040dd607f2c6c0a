"""Several ranks under the real torchrun: killed, asked to stop, restarted, and another number of them."""

import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from short_run import TWO_CLASSES, write_two_classes

from convzoo import errors
from convzoo.errors import InterruptedRun
from convzoo.training.checkpoints import RunCheckpoints, load_state
from convzoo.training.stop import StopRequest, leave
from helpers import (
    IN_FLOAT64,
    QUICK,
    REPO,
    STILL,
    children,
    difference,
    first_line,
    momenta,
    rank_pids,
    rows,
    same,
    torchrun,
    torchrun_command,
    weights,
)

SHORT = ["train", "tinydarknet-digits", *QUICK, "train.epochs=8", "train.eval_every_epochs=4", "--save-every-steps", 3]
LONG = [*SHORT, "train.epochs=60", "train.eval_every_epochs=15"]


class Job:
    """A command under torchrun that runs beside the test, its messages in a file."""

    def __init__(self, out: Path, *command: object, wrapper: tuple[str, ...] = (), **options):
        self.out, self.log = out, out.with_name(f"{out.name}.log")
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        with open(self.log, "a") as file:
            argv = [*wrapper, *torchrun_command(*command, "--out", out, **options)]
            self.process = subprocess.Popen(argv, stdout=file, stderr=file, env=env)

    def steps(self) -> int:
        path = self.out / "metrics.jsonl"
        return len(rows(self.out, "step")) if path.exists() else 0

    def wait_for_step(self, step: int) -> None:
        deadline = time.time() + 300
        while time.time() < deadline and self.process.poll() is None:
            path = self.out / "metrics.jsonl"
            if path.exists() and path.read_bytes().count(b"\n") > step:
                return
            time.sleep(0.01)
        pytest.fail(f"no step {step}: {self.log.read_text()}")

    def end(self) -> int:
        return self.process.wait(timeout=300)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks") / "whole"
    done = torchrun(*SHORT, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def long_whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks") / "whole"
    done = torchrun(*LONG, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_a_killed_rank_is_started_again_and_nothing_is_lost(whole, tmp_path):
    job = Job(tmp_path / "run", *SHORT, restarts=2)
    job.wait_for_step(7)
    os.kill(rank_pids(job.process.pid)[1], signal.SIGKILL)
    assert job.end() == 0
    log = job.log.read_text()
    assert re.search(r"continued at step \d+ of 32", log) and log.count("convzoo: ") <= 1
    assert same(weights(tmp_path / "run"), weights(whole))
    assert [row["step"] for row in rows(tmp_path / "run", "step")] == list(range(1, 33))
    assert (whole / "logs/rank-1.log").is_file() and "epoch 8/8" not in (whole / "logs/rank-1.log").read_text()


@pytest.mark.parametrize(
    ("first_to_fail", "error", "shown"),
    [
        (True, errors.DataError("a.png: not a picture"), "convzoo: rank 1: a.png: not a picture\n"),
        (False, errors.DataError("a.png: not a picture"), ""),
        (True, errors.InterruptedRun("stopped at step 3"), "convzoo: stopped at step 3\n"),
        (
            True,
            RuntimeError("gloo/pair.cc Connection closed"),
            "convzoo: rank 1: the exchange with another rank failed;",
        ),
    ],
)
def test_of_several_ranks_the_first_to_fail_speaks(tmp_path, monkeypatch, capsys, first_to_fail, error, shown):
    monkeypatch.setattr(errors, "LOST_RANK_WAITS_S", 0.0)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "attempt_0/1").mkdir(parents=True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0/1/error.json"))
    if not first_to_fail:
        (tmp_path / "attempt_0/first-to-fail").touch()
    errors.report(error)
    err = capsys.readouterr().err
    assert err.startswith(shown) and bool(err) == bool(shown)
    assert (tmp_path / "attempt_0/1/error.json").is_file()


def test_under_torchrun_a_signal_twice_at_once_is_one_and_its_end_is_one_too(monkeypatch):
    """A scheduler signals the launcher and the ranks, and the launcher the ranks again."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
    try:
        with StopRequest() as stop:
            assert not stop.requested
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested
            time.sleep(0.6)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        stop = StopRequest()
        monkeypatch.setattr(os, "getppid", lambda: 1)  # whoever adopts orphans
        assert stop.requested
        monkeypatch.delenv("TORCHELASTIC_RUN_ID")
        assert not StopRequest().requested
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_ten_kills_of_two_ranks_lose_nothing(long_whole, tmp_path):
    """Of a rank, of the launcher, of all of them; the same command each time."""
    draw = random.Random(0)
    out = tmp_path / "run"
    for victims in itertools.islice(itertools.cycle(["0", "1", "launcher", "all"]), 10):
        job = Job(out, *LONG)
        steps = job.steps()
        if draw.random() < 0.7:  # else while it starts
            job.wait_for_step(steps + draw.randrange(4))
        time.sleep(draw.random() * (1.0 if steps else 3.0))
        pids = rank_pids(job.process.pid)
        doomed = {"launcher": [job.process.pid], "all": [job.process.pid, *pids.values()]}
        for pid in doomed.get(victims) or [pids.get(int(victims) if victims.isdigit() else -1, job.process.pid)]:
            os.kill(pid, signal.SIGKILL)
        assert job.end() != 0
    last = Job(out, *LONG)
    assert last.end() == 0, last.log.read_text()
    assert same(weights(out), weights(long_whole))
    assert [row["step"] for row in rows(out, "step")] == list(range(1, 241))


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["launcher", 0, 1])
def test_a_stop_at_any_rank_at_any_moment_saves_once_and_exits_with_75(long_whole, tmp_path, asked):
    draw = random.Random(1)
    out = tmp_path / "run"
    for moment in range(4):
        job = Job(out, *LONG)
        if moment:
            job.wait_for_step(job.steps() + draw.randrange(8))
        else:
            while len(rank_pids(job.process.pid)) < 2:
                time.sleep(0.05)
            time.sleep(2.5)  # while it imports or opens
        time.sleep(draw.random() * 0.3)
        os.kill(rank_pids(job.process.pid)[asked] if asked != "launcher" else job.process.pid, signal.SIGTERM)
        assert job.end() != 0
        log = job.log.read_text()
        if not (out / "interrupted").exists():
            assert moment == 0 and not (out / "checkpoints").exists(), log
            continue
        step = load_state(out / "checkpoints/last.state.pt")["step"]
        assert RunCheckpoints(out / "checkpoints", 10).steps()[0] == step
        assert (out / "interrupted").read_text().startswith(f"step {step}, ")
        assert f"convzoo: stopped at step {step} of 240 and saved; the same command continues it ({out})" in log
        assert asked == "launcher" or "exitcode  : 75 " in log
    last = Job(out, *LONG)
    assert last.end() == 0 and not (out / "interrupted").exists()
    assert same(weights(out), weights(long_whole))


@pytest.mark.slow
def test_a_stop_at_one_rank_is_not_started_again(whole, tmp_path):
    """torchrun takes the rank's 75 for a failure and has starts left; the wrapper turns its 1 into 75."""
    out = tmp_path / "run"
    wrapper = "bash", str(REPO / "cluster/run.sh"), str(out)
    for asked in (0, 1):
        job = Job(out, *SHORT, wrapper=wrapper, restarts=3)
        job.wait_for_step(job.steps() + 5)
        (launcher,) = children(job.process.pid)
        os.kill(rank_pids(launcher)[asked], signal.SIGTERM)
        asked_at = time.time()
        assert job.end() == 75 and time.time() - asked_at < 60
        log = job.log.read_text()
        assert log.count("convzoo: stopped at step") == 1 + asked and log.count("continued at step") == asked
        assert (out / "interrupted").is_file()
    assert Job(out, *SHORT, restarts=3).end() == 0
    assert same(weights(out), weights(whole))


def test_a_stopped_rank_outlives_the_first_of_its_machine_and_no_other(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    first = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"])
    began = time.monotonic()
    try:
        leave(InterruptedRun("stopped", first.pid))
        assert time.monotonic() - began < 0.5  # no torchrun
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        leave(InterruptedRun("stopped", first.pid))  # a child that ended and was not waited for counts as ended
        assert time.monotonic() - began > 0.5 and first.wait(5) == 0
        leave(InterruptedRun("stopped"))  # itself the first, and torchrun has no starts left
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_another_number_of_ranks_continues_at_the_same_place(run, tmp_path, in_float64):
    """In float64 and with batch norm still, so that all that is left is the order of additions."""
    command = ["train", "densenet100-digits", *STILL, "train.epochs=6", "train.eval_every_epochs=6"]
    assert run(*command, "--out", tmp_path / "whole")[0] == 0
    out = tmp_path / "run"
    for ranks, steps in ((2, 3), (4, 6), (1, 9)):
        job = Job(out, *command, "--save-every-steps", 1, ranks=ranks, program=IN_FLOAT64)
        job.wait_for_step(steps)
        os.kill(job.process.pid, signal.SIGTERM)
        job.end()
    refused = torchrun(*command, "--out", out, ranks=3)
    assert "does not divide by 3 ranks" in first_line(refused.stderr) and "exitcode  : 2 " in refused.stderr
    done = torchrun(*command, "--out", out, ranks=2, program=IN_FLOAT64)
    assert done.returncode == 0 and "continued with world_size 2, begun with 1: not bit for bit" in done.stderr
    assert difference(weights(tmp_path / "whole"), weights(out)) < 1e-12
    assert difference(momenta(tmp_path / "whole"), momenta(out)) < 1e-9


@pytest.mark.slow
def test_the_rank_that_fails_first_is_the_one_that_speaks(run, tmp_path):
    """Of the pictures only one cannot be read: one rank meets it, the other loses that rank."""
    tree = write_two_classes(run, tmp_path, 32)
    broken = sorted((tree / "train/even").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:60])
    command = [*SHORT, *TWO_CLASSES, "--data", tree, "--workers", 0, "--out", tmp_path / "run"]
    started = time.time()
    done = torchrun(*command)
    assert done.returncode == 1 and time.time() - started < 60
    assert broken.name in first_line(done.stderr) and "exitcode  : 3 " in done.stderr
    done = torchrun(*command, "--on-bad-sample", "skip")
    assert (
        done.returncode == 0
        and "8 unreadable training images were left out" in (tmp_path / "run/README.md").read_text()
    )


@pytest.mark.slow
def test_an_evaluation_is_the_same_for_any_ranks_and_batch(run, tmp_path, digits_run):
    last = digits_run / "checkpoints/last.safetensors"
    numbers = set()
    for ranks, batch in ((1, 256), (2, 7), (3, 64), (4, 1)):
        done = torchrun("eval", last, "--batch-size", batch, "--json", ranks=ranks)
        assert done.returncode == 0, done.stderr
        numbers.add(re.sub(r'"(seconds|images_per_s)": [\d.]+,? ?', "", done.stdout.splitlines()[-1]))
    assert len(numbers) == 1 and '"images": 360' in numbers.pop()
