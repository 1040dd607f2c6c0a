"""kill -9 while checkpoints are written, twenty times: the last whole one is never lost and the end is the same."""

import random
import subprocess
import sys
import time

import pytest
import torch

from convzoo.model_file import load_model
from convzoo.training.checkpoints import RunCheckpoints
from helpers import QUICK

COMMAND = [
    sys.executable,
    "-m",
    "convzoo",
    "train",
    "tinydarknet-digits",
    *QUICK,
    "train.epochs=60",
    "train.eval_every_epochs=60",
    "--save-every-steps",
    "1",
]


@pytest.mark.slow
def test_twenty_kills_lose_nothing(tmp_path):
    random.seed(0)
    out = tmp_path / "killed"
    reached = 0
    for _ in range(20):
        process = subprocess.Popen([*COMMAND, "--out", str(out)], stderr=subprocess.PIPE, text=True)
        deadline = time.time() + 120
        # Wait until this process has written at least one checkpoint of its own, then kill it at a random moment.
        while time.time() < deadline and process.poll() is None:
            if RunCheckpoints(out / "checkpoints", 10).steps()[:1] > [reached]:
                break
            time.sleep(0.01)
        time.sleep(random.random() * 0.3)
        process.kill()
        _, err = process.communicate()
        assert process.returncode == -9, err
        found = RunCheckpoints(out / "checkpoints", 10).newest_whole()
        assert found is not None
        step = found[1]["step"]
        assert step >= reached, "a checkpoint that was whole is gone"
        reached = step
    done = subprocess.run([*COMMAND, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole = subprocess.run([*COMMAND, "--out", str(tmp_path / "whole")], capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    killed, untouched = (load_model(folder / "checkpoints/last.safetensors")[0] for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(killed[name], untouched[name]) for name in untouched)
