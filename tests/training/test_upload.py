"""A run whose folder is a URL: killed, failed upon and taken over, it ends as the local one does."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convzoo import cli
from convzoo.errors import UsageError
from convzoo.model_file import load_model
from convzoo.storage import Remote, lease
from convzoo.storage.lease import Lease
from convzoo.training import upload
from helpers import QUICK, before_step, file_limit, one_line, rows, same, weights
from object_store import SECRET, Fault

OUT = "s3://bucket/runs/digits"
COMMAND = ["train", "tinydarknet-digits", *QUICK, "data.max_train_images=64", "train.batch_size=32", "train.epochs=4"]
PUTS = lambda method, path: method == "PUT"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(upload, "POLL_S", 0.05)
    monkeypatch.setattr(lease, "SETTLE_S", 0.05)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "digits"
    assert cli.main([*COMMAND, "--out", str(out)]) == 0
    return out


def brought(store, tmp_path, url: str = OUT) -> Path:
    """Return a copy of what is behind the URL."""
    folder = tmp_path / "brought"
    store.fs.get(url.removeprefix("s3://"), str(folder), recursive=True)
    return folder


def test_a_run_at_a_url_is_the_local_run(store, tmp_path, run, local):
    code, out, err = run(*COMMAND, "--out", OUT)
    assert (code, out) == (0, f"{OUT}\n"), err
    there = brought(store, tmp_path)
    assert same(weights(there), weights(local)) and same(weights(there, "best"), weights(local, "best"))
    names = {path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()}
    assert names - {".lock"} <= {path.relative_to(there).as_posix() for path in there.rglob("*")} | {"plots"}
    assert [row["loss"] for row in rows(there, "step")] == [row["loss"] for row in rows(local, "step")]
    assert f"{OUT}/checkpoints/last.safetensors" in (there / "README.md").read_text()
    assert f"convzoo eval {OUT}/checkpoints/last.safetensors" in (there / "report.html").read_text()
    assert not store.fs.exists(f"{OUT}/.lease") and not list((tmp_path / "cache of urls/runs").iterdir())
    models = [i for i, name in enumerate(store.written) if name.endswith("/step-00000008.safetensors")]
    states = [i for i, name in enumerate(store.written) if "/step-00000008.state.pt" in name]
    assert len(models) == 1 and max(states) < models[0] < store.written.index("bucket/runs/digits/finished")
    assert not [path for path in there.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.slow
def test_old_checkpoints_go_there_too(store, tmp_path, run):
    assert run(*COMMAND, "train.keep_checkpoint_max=2", "--save-every-steps", 1, "--out", OUT)[0] == 0
    there = brought(store, tmp_path) / "checkpoints"
    assert sorted(path.name for path in there.glob("step-*.safetensors")) == [
        "step-00000007.safetensors",
        "step-00000008.safetensors",
    ]
    assert len(list(there.glob("step-*"))) == 6


def test_a_store_that_is_gone_for_a_while_is_waited_for(store, tmp_path, run, local):
    store.faults = [Fault("503", lambda method, path: PUTS(method, path) and "checkpoints" in path, times=10)]
    code, _, err = run(*COMMAND, "--out", OUT)
    assert code == 0 and "again in 0 s" in err, err
    assert same(weights(brought(store, tmp_path)), weights(local))


def test_a_store_without_an_answer_for_a_while_is_waited_for(store, tmp_path, run, local):
    """A minute, shortened: from the first checkpoint on nobody answers anything."""
    began = []

    def gone(method: str, path: str) -> bool:
        if not began and "checkpoints" in path and method == "PUT":
            began.append(time.monotonic())
        return bool(began) and time.monotonic() - began[0] < 0.5

    store.faults = [Fault("gone", gone, times=10**6)]
    code, _, err = run(*COMMAND, "--out", OUT)
    assert code == 0 and began and "again in 0 s" in err, err
    assert same(weights(brought(store, tmp_path)), weights(local))


@pytest.mark.parametrize(("status", "words"), [("403", "Forbidden"), ("507", "failed 7 times")])
def test_a_store_that_takes_nothing(store, tmp_path, run, local, status, words):
    """Read-only or full: from the beginning, and for checkpoints, after which the same command makes it good."""
    store.faults = [Fault(status, PUTS, times=10**6)]
    code, _, err = run(*COMMAND, "--out", OUT)
    assert code == 1 and words in one_line(err) and "epoch 1/" not in err
    store.faults = [Fault(status, lambda method, path: PUTS(method, path) and "/step-" in path, times=10**6)]
    code, _, err = run(*COMMAND, "--out", OUT)
    assert code == 1 and words in one_line(err) and "the same command continues" in one_line(err)
    store.faults = []
    code, _, err = run(*COMMAND, "--out", OUT)
    assert code == 0, err
    assert same(weights(brought(store, tmp_path)), weights(local))


@pytest.mark.slow
def test_a_full_disk_under_a_run_at_a_url(store, tmp_path, run, local, monkeypatch):
    with monkeypatch.context() as patch, file_limit(1 << 40):
        before_step(patch, 3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY)))
        code, _, err = run(*COMMAND, "--out", OUT)
    assert code == 1 and "step-00000004.safetensors: cannot be written: no space left" in one_line(err)
    code, _, err = run(*COMMAND, "--out", OUT)
    assert code == 0 and "continued at step 2 of 8" in err, err
    assert same(weights(brought(store, tmp_path)), weights(local))


def test_an_upload_that_fails_half_way_leaves_what_is_whole_and_is_made_good(store, tmp_path, run, local, monkeypatch):
    """The model files of the second half never arrive; another machine continues from the first half's."""
    late = lambda method, path: PUTS(method, path) and ("step-00000006.saf" in path or "step-00000008.saf" in path)
    store.faults = [Fault("503", late, times=10**6)]
    code, _, err = run(*COMMAND, "--out", OUT)
    message = one_line(err)
    assert code == 1 and "failed 7 times" in message and "the same command continues" in message
    names = {path.rpartition("/")[2] for path in store.fs.find("bucket/runs/digits/checkpoints")}
    assert "step-00000006.state.pt" in names and "step-00000006.safetensors" not in names
    assert "step-00000004.safetensors" in names
    store.faults = []
    store.fs.rm_file("bucket/runs/digits/.lease")
    monkeypatch.setenv("CONVZOO_CACHE", str(tmp_path / "another machine"))
    code, _, err = run(*COMMAND, "--out", OUT, "--resume")
    assert code == 0 and "continued at step 4 of 8" in err, err
    assert same(weights(brought(store, tmp_path)), weights(local))


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_there_is_passed_over(store, tmp_path, run, local, monkeypatch):
    assert run(*COMMAND, "--out", OUT)[0] == 0
    newest = "bucket/runs/digits/checkpoints/step-00000008.safetensors"
    content = bytearray(store.fs.cat_file(newest))
    content[-1] ^= 1
    store.fs.pipe_file(newest, bytes(content))
    store.fs.rm_file("bucket/runs/digits/finished")
    code, _, err = run(*COMMAND, "--out", OUT, "--resume")
    assert code == 0 and "damaged" in err and "continued at step 6 of 8" in err, err
    assert same(weights(brought(store, tmp_path)), weights(local))


def test_what_is_no_run_is_left_alone(store, run):
    store.fs.pipe_file("bucket/runs/digits/holiday.jpg", b"x")
    code, _, err = run(*COMMAND, "--out", OUT)
    assert code == 2 and "not empty and no run" in one_line(err)
    assert store.fs.find("bucket/runs/digits") == ["bucket/runs/digits/holiday.jpg"]


@pytest.fixture
def quick_lease(monkeypatch):
    for name, seconds in (("RENEW_S", 0.2), ("EXPIRES_S", 1.5), ("LOOK_S", 0.1), ("SETTLE_S", 0.05)):
        monkeypatch.setattr(lease, name, seconds)


def foreign(**changes) -> bytes:
    return json.dumps({"id": "x", "host": "elsewhere", "process": 12, "renewed": 0, **changes}).encode()


def test_a_lease_that_is_renewed_is_respected(store, quick_lease):
    place = Remote(f"{OUT}/.lease")
    held = Lease(place)
    began = time.monotonic()
    with pytest.raises(UsageError, match=rf"{OUT}: process {os.getpid()} on .* is training there"):
        other = Remote(f"{OUT}/.lease")
        monkey = lease._is_dead
        try:
            lease._is_dead = lambda content: False  # as if from another machine
            Lease(other)
        finally:
            lease._is_dead = monkey
    assert time.monotonic() - began < 1.5
    held.release()
    assert place.read() is None
    Lease(place).release()


@pytest.mark.parametrize("content", [foreign(), b"not a lease", foreign(renewed=4e9)])
def test_a_lease_that_is_not_renewed_is_taken_over(store, quick_lease, content):
    """By its renewal alone: what the clock of another machine says does not count."""
    place = Remote(f"{OUT}/.lease")
    place.write(content)
    began = time.monotonic()
    held = Lease(place)
    assert 1.5 <= time.monotonic() - began < 10 and json.loads(place.read() or b"")["process"] == os.getpid()
    held.release()


def test_the_lease_of_a_dead_process_of_this_machine_does_not_hold(store, quick_lease):
    process = subprocess.run([sys.executable, "-c", "import os, socket; print(socket.gethostname(), os.getpid())"],
                             capture_output=True, text=True)  # fmt: skip
    host, number = process.stdout.split()
    Remote(f"{OUT}/.lease").write(foreign(host=host, process=int(number)))
    began = time.monotonic()
    Lease(Remote(f"{OUT}/.lease")).release()
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("at", ["/step-00000002.saf", "/step-00000008.saf"])
def test_a_run_that_was_taken_over_stops(store, quick_lease, run, monkeypatch, at):
    """Whoever comes back after five minutes asleep finds another's lease, and writes nothing more.

    Without renewals, which might overwrite the thief's: the run asks before it writes, and once more at its end.
    """
    monkeypatch.setattr(lease, "RENEW_S", 1000.0)
    steal = Fault("503", lambda method, path: False)
    store.faults = [steal]
    thefts = []

    def stolen(method: str, path: str) -> bool:
        if method == "PUT" and at in path and not thefts:
            thefts.append(path)
            store.fs.pipe_file("bucket/runs/digits/.lease", foreign())
        return False

    steal.matches = stolen
    code, _, err = run(*COMMAND, "--out", OUT)
    assert code == 1 and "another process took this run over" in one_line(err)
    assert json.loads(store.fs.cat_file("bucket/runs/digits/.lease"))["id"] == "x"
    assert thefts and (at != "/step-00000002.saf" or not store.fs.exists("bucket/runs/digits/finished"))


def shell(store, folder: Path, *argv: str) -> subprocess.Popen:
    options = json.dumps(store.options)
    env = {**os.environ, "FSSPEC_S3": options, "CONVZOO_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    folder.mkdir(exist_ok=True)
    with open(folder / "err.txt", "w") as err:
        return subprocess.Popen([sys.executable, "-m", "convzoo", *argv], stderr=err, env=env)


@pytest.mark.slow
@pytest.mark.parametrize("same_machine", [True, False])
def test_a_run_at_a_url_that_is_killed_twice_ends_as_the_local_one(store, tmp_path, shared, same_machine):
    """CIFAR-10 from and to the store; killed by SIGKILL and continued, it ends bit for bit as the local run."""
    store.fs.put_file(str(shared / "data/cifar10-jpeg.zip"), "bucket/cifar10.zip")
    settings = ["data.max_train_images=640", "train.epochs=8", "train.batch_size=64", "train.eval_every_epochs=0"]
    settings += ["train.precision=fp32", "train.keep_checkpoint_max=3", "--save-every-steps", "5"]
    command = ["train", "tinydarknet-cifar10", *settings]

    def newest() -> int:
        files = store.fs.glob(f"{OUT}/checkpoints/step-*.safetensors")
        return max((int(Path(name).name[5:13]) for name in files), default=0)

    random.seed(0)
    for kill in range(3):
        machine = tmp_path / ("machine" if same_machine else f"machine-{kill}")
        resume = ["--resume"] if kill else []
        reached = newest()
        process = shell(store, machine, *command, "--data", "s3://bucket/cifar10.zip", "--out", OUT, *resume)
        said, until = machine / "err.txt", time.time() + 280
        # What was saved before the kill may go up before anything is said.
        while kill < 2 and not (newest() > reached and (kill == 0 or "continued at step" in said.read_text())):
            assert process.poll() is None and time.time() < until, said.read_text()
            time.sleep(0.05)
        if kill < 2:
            time.sleep(random.random())
            process.send_signal(signal.SIGKILL)
            if not same_machine:  # nobody waits five minutes in a test
                process.wait(30)
                store.fs.rm_file(f"{OUT}/.lease")
        assert (process.wait(280) == 0) == (kill == 2), said.read_text()
        assert kill == 0 or "continued at step" in said.read_text()
    local = [*command, "--data", str(shared / "data/cifar10-jpeg.zip"), "--out", str(tmp_path / "local")]
    assert cli.main(local) == 0
    there = brought(store, tmp_path)
    assert same(weights(there), weights(tmp_path / "local"))
    assert load_model(there / "checkpoints/last.safetensors")[1].provenance["step"] == 80
