"""What happens to machines: full and closed folders, killed loaders, a clock set back, broken pictures and numbers."""

import ctypes
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from short_run import COMMAND, TWO_CLASSES, Killed, kill, write_two_classes

from convzoo import cli, logs
from convzoo.errors import UsageError, exit_code_and_message
from convzoo.model_file import load_model
from convzoo.training import loop as train_module
from convzoo.training.lock import take_lock
from convzoo.training.setup import RunOptions
from helpers import before_step, file_limit, one_line, rows, same, weights

CLONE_NEWNS, MS_PRIVATE = 0x20000, 1 << 14 | 1 << 18  # of Linux's sched.h and mount.h, for all below


def test_a_disk_that_is_full_ends_the_run_and_the_same_command_continues_it(run, tmp_path, monkeypatch):
    assert run(*COMMAND, "--out", tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch, file_limit(1 << 40) as _:
        before_step(patch, 3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY)))
        code, _, err = run(*COMMAND, "--out", tmp_path / "run")
    assert code == 1 and "step-00000004.safetensors: cannot be written: no space left" in one_line(err)
    assert not list((tmp_path / "run").rglob("*.tmp"))
    code, _, err = run(*COMMAND, "--out", tmp_path / "run")
    assert (
        code == 0 and "continued at step 3 of 6" in err and same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    )


def test_a_full_disk_under_metrics_and_log_is_named(run, tmp_path, monkeypatch):
    long = [*COMMAND[:-2], "train.epochs=60", "train.eval_every_epochs=60", "train.save_every_epochs=60"]
    with monkeypatch.context() as patch, file_limit(1 << 40):
        before_step(patch, 2, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, resource.RLIM_INFINITY)))
        code, _, err = run(*long, "--out", tmp_path / "run")
    assert code == 1 and "metrics.jsonl: cannot be written: no space left" in one_line(err)
    copy = logs.Copy()
    copy.open(tmp_path / "train.log")
    try:
        with file_limit(1_000), pytest.raises(OSError) as caught:
            for _ in range(100):
                logs.log.info("a line of the log")
    finally:
        copy.close()
    code, message = exit_code_and_message(caught.value)
    assert code == 1 and f"no space left while writing {tmp_path}/train.log" in message


def test_a_folder_that_is_closed_to_us(run, monkeypatch, digits_run):
    """Root may write everywhere, so that the test takes another user's rights."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o555)
        (folder / "run").mkdir()
        (folder / "run").chmod(0o777)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            code, _, err = run(*COMMAND, "--out", folder / "new")
            assert code == 2 and f"{folder}/new: permission denied" in one_line(err)
            with monkeypatch.context() as patch:
                before_step(patch, 2, lambda: (folder / "run/checkpoints").chmod(0o555))
                code, _, err = run(*COMMAND, "--out", folder / "run")
            assert code == 1 and "step-00000003.safetensors: cannot be written: permission denied" in one_line(err)
            (folder / "run/checkpoints").chmod(0o755)
            assert run(*COMMAND, "--out", folder / "run")[0] == 0
        finally:
            if root:
                os.seteuid(0)
    finally:
        shutil.rmtree(folder)


def test_a_loader_process_that_is_killed(run, tmp_path, monkeypatch):
    def kill_a_loader():
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        time.sleep(0.3)

    with monkeypatch.context() as patch:
        before_step(patch, 3, kill_a_loader)
        code, _, err = run(*COMMAND, "train.epochs=20", "--workers", 1, "--out", tmp_path / "run")
    assert code == 1 and re.search("a loader process was killed.*/dev/shm has .*lower --workers", one_line(err))
    code, _, err = run(*COMMAND, "train.epochs=20", "--out", tmp_path / "run")
    assert code == 0 and "continued at step " in err


def in_a_small_shm(size: str, argv: list[str], err: Path) -> None:
    """Run a command line in a mount namespace of its own, whose /dev/shm has that size; 77: not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    shm = (b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={size}".encode())
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_PRIVATE, None) or libc.mount(*shm):
        os._exit(77)
    with open(err, "w") as sys.stderr:
        code = cli.main(argv)
    os._exit(code)


@pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")
@pytest.mark.parametrize(
    ("size", "problem"),
    [
        ("32k", "no loader processes can be started: No space"),
        ("64k", "no room for a loader process's batch of 0.0 MiB"),
    ],
)
def test_a_dev_shm_that_is_too_small(tmp_path, size, problem):
    """A batch without room used to be lost in the worker's queue, and its reader waited for ever."""
    # One: with two it depends on the moment whether a batch of the first or the start of the second finds no room.
    argv = [*map(str, COMMAND), "--workers", "1", "--out", str(tmp_path / "run")]
    # Spawned: threads and locks that other tests left in this process must not come along.
    process = multiprocessing.get_context("spawn").Process(target=in_a_small_shm, args=(size, argv, tmp_path / "err"))
    process.start()
    process.join(120)
    if process.exitcode == 77:
        pytest.skip("mount namespaces are not permitted here")
    err = (tmp_path / "err").read_text()
    if process.exitcode is None:
        process.kill()
        pytest.fail(f"it hangs: {err}")
    message = one_line(err)
    assert process.exitcode == 1 and message.startswith(f"convzoo: {problem}")
    assert re.search(r"/dev/shm has 0\.\d of 0\.[01] MiB free \(--workers 0 loads in the main process\)", message)


def test_memory_that_is_not_there(run, tmp_path, monkeypatch):
    """PyTorch's allocator is asked for more than any machine has."""
    with monkeypatch.context() as patch:
        before_step(patch, 3, lambda: torch.empty(1 << 50))
        code, _, err = run(*COMMAND, "--out", tmp_path / "run")
    assert code == 1 and "out of memory; lower train.batch_size, or keep it and raise --accumulate" in one_line(err)
    code, _, err = run(*COMMAND, "--out", tmp_path / "run")
    assert code == 0 and "continued at step 3 of 6" in err


def take_and_hold(folder: Path, begin, done) -> None:
    begin.wait(30)
    lock = take_lock(folder, 0.0)
    done.wait(30)
    os._exit(0 if lock else 7)


def test_of_processes_that_begin_one_run_at_once_one_has_it(tmp_path):
    fork = multiprocessing.get_context("fork")
    begin, done = fork.Barrier(4), fork.Barrier(4)
    processes = [fork.Process(target=take_and_hold, args=(tmp_path, begin, done)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(process.exitcode or 0 for process in processes) == [0, 7, 7, 7]


def test_exports_and_reports_into_a_folder_that_is_closed(run, digits_run):
    folder = Path(tempfile.mkdtemp())
    try:
        model = shutil.copy(digits_run / "checkpoints/last.safetensors", folder / "model.safetensors")
        (folder / "closed").mkdir()
        (folder / "closed").chmod(0o555)
        folder.chmod(0o755)
        commands = [
            ("m.onnx", "export", model, "--format", "onnx"),
            ("m.weights", "convert", model, "--to", "darknet"),
            ("report", "eval", model),
            ("pictures", "data", "save", "digits", "--count", 1),
        ]
        for name, *command in commands:  # as somebody else no package may be read that is not imported yet
            assert run(*command, "--out", folder / name)[0] == 0
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            for name, *command in commands:
                code, _, err = run(*command, "--out", folder / "closed" / name)
                assert code in (1, 2), err
                assert re.search(f"{folder}/closed/.*permission denied", one_line(err)), err
        finally:
            if root:
                os.seteuid(0)
        assert list((folder / "closed").iterdir()) == []
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", [b"l\xc3\xa4ufe \xf0\x9f\xa6\x86 'a' $b", b"n" * 250])
def test_names_of_folders(run, tmp_path, monkeypatch, name):
    """Letters, quotes and emoji, as long as a file system takes them; nobody's home."""
    monkeypatch.delenv("HOME")
    out = tmp_path / os.fsdecode(name)
    code, _, err = run(*COMMAND, "train.epochs=1", "--out", out)
    assert code == 0, err
    last = out / "checkpoints/last.safetensors"
    code, stdout, err = run("eval", last, "--json")
    assert code == 0 and json.loads(stdout)["images"] == 360, err
    code, _, err = run("export", last, "--format", "onnx")
    assert code == 0 and (out / "checkpoints/last.onnx").is_file(), err


def test_a_gradient_that_is_not_finite_stops_before_the_update(run, tmp_path, monkeypatch):
    inner = train_module.forward_backward

    def forward_backward(state, batches):
        result = inner(state, batches)
        if state.progress.step == 3:
            next(state.model.parameters()).grad.fill_(float("nan"))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "forward_backward", forward_backward)
        code, _, err = run(*COMMAND, "--out", tmp_path / "run")
    assert code == 1 and "step 3: a gradient is not finite; nothing was updated" in one_line(err)
    for path in (tmp_path / "run/checkpoints").glob("*.safetensors"):
        assert all(torch.isfinite(tensor.float()).all() for tensor in load_model(path)[0].values())
    assert run(*COMMAND, "--out", tmp_path / "run")[0] == 0


def test_a_picture_that_breaks_in_the_middle_of_an_epoch(run, tmp_path):
    tree = write_two_classes(run, tmp_path, 40)
    broken = sorted((tree / "train/odd").iterdir())[0]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:50])
    command = [*COMMAND, *TWO_CLASSES, "--data", tree]
    code, _, err = run(*command, "--out", tmp_path / "stopped")
    assert code == 3 and broken.name in one_line(err) and "--on-bad-sample skip leaves such pictures out" in err
    code, _, err = run(*command, "--on-bad-sample", "skip", "--out", tmp_path / "skipped")
    assert code == 0 and err.count(f"skipped {broken}") == 3
    assert "3 unreadable training images were left out" in (tmp_path / "skipped/README.md").read_text()
    broken.write_bytes(whole)  # mended: the same command goes on
    code, _, err = run(*command, "--out", tmp_path / "stopped")
    assert code == 0
    assert run(*command, "--out", tmp_path / "whole")[0] == 0
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


def test_a_clock_that_was_set_back(run, tmp_path, monkeypatch):
    """Everything in the folder is from tomorrow."""
    with monkeypatch.context() as patch:
        before_step(patch, 4, kill)
        with pytest.raises(Killed):
            run(*COMMAND, "--out", tmp_path / "run")
    tomorrow = time.time() + 86_400
    for path in (tmp_path / "run").rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    code, _, err = run(*COMMAND, "--out", tmp_path / "run")
    assert code == 0 and "continued at step 4 of 6" in err
    assert [row["step"] for row in rows(tmp_path / "run", "step")] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "run/checkpoints/last.safetensors").samefile(
        tmp_path / "run/checkpoints/step-00000006.safetensors"
    )


def test_names_of_pictures_may_be_any_bytes_but_a_runs_own_paths_are_utf8(run, tmp_path):
    """Model files are JSON inside, and were once written with a path that nothing could read again."""
    tree = write_two_classes(run, tmp_path, 20)
    for file in [*tree.glob("val/*/*.png")]:
        os.rename(file, os.fsencode(file).replace(b".png", b"\xe9.png"))
    command = [*COMMAND, *TWO_CLASSES, "train.epochs=1", "--data", tree, "--out", tmp_path / "run"]
    code, _, err = run(*command)
    assert code == 0 and run(*command)[0] == 0, err
    assert b"\xe9.png" in (tmp_path / "run/eval/worst.csv").read_bytes()
    path = Path(os.fsdecode(b"caf\xe9"))
    for given in ({"data": path}, {"val_data": path}, {"out": path}):
        with pytest.raises(UsageError, match="name this path, and it is not UTF-8") as caught:
            replace(RunOptions(), **given)
        assert caught.value.options == tuple(given)
