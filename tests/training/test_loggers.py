"""Trackers: what is read from them is what the run measured, nothing is sent twice, and a failure never stops a run."""

import importlib
import json
import shutil
import struct
import sys
import time
from pathlib import Path

import pytest

from convzoo.errors import MissingPackageError
from convzoo.training.loggers import SENT, TrackerFeed, scalars, send_run
from helpers import QUICK, one_line


@pytest.fixture
def finished(digits_run, tmp_path) -> Path:
    """The files of a finished run that trackers are fed from."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("recipe.yaml", "metrics.jsonl", "finished"):
        shutil.copy(digits_run / name, folder / name)
    return folder


def measured(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the (step, value) of everything that metrics.jsonl has, by KIND/NAME."""
    values: dict[str, list[tuple[int, float]]] = {}
    for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        for name, value in scalars(row).items():
            values.setdefault(name, []).append((row["step"], float(value)))
    assert {"step/loss", "step/lr", "epoch/loss", "epoch/top1"} <= set(values)
    return values


def in_tensorboard(run: Path) -> dict[str, list[tuple[int, float]]]:
    accumulators = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    tensor = importlib.import_module("tensorboard.util.tensor_util")
    events = accumulators.EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["tensors"] if "/text_summary" not in tag]
    return {
        tag: [(event.step, float(tensor.make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]
        for tag in tags
    }


def test_tensorboard_has_what_was_measured_to_the_last_bit(run, finished):
    pytest.importorskip("tensorboard")
    rows = len((finished / "metrics.jsonl").read_text().splitlines())
    assert run("log", finished, "--to", "tensorboard")[:2] == (0, f"tensorboard: {rows} rows\n")
    assert in_tensorboard(finished) == measured(finished)
    assert run("log", finished, "--to", "tensorboard")[:2] == (0, "tensorboard: 0 rows\n")
    assert in_tensorboard(finished) == measured(finished)


def test_a_run_that_is_stopped_and_continued_is_there_once(run, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from training.test_train import stop_after

    command = ["train", "tinydarknet-digits", *QUICK, "--out", tmp_path / "run", "--log-to", "tensorboard"]
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        assert run(*command)[0] == 75
    assert 0 < len(in_tensorboard(tmp_path / "run")["step/loss"]) < 8
    assert run(*command)[0] == 0
    assert in_tensorboard(tmp_path / "run") == measured(tmp_path / "run")


def test_mlflow_has_what_was_measured(finished, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    send_run(finished, ["mlflow"])
    send_run(finished, ["mlflow"])
    identity = json.loads((finished / SENT).read_text())["mlflow"]["identity"]
    client = mlflow.MlflowClient()
    there = client.get_run(identity)
    assert there.info.status == "FINISHED" and there.data.params["optim.lr"] == "0.1"
    for name, values in measured(finished).items():
        assert [(metric.step, metric.value) for metric in client.get_metric_history(identity, name)] == values


def in_wandb(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Read an offline run: a log of LevelDB's form, blocks of 32 KiB with the parts of W&B's own records."""
    records = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, place, whole = path.read_bytes(), 7, b""
    values: dict[str, list[tuple[int, float]]] = {}
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, part = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if part in (1, 4):  # the only part of a record, or its last
            record, whole = records.Record.FromString(whole), b""
            items = {item.nested_key[0]: item.value_json for item in record.history.item}
            for name in [name for name in items if not name.startswith("_")]:
                values.setdefault(name, []).append((int(items["_step"]), float(items[name])))
    return values


def test_wandb_keeps_what_was_measured_offline(finished, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    send_run(finished, ["wandb"])
    (path,) = finished.glob("wandb/offline-run-*/*.wandb")
    end = time.monotonic() + 30
    while in_wandb(path) != measured(finished) and time.monotonic() < end:
        time.sleep(0.2)  # its own process writes the last row
    assert in_wandb(path) == measured(finished)


class Failing:
    """A tracker whose server goes away after the first rows."""

    @staticmethod
    def library():
        return sys

    def start(self, run) -> None:
        self.calls = 0

    def log(self, rows) -> None:
        self.calls += 1
        if self.calls > 1:
            raise ConnectionError("no answer from example.invalid")

    def end(self, status: str) -> None:
        raise AssertionError("a tracker that failed is left alone")


def test_a_tracker_that_fails_is_one_warning_and_the_run_goes_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr("convzoo.training.loggers.TRACKERS", {"failing": Failing, "tensorboard": Failing})
    code, _, err = run("train", "tinydarknet-digits", *QUICK, "--out", tmp_path / "run", "--log-to", "tensorboard")
    assert code == 0 and (tmp_path / "run/finished").is_file()
    assert err.count("no answer from example.invalid") == 1 and err.count("nothing more is sent there") == 1


def test_what_is_missing_or_unknown_is_said_before_anything_begins(run, finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    code, _, err = run("train", "tinydarknet-digits", *QUICK, "--out", tmp_path / "new", "--log-to", "mlflow")
    assert code == 5 and "pip install 'mlflow'" in one_line(err)
    assert not (tmp_path / "new/metrics.jsonl").exists()
    with pytest.raises(MissingPackageError):
        TrackerFeed(finished, ["mlflow"])
    assert run("log", finished, "--to", "paper")[0] == 2 and run("log", tmp_path, "--to", "tensorboard")[0] == 2
