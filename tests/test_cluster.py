"""The examples for clusters: scripts run with stand-ins for the scheduler, files by their systems' fields."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from helpers import REPO

CLUSTER = REPO / "cluster"
# Of each system's documentation: what a file may have on each level.
SKY = {
    "": {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run", "config"},
    "resources": {"infra", "accelerators", "cpus", "memory", "use_spot", "disk_size", "image_id", "job_recovery"},
    "resources.job_recovery": {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"},
}
TRAINJOB = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"runtimeRef", "trainer", "initializer", "runtimePatches", "suspend", "managedBy", "activeDeadlineSeconds"},
    "spec.runtimeRef": {"apiGroup", "kind", "name"},
    "spec.trainer": {"image", "command", "args", "env", "numNodes", "resourcesPerNode"},
}


@pytest.mark.parametrize("script", sorted(CLUSTER.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_is_bash(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize(("name", "fields"), [("sky.yaml", SKY), ("trainjob.yaml", TRAINJOB)])
def test_a_file_has_the_fields_of_its_system_and_a_command_of_ours(name, fields):
    content = yaml.safe_load((CLUSTER / name).read_text())
    for place, allowed in fields.items():
        part = content
        for key in filter(None, place.split(".")):
            part = part[key]
        assert set(part) <= allowed, place
    trainer = content.get("spec", {}).get("trainer", {})
    command = content.get("run") or " ".join(trainer["command"] + trainer["args"])
    assert "-m convzoo train" in command and "cluster/run.sh" in command and "--fresh" not in command
    if name == "sky.yaml":
        assert content["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def wrapped(tmp_path: Path, text: str) -> int:
    argv = ["bash", str(CLUSTER / "run.sh"), str(tmp_path / "a run"), "bash", "-c", text]
    return subprocess.run(argv, cwd=tmp_path).returncode


def test_the_wrapper_tells_a_stopped_run_from_a_failed_one(tmp_path):
    (tmp_path / "a run").mkdir()
    assert wrapped(tmp_path, "exit 0") == 0
    assert wrapped(tmp_path, "exit 1") == 1
    assert wrapped(tmp_path, "echo step 3 > 'a run/interrupted'; exit 1") == 75
    assert wrapped(tmp_path, "exit 1") == 1  # an old mark says nothing
    assert wrapped(tmp_path, "echo step 5 > 'a run/interrupted'; exit 1") == 75
    assert wrapped(tmp_path, "rm 'a run/interrupted'; exit 3") == 3


def test_the_wrapper_hands_signals_on(tmp_path):
    text = "trap 'echo step 4 > interrupted; exit 1' TERM; touch ready; while :; do sleep 0.1; done"
    process = subprocess.Popen(["bash", str(CLUSTER / "run.sh"), ".", "bash", "-c", text], cwd=tmp_path)
    deadline = time.time() + 30
    while not (tmp_path / "ready").exists() and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75


def slurm(tmp_path: Path, torchrun: str) -> subprocess.CompletedProcess:
    """Run slurm.sh as Slurm would on one node, its programs and torchrun replaced by scripts that say what they got."""
    bin_ = tmp_path / "bin"
    program(bin_, "scontrol", 'echo "scontrol $*" >> log; [ "$1" = show ] && echo localhost')
    program(bin_, "srun", 'shift; exec "$@"')
    program(bin_, "torchrun", f'echo "torchrun $*" >> log; {torchrun}')
    variables = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_SUBMIT_DIR": str(REPO),
        "DATA": "/data",
        "RUN": str(tmp_path / "run"),
        "RANKS_PER_NODE": "2",
        "PATH": f"{bin_}:{os.environ['PATH']}",
    }
    argv = ["bash", str(CLUSTER / "slurm.sh"), "train.epochs=3"]
    return subprocess.run(
        argv, cwd=tmp_path, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60
    )


def test_slurm_queues_a_stopped_job_again_and_no_failed_one(tmp_path):
    (tmp_path / "run").mkdir()
    assert slurm(tmp_path, "exit 1").returncode == 1
    assert slurm(tmp_path, "exit 0").returncode == 0
    assert "requeue" not in (tmp_path / "log").read_text()
    done = slurm(tmp_path, "echo step 3 > run/interrupted; exit 1")
    log = (tmp_path / "log").read_text()
    assert done.returncode == 0 and "scontrol requeue 7" in log
    assert "--nnodes=1 --nproc-per-node=2 --max-restarts=3 --rdzv-id=7 --rdzv-backend=c10d" in log
    assert (
        f"--rdzv-endpoint=localhost:29400 -m convzoo train densenet121-imagenet --data /data --out {tmp_path}/run"
        in log
    )
    assert "train.epochs=3" in log
