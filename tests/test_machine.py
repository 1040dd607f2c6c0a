"""What `doctor` says of a machine: facts, what will be in the way, and tests that can fail."""

import copy
import json

import pytest
import torch

from convzoo import machine
from convzoo.cli.doctor import text
from convzoo.storage.cache import FOLDER
from helpers import one_line, torchrun

GIB = 2**30


@pytest.fixture(scope="module")
def healthy():
    """This machine's facts, with what a comfortable one would have."""
    facts = machine.facts()
    disk = {"path": "/somewhere", "total": 500 * GIB, "free": 400 * GIB, "writable": True}
    return facts | {
        "shm": {**disk, "free": 8 * GIB, "total": 8 * GIB},
        "disks": {name: dict(disk) for name in facts["disks"]},
        "limits": {"NOFILE": [65536, 65536], "FSIZE": [None, None], "AS": [None, None]},
        "memory": {"total": 32 * GIB, "available": 20 * GIB, "cgroup_limit": None},
        "cgroup_cpus": None,
        "instructions": ["AVX2"],
        "drivers": [],
    }


def test_facts_are_of_this_machine(healthy):
    facts = machine.facts()
    assert torch.__version__.startswith(facts["torch"]) and facts["threads"] == torch.get_num_threads()
    assert facts["shm"]["free"] <= facts["shm"]["total"] and facts["memory"]["available"] < facts["memory"]["total"]
    assert {"deploy", "remote", "serve"} <= facts["extras"].keys()
    assert all(extra["gives"] and extra["packages"] for extra in facts["extras"].values())
    assert facts["extras"]["deploy"]["packages"]["onnxruntime"].count(".") >= 1
    assert machine.obstacles(healthy) == []


@pytest.mark.parametrize(
    ("change", "problem", "remedy"),
    [
        ({"shm": None}, "there is no /dev/shm", "--workers 0"),
        ({"shm": {"total": 64 << 20, "free": 0}}, "/dev/shm has 64.0 MiB", "--shm-size"),
        ({"limits": {"NOFILE": [1024, 4096]}}, "1,024 open files", "ulimit -n"),
        ({"memory": {"total": GIB, "available": GIB, "cgroup_limit": None}}, "1.0 GiB of memory", "--accumulate"),
        ({"memory": {"total": 9, "available": 9 * GIB, "cgroup_limit": GIB}}, "1.0 GiB of memory", "--accumulate"),
        ({"cgroup_cpus": 2.0, "threads": 64}, "64 threads on the 2 processors", "OMP_NUM_THREADS=2"),
        ({"drivers": ["nvidia0"], "torch_cuda": None, "devices": []}, "this PyTorch is built for CPUs", "pip install"),
        ({"drivers": ["davinci0"], "devices": []}, "Ascend NPU", "torch_npu"),
        ({"cache_limit": 900 * GIB}, "the cache may grow to 900.0 GiB", "CONVZOO_CACHE_GB"),
    ],
)
def test_what_is_in_the_way_is_named_with_what_to_do(healthy, change, problem, remedy):
    (found,) = machine.obstacles(healthy | change)
    assert problem in found.problem and remedy in found.remedy
    assert found.problem in text(healthy, [found])


def test_full_and_closed_disks_are_in_the_way(healthy):
    facts = copy.deepcopy(healthy)
    facts["disks"]["runs"]["free"] = GIB
    facts["disks"]["cache"]["writable"] = False
    problems = [found.problem for found in machine.obstacles(facts)]
    assert problems == ["1.0 GiB free in /somewhere (runs)", "/somewhere (cache) cannot be written"]


def test_it_is_one_screen(run):
    code, out, err = run("doctor")
    assert (code, err) == (0, "") and len(out.splitlines()) < 40 and max(map(len, out.splitlines())) < 200
    plain = json.loads(run("doctor", "--json")[1])
    assert plain["tests"] == {} and out.splitlines()[0].split()[1] == plain["convzoo"]
    assert all(set(warning) == {"problem", "remedy"} for warning in plain["warnings"])


def test_tests_measure_or_fail(run, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    for i in range(3):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / f"data/{i}").write_bytes(bytes(1000))
    code, out, _ = run("doctor", "--test", "--data", tmp_path / "data")
    assert code == 0 and "computing   ok: cpu, " in out and "reading     ok: " in out and "(3 files or parts" in out
    code, out, err = run("doctor", "--test", "--data", tmp_path / "none", "--json")
    assert code == 1 and one_line(err) == "convzoo: tests that failed: reading"
    assert json.loads(out)["tests"]["reading"]["problem"].endswith("none: nothing is there")
    code, _, err = run("doctor", "--data", tmp_path)
    assert code == 2 and "--data is for --test" in one_line(err)


@pytest.mark.slow
def test_ranks_exchange_and_agree(tmp_path):
    for i in range(4):
        (tmp_path / str(i)).write_bytes(bytes(1000))
    done = torchrun("doctor", "--test", "--json", "--data", tmp_path)
    assert done.returncode == 0, done.stderr
    tests = json.loads(done.stdout.splitlines()[-1])["tests"]
    exchange = tests["all-reduce"]
    assert exchange["ok"] and exchange["ranks"] == 2 and exchange["mb_per_s"] > 0 and exchange["wrong_ranks"] == []
    assert tests["reading"]["files"] == 4 and tests["reading"]["bytes"] == 4000
