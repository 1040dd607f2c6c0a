"""What a machine has, what of it will be in the way, and whether its ranks and its data answer."""

import contextlib
import datetime
import os
import platform
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as td

from convzoo import distributed
from convzoo.environment import cpu_name, environment
from convzoo.errors import ConvzooError, UsageError
from convzoo.plain import JsonObject
from convzoo.storage import Remote, cache_folder, shown, url_of
from convzoo.storage.cache import FOLDER, LIMIT, limit_bytes

GIB, MIB = 2**30, 2**20
INSTRUCTIONS = {
    "AVX2": {"avx2"}, "AVX-512": {"avx512f"}, "VNNI": {"avx512_vnni", "avx_vnni"}, "AVX-512 BF16": {"avx512_bf16"},
    "AMX BF16": {"amx_bf16"}, "AMX INT8": {"amx_int8"}, "NEON": {"asimd"}, "SVE": {"sve"}, "ARM BF16": {"bf16"},
    "I8MM": {"i8mm"},
}  # fmt: skip
# What each extra gives; their packages are what the installed convzoo declares.
GIVES = {
    "deploy": "export, quantize and bench: ONNX, OpenVINO, NCNN",
    "serve": "serve: models over HTTP",
    "remote": "s3:// wherever a path is taken",
    "zoos": "timm's published weights",
    "mindspore": "running MindSpore's files in MindSpore itself",
    "loggers": "log: runs in TensorBoard",
    "bench": "whom benchmarks/ measures beside us",
    "dev": "the tests",
}
TOOLS = {"atc": "om files", "amct_onnx": "INT8 for om", "git": "the commit in env.json"}
CGROUPS = Path("/sys/fs/cgroup")
EXCHANGED = 4 * MIB  # float32 numbers: 16 MiB, as DDP's buckets are
ANSWERS_WITHIN_S = 60.0
WHOLE = 256 * MIB  # of a store, files up to this size are read
SMALL_SHM, FEW_FILES, LITTLE_DISK, LITTLE_MEMORY = GIB, 4096, 10 * GIB, 2 * GIB


class Obstacle(NamedTuple):
    """What will be in the way, and what to do about it."""

    problem: str
    remedy: str


def facts() -> JsonObject:
    """Return what this machine has: versions, processor, devices, memory, disks, limits, extras and tools; bytes."""
    device = distributed.resolve_device("auto")
    runs = Path("runs").absolute()
    limits = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in ("NOFILE", "FSIZE", "AS")}
    return {
        **environment(device),
        "cpu_name": cpu_name(),
        "instructions": [name for name, flags in INSTRUCTIONS.items() if flags & _cpu_flags()],
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "computes_bfloat16": distributed.computes_bfloat16(device),
        "devices": _devices(),
        "drivers": [name for name in ("nvidia0", "davinci0") if Path("/dev", name).exists()],
        "torch_cuda": torch.version.cuda,
        "memory": {**_memory(), "cgroup_limit": _cgroup("memory.max", "memory/memory.limit_in_bytes")},
        "cgroup_cpus": _cgroup_cpus(),
        "shm": _disk(Path("/dev/shm")) if Path("/dev/shm").is_dir() else None,
        "disks": {"runs": _disk(runs), "cache": _disk(cache_folder()), "temporary": _disk(Path(tempfile.gettempdir()))},
        "cache_limit": limit_bytes(),
        "limits": {name: [None if value < 0 else value for value in pair] for name, pair in limits.items()},
        "extras": _extras(),
        "tools": {tool: shutil.which(tool) for tool in TOOLS},
    }


def obstacles(facts: JsonObject) -> list[Obstacle]:
    """Return what of a machine's facts will be in the way of a run."""
    return [*_of_memory(facts), *_of_disks(facts), *_of_processors(facts)]


def _of_memory(facts: JsonObject) -> Iterator[Obstacle]:
    shm, files, memory = facts["shm"], facts["limits"]["NOFILE"][0], facts["memory"]
    if shm is None or shm["total"] < SMALL_SHM:
        there = "there is no /dev/shm" if shm is None else f"/dev/shm has {size(shm['total'])}"
        remedy = "docker run --shm-size=8g, or --workers 0"
        yield Obstacle(f"{there}, in which loader processes hand over their batches", remedy)
    if files is not None and files < FEW_FILES:
        yield Obstacle(f"{files:,} open files at most; loader processes and stores need more", "ulimit -n 65536")
    available = min(memory["available"] or LITTLE_MEMORY, memory["cgroup_limit"] or LITTLE_MEMORY)
    if available < LITTLE_MEMORY:
        yield Obstacle(f"{size(available)} of memory available", "a smaller train.batch_size, or --accumulate N")


def _of_disks(facts: JsonObject) -> Iterator[Obstacle]:
    for name, other in (("runs", "--out"), ("cache", FOLDER), ("temporary", "TMPDIR")):
        disk = facts["disks"][name]
        if not disk["writable"]:
            yield Obstacle(f"{disk['path']} ({name}) cannot be written", f"{other} names another folder")
        elif disk["free"] < LITTLE_DISK:
            yield Obstacle(f"{size(disk['free'])} free in {disk['path']} ({name})", f"{other} names another disk")
    cache = facts["disks"]["cache"]
    if LITTLE_DISK <= cache["free"] < facts["cache_limit"]:
        may = f"the cache may grow to {size(facts['cache_limit'])}; {size(cache['free'])} are free in {cache['path']}"
        yield Obstacle(may, f"{LIMIT}=N bounds it, {FOLDER} names another disk")


def _of_processors(facts: JsonObject) -> Iterator[Obstacle]:
    cpus, threads, unseen = facts["cgroup_cpus"], facts["threads"], not facts["devices"]
    if cpus is not None and threads > max(1.0, cpus):
        remedy = f"export OMP_NUM_THREADS={max(1, int(cpus))}"
        yield Obstacle(f"{threads} threads on the {cpus:g} processors that this container may use", remedy)
    if platform.machine() == "x86_64" and "AVX2" not in facts["instructions"]:
        problem = "no AVX2: slow, and initial weights are not other machines'"
        yield Obstacle(problem, "another machine for numbers that are compared")
    if "nvidia0" in facts["drivers"] and unseen:
        why = "this PyTorch is built for CPUs" if facts["torch_cuda"] is None else "PyTorch does not see it"
        yield Obstacle(f"there is an NVIDIA GPU, but {why}", "pip install torch torchvision; nvidia-smi says the rest")
    if "davinci0" in facts["drivers"] and unseen:
        remedy = "pip install torch_npu, and source CANN's set_env.sh"
        yield Obstacle("there is an Ascend NPU, but PyTorch does not see it", remedy)


# --- tests


def check_computing(device: torch.device) -> JsonObject:
    """Multiply matrices on the device and compare with the CPU's float64."""
    a, b = (torch.randn(512, 512, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    exact = a.double() @ b.double()
    difference = float(((a.to(device) @ b.to(device)).cpu().double() - exact).abs().max() / exact.abs().max())
    return {"ok": difference < 1e-4, "device": str(device), "relative_difference": difference}


def check_exchange(device: torch.device, seconds: float) -> JsonObject:
    """Sum 16 MiB of numbers over all ranks again and again, and see that every rank has the right sum.

    Raises:
        RuntimeError: of PyTorch, where a rank does not answer within a minute.
    """
    ranks, rank = distributed.world_size(), distributed.rank()
    group = td.new_group(timeout=datetime.timedelta(seconds=ANSWERS_WITHIN_S))
    assert isinstance(group, td.ProcessGroup)
    expected, ok = ranks * (ranks + 1) / 2, True

    def rounds(count: int) -> float:
        nonlocal ok
        td.barrier(group)
        began = time.perf_counter()
        for _ in range(count):
            numbers = torch.full((EXCHANGED,), float(rank + 1), device=device)
            td.all_reduce(numbers, group=group)
            ok = ok and bool((numbers == expected).all())
        return time.perf_counter() - began

    once = rounds(2) / 2
    count = distributed.from_rank_0(max(1, int(seconds / max(once, 1e-4))))
    took = rounds(count)
    reports = distributed.gather_objects((platform.node(), took, ok))
    slowest = max(took for _, took, _ in reports)
    return {
        "ok": all(ok for _, _, ok in reports),
        "ranks": ranks,
        "machines": len({node for node, _, _ in reports}),
        "mb_per_s": EXCHANGED * 4 * count / slowest / 1e6,
        "seconds": slowest,
        "wrong_ranks": [i for i, (_, _, ok) in enumerate(reports) if not ok],
    }


def check_reading(path: Path, seconds: float) -> JsonObject:
    """Read this rank's share of the files below a path or URL, or an archive's bytes, for so long."""
    files, bytes_, problem, began = 0, 0, "", time.perf_counter()
    try:
        for count in _contents(path):
            files, bytes_ = files + 1, bytes_ + count
            if time.perf_counter() - began > seconds:
                break
    except (ConvzooError, OSError) as error:  # told to the others, who would wait for this rank
        problem = " ".join(str(error).split())
    shares = distributed.gather_objects((files, bytes_, time.perf_counter() - began, problem))
    files, bytes_ = sum(share[0] for share in shares), sum(share[1] for share in shares)
    slowest = max(share[2] for share in shares)
    problems = [share[3] for share in shares if share[3]] or ["nothing is there"] * (not files)
    rates = {"files_per_s": files / slowest, "mb_per_s": bytes_ / slowest / 1e6}
    result = {"ok": not problems, "path": shown(path), "files": files, "bytes": bytes_, "seconds": slowest, **rates}
    return {**result, "problem": f"{shown(path)}: {problems[0]}"} if problems else result


def _contents(path: Path) -> Iterator[int]:
    """Read file after file of this rank's share, or parts of the one file, and yield how many bytes came."""
    rank, ranks = distributed.rank(), distributed.world_size()
    if url_of(path):
        remote = Remote(path)
        names = [name for name, info in remote.files().items() if (info["size"] or 0) <= WHOLE]
        if not names:
            raise UsageError(f"no file of at most {size(WHOLE)} there")
        parts = [remote.child(name) if name else remote for name in names]
        yield from (len(part.read() or b"") for part in parts[rank::ranks])
    elif path.is_dir():
        paths = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in sorted(names))
        yield from (len(Path(name).read_bytes()) for i, name in enumerate(paths) if i % ranks == rank)
    elif path.is_file():
        with open(path, "rb") as file:
            while part := file.read(MIB):
                yield len(part)


# --- what the system says


def _cpu_flags() -> set[str]:
    try:
        return set(re.findall(r"[\w.]+", Path("/proc/cpuinfo").read_text()))
    except OSError:
        return set()


def _devices() -> list[JsonObject]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return []
    count = torch.accelerator.device_count()
    if accelerator.type != "cuda":
        return [{"name": accelerator.type, "memory": None}] * count
    properties = [torch.cuda.get_device_properties(i) for i in range(count)]
    return [{"name": device.name, "memory": device.total_memory} for device in properties]


def _memory() -> JsonObject:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return {"total": None, "available": None}
    keys = {"total": "MemTotal", "available": "MemAvailable"}
    return {name: int(lines[key].split()[0]) * 1024 for name, key in keys.items()}


def _cgroup(file: str, first_version: str) -> int | None:
    """Return the least limit of the process's control groups, or None; of the first version the container's."""
    values = []
    with contextlib.suppress(OSError, ValueError):
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        folder = CGROUPS / own
        for place in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):
                values.append(int((place / file).read_text().split()[0]))
            if place == CGROUPS:
                break
    with contextlib.suppress(OSError, ValueError):
        values.append(int((CGROUPS / first_version).read_text()))
    return min((value for value in values if 0 < value < 1 << 60), default=None)


def _cgroup_cpus() -> float | None:
    quota = _cgroup("cpu.max", "cpu/cpu.cfs_quota_us")  # microseconds of each tenth of a second
    return None if quota is None else quota / 100_000


def _disk(path: Path) -> JsonObject:
    place = next(folder for folder in (path, *path.parents) if folder.is_dir())
    usage = shutil.disk_usage(place)
    return {"path": str(path), "total": usage.total, "free": usage.free, "writable": os.access(place, os.W_OK)}


def _extras() -> JsonObject:
    """Return of each extra that the installed convzoo declares what it gives and its packages' versions here."""
    extras: JsonObject = {}
    with contextlib.suppress(metadata.PackageNotFoundError):
        for line in metadata.requires("convzoo") or []:
            match = re.match(r"""([\w.-]+)(?:\[[\w,-]+\])?[^;]*; extra == ['"](\w+)['"]""", line)
            if match and match[2] != "all" and match[1] != "convzoo":  # an extra may name others
                entry = extras.setdefault(match[2], {"gives": GIVES.get(match[2], ""), "packages": {}})
                entry["packages"][match[1]] = _version(match[1])
    return extras


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def size(count: int | None) -> str:
    """Return bytes as people read them."""
    if count is None:
        return "none"
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / MIB:,.1f} MiB"
