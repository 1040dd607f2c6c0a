"""The examples for clusters: scripts run with stand-ins for the scheduler, files taken by the systems' own schemas."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob

from helpers import REPO

CLUSTER = REPO / "cluster"
SKY = os.environ.get("CONVZOO_SKYPILOT")  # a Python that has skypilot: some eighty packages, and a click of its own
# What sbatch takes (Slurm 25.05, `man sbatch`), as far as it is used, and the form of each value.
SBATCH = {
    "job-name": r"\S+",
    "nodes": r"\d+(-\d+)?",
    "ntasks-per-node": r"\d+",
    "gpus-per-node": r"(\w+:)?\d+",
    "cpus-per-task": r"\d+",
    "time": r"(\d+-)?\d+:\d\d:\d\d",
    "requeue": r"",
    "open-mode": r"append|truncate",
    "signal": r"([RB]+:)?\w+@\d{1,5}",
}


@pytest.mark.parametrize("script", sorted(CLUSTER.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_is_bash_and_shellcheck_has_nothing_to_say(script):
    for command in (["bash", "-n"], [str(Path(sys.executable).with_name("shellcheck"))]):
        done = subprocess.run([*command, str(script)], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_sbatch_knows_the_directives():
    lines = (CLUSTER / "slurm.sh").read_text().splitlines()
    directives = [line.removeprefix("#SBATCH --").partition("=") for line in lines if line.startswith("#SBATCH")]
    assert {name for name, *_ in directives} == SBATCH.keys()
    assert all(re.fullmatch(SBATCH[name], value) for name, _, value in directives)
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(
        i < first_command for i, line in enumerate(lines) if line.startswith("#SBATCH")
    )  # sbatch reads no further


def content(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text())


def test_kubeflows_own_models_take_the_job_and_lose_nothing_of_it():
    job = content("trainjob.yaml")
    model = TrainerV1alpha1TrainJob.from_dict(job)
    assert model is not None and model.to_dict() == job  # a key that they do not know would be gone
    misspelt = {**job, "spec": {**job["spec"], "runtimepatches": []}}
    again = TrainerV1alpha1TrainJob.from_dict(misspelt)
    assert again is not None and again.to_dict() != misspelt
    trainer, (patch,) = job["spec"]["trainer"], job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    words = [*trainer["command"], *trainer["args"]]
    assert words[words.index("--data") + 1] == mounts["data"]
    assert (
        words[words.index("--out") + 1].startswith(f"{mounts['runs']}/") and words[2] == words[words.index("--out") + 1]
    )


@pytest.mark.skipif(not SKY, reason="CONVZOO_SKYPILOT names a Python that has skypilot")
def test_skypilots_own_schema_takes_the_task():
    code = (
        "import sys, yaml, jsonschema; from sky.utils import schemas\n"
        "jsonschema.validate(yaml.safe_load(open(sys.argv[1])), schemas.get_task_schema())\n"
        "content = yaml.safe_load(open(sys.argv[1]))\n"
        "jsonschema.validate(content['resources'], schemas.get_resources_schema())\n"
        "for mount in content['file_mounts'].values(): jsonschema.validate(mount, schemas.get_storage_schema())\n"
    )
    done = subprocess.run([str(SKY), "-c", code, str(CLUSTER / "sky.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_task_recovers_from_our_exit_code():
    task = content("sky.yaml")
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert set(re.findall(r"(?:--data|--out|run\.sh) \"?(/\w+)", task["run"])) == task["file_mounts"].keys()


@pytest.mark.parametrize("name", ["sky.yaml", "trainjob.yaml"])
def test_the_command_is_ours(name):
    trainer = content(name).get("spec", {}).get("trainer", {})
    command = content(name).get("run") or " ".join(trainer["command"] + trainer["args"])
    assert "-m convzoo train" in command and "cluster/run.sh" in command and "--fresh" not in command


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
