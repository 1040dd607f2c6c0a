"""What a number is judged by: versions, hardware, commit and command; and how the process keeps its memory.

What takes long to import, PyTorch first, is imported where it is needed: the command line starts with this file.
"""

import ctypes
import os
import platform
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from convzoo.logs import redacted
from convzoo.plain import JsonObject
from convzoo.version import __version__

if TYPE_CHECKING:
    import torch


PACKAGES = ("torch", "torchvision", "numpy", "pillow", "safetensors", "pydantic")


# glibc's numbers for mallopt (malloc.h); its values are C ints.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
LARGEST_INT = 2**31 - 1
MALLOC_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


def keep_memory() -> bool:
    """Have glibc keep freed memory for the next tensor, instead of mapping and faulting it in again at every step.

    Tensors of a step are large: each would be a mapping of its own, given back when it is freed, and the kernel would
    fault in every page of the next one. Call it before large tensors are made, as the command line does. What the
    environment sets for malloc stays.

    Returns:
        Whether it is so now: False on another system or C library, or where the environment decides.
    """
    if any(name in os.environ for name in MALLOC_SETTINGS) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Above 32 MiB glibc refuses a threshold; without mappings all comes from the heap as well.
    mapped_late = mallopt(M_MMAP_THRESHOLD, LARGEST_INT) or mallopt(M_MMAP_MAX, 0)
    if "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(M_ARENA_MAX, 1)  # other threads' own heaps are trimmed whatever the threshold says
    return bool(mapped_late and mallopt(M_TRIM_THRESHOLD, LARGEST_INT))


def free_bytes() -> int:
    """Return the memory that this process may still take: what the system can free, or its container allows."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 62
    group = Path("/sys/fs/cgroup")
    try:
        files = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(files["inactive_file"])  # a cache that gives way
        return min(free, int((group / "memory.max").read_text()) - used)
    except (OSError, KeyError, ValueError):  # no container, or one without a limit ("max")
        return free


def environment(device: "torch.device") -> JsonObject:
    """Return versions, hardware and commit, to judge a number by."""
    from importlib import metadata

    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "convzoo": __version__,
        "commit": _git_commit(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "cpu_cores": cores,
        "threads": torch.get_num_threads(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }


def command_line(argv: list[str]) -> str:
    """Return the command as typed, without the passwords of URLs."""
    return shlex.join(["convzoo", *map(redacted, argv)])


def _git_commit() -> str | None:
    import subprocess

    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
