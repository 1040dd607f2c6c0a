"""One command begins a run, continues it wherever it ended, knows it when it is done, and writes to nothing else."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from short_run import COMMAND, TWO_CLASSES, Killed, kill, write_two_classes

import convzoo
from convzoo import errors
from convzoo.config import recipe as recipes
from convzoo.training import lock as lock_module
from convzoo.training.continuation import open_run
from convzoo.training.lock import take_lock
from helpers import QUICK, before_step, one_line, same, weights

RECIPE = recipes.load("tinydarknet-digits")
ACCOUNT = {"class_names": ["cat", "dog"], "train_images": 4, "val_images": 2, "train_list_sha256": "a"}


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(lock_module, "WAIT_S", 0.0)


def test_the_same_command_continues_after_a_kill_and_knows_a_finished_run(run, tmp_path, monkeypatch):
    """A folder with a space and letters beyond ASCII in its name."""
    out = tmp_path / "Läufe von heute/zifFern 1"
    assert run(*COMMAND, "--out", tmp_path / "whole")[0] == 0
    for step in (0, 2, 5):
        with monkeypatch.context() as patch:
            before_step(patch, step, kill)
            with pytest.raises(Killed):
                run(*COMMAND, "--out", out)
    assert not (out / "interrupted").exists()
    code, stdout, err = run(*COMMAND, "--out", out)
    assert (code, stdout) == (0, f"{out}\n") and "continued at step 5 of 6" in err
    assert same(weights(out), weights(tmp_path / "whole"))
    before = contents(out)
    for more in ([], ["--resume"]):
        code, stdout, err = run(*COMMAND, *more, "--out", out)
        assert (code, stdout) == (0, f"{out}\n") and "finished already" in err
    assert contents(out) == before


def test_a_killed_run_of_a_first_moment_begins_again(run, tmp_path):
    for name in (".lock", "data.json", "recipe.yaml.tmp"):
        (tmp_path / name).write_text("")
    code, _, err = run(*COMMAND, "train.epochs=1", "--out", tmp_path)
    assert code == 0 and "continued" not in err


def test_what_is_no_run_of_ones_own_is_not_written_to(run, tmp_path, digits_run, impatient):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    shutil.copytree(digits_run, tmp_path / "run")
    (tmp_path / "run/finished").unlink()
    own = ["train", "tinydarknet-digits", *QUICK, "data.max_train_images=null", "train.epochs=3"]
    cases = [
        ("mine", own, "holds notes.txt and is not a run's; choose another folder (--out)"),
        ("mine", [*own, "--resume"], "there is no run in it to continue (--out)"),
        ("none", [*own, "--resume"], "there is no run in it to continue (--out)"),
        ("run", [*own, "optim.lr=0.2"], "run is a run with optim.lr=0.1, not 0.2: a run is continued with its own"),
        ("run", [*own, "optim.lr=0.2", "seed=1"], "optim.lr=0.1, not 0.2; seed=0, not 1: "),
        ("run", [*own, "data.max_train_images=40"], "data.max_train_images=None, not 40"),
        ("run", [*own, "--fresh"], "holds a run already; a fresh one needs a folder of its own (--out)"),
        ("run", [*own, "--fresh", "--resume"], "either continued or a fresh one (--resume; --fresh)"),
    ]
    for name, command, message in cases:
        before = contents(tmp_path)
        code, out, err = run(*command, "--out", tmp_path / name)
        assert (code, out) == (2, "") and message in one_line(err)
        assert contents(tmp_path) == before


def test_a_run_belongs_to_a_living_process_or_to_nobody(tmp_path, impatient):
    first = open_run(RECIPE, ACCOUNT, tmp_path / "run")
    first.write_description("command", torch.device("cpu"), ACCOUNT)
    with pytest.raises(errors.UsageError, match=f"another process is training there .process {os.getpid()} on "):
        open_run(RECIPE, ACCOUNT, tmp_path / "run")
    first.close()
    again = open_run(RECIPE, ACCOUNT, tmp_path / "run")
    assert again.stage == "continued"
    again.close()


def hold_in_a_child(folder: Path, connection) -> None:
    lock = take_lock(folder)
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))  # as a loader's worker
    child.start()
    connection.send(child.pid)
    time.sleep(60)
    assert lock is not None


def test_a_loader_process_that_outlives_its_run_does_not_hold_the_folder(tmp_path):
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=hold_in_a_child, args=(tmp_path, theirs))
    process.start()
    assert ours.poll(20)
    child = ours.recv()
    assert take_lock(tmp_path, 0.0) is None
    process.kill()
    process.join()
    lock = take_lock(tmp_path, 1.0)
    os.kill(child, signal.SIGKILL)
    assert lock is not None
    lock.release()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["cat", "bird"]}, "other classes: only there dog; only now bird"),
        ({"class_names": ["dog", "cat"]}, "other classes: the same in another order"),
        ({"train_images": 5}, "4 training images, not 5"),
        ({"val_images": 3}, "2 validation images, not 3"),
        ({"train_list_sha256": "b"}, "other training pictures or labels"),
    ],
)
def test_a_run_is_continued_with_its_own_data_only(tmp_path, change, message):
    first = open_run(RECIPE, ACCOUNT, tmp_path)
    first.write_description("command", torch.device("cpu"), ACCOUNT)
    first.close()
    with pytest.raises(errors.UsageError, match=f"is a run with {message}: "):
        open_run(RECIPE, {**ACCOUNT, **change}, tmp_path)


def test_the_data_may_move_and_must_stay_the_same(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_two_classes(run, tmp_path, 40)
    command = [*COMMAND, *TWO_CLASSES, "train.epochs=1"]
    with monkeypatch.context() as patch:
        before_step(patch, 3, kill)
        with pytest.raises(Killed):
            run(*command, "--data", "tree", "--out", "run")
    (tmp_path / "tree").rename(tmp_path / "moved")
    (picture,) = list((tmp_path / "moved/train/even").iterdir())[:1]
    elsewhere = tmp_path / "moved/train/odd" / picture.name
    picture.rename(elsewhere)
    code, _, err = run(*command, "--data", "moved", "--out", "run")
    assert code == 2 and "other training pictures or labels" in one_line(err)
    elsewhere.rename(picture)
    code, _, err = run(*command, "--data", "moved", "--out", "run")
    assert code == 0 and "continued at step 3 of 5" in err
    assert json.loads((tmp_path / "run/data.json").read_text())["root"] == "moved"


def test_without_a_folder_the_newest_unfinished_run_is_continued(run, tmp_path, monkeypatch, impatient):
    monkeypatch.chdir(tmp_path)
    name = "runs/tinydarknet-digits"
    code, _, err = run(*COMMAND, "--resume")
    assert code == 2 and "runs: no run of this recipe and data below it to continue (--out)" in one_line(err)

    def killed(*more):
        with monkeypatch.context() as patch:
            before_step(patch, 1, kill)
            with pytest.raises(Killed):
                run(*COMMAND, *more)

    killed()
    killed("--fresh")
    killed("seed=1")
    assert {path.name for path in Path("runs").iterdir()} == {f"tinydarknet-digits{n}" for n in ("", "-2", "-3")}
    shutil.rmtree(name)
    for folder, text in ((f"{name}-2", "continued at step 1 of 6"), (f"{name}-4", "6 steps")):
        code, out, err = run(*COMMAND)
        assert (code, out) == (0, f"{folder}\n") and (text in err or "continued" not in err)
    code, out, _ = run(*COMMAND, "--resume")
    assert (code, out) == (0, f"{name}-4\n")
    assert convzoo.train("tinydarknet-digits", *COMMAND[2:-2], "seed=1") == Path(f"{name}-3")
    killed("seed=2")
    held = take_lock(Path(f"{name}-5"))
    assert held is not None
    assert run(*COMMAND, "seed=2")[1] == f"{name}-6\n"
    held.release()


def test_a_second_start_by_torchrun_continues_what_a_fresh_first_one_began(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        before_step(patch, 1, kill)
        with pytest.raises(Killed):
            run(*COMMAND, "--fresh", "--out", tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    code, _, err = run(*COMMAND, "--fresh", "--out", tmp_path / "run")
    assert code == 0 and "continued at step 1 of 6" in err
