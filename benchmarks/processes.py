"""What the benchmarks of whole programs share: time a command as a process of its own, in rounds that take turns."""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

# glibc as it comes, whatever make or the shell set: that is how the peers run.
MALLOC = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")
KEPT = {"MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_MMAP_THRESHOLD_": "4294967296"}


def environment(threads: int, **more: str) -> dict[str, str]:
    """Return the variables of a process of so many threads, without settings for malloc but those given."""
    plain = {name: value for name, value in os.environ.items() if name not in MALLOC}
    return {**plain, "OMP_NUM_THREADS": str(threads), **more}


def convzoo(*argv: object) -> list[str]:
    return [sys.executable, "-m", "convzoo", *map(str, argv)]


def run(command: Sequence[str], env: Mapping[str, str]) -> tuple[float, float, float, str]:
    """Run a command; return its seconds on the wall, in user code and in the kernel, and its stdout."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return seconds, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, done.stdout


# A process of its own starts the command: a parent's ru_maxrss is the largest of all children that it ever had.
PEAK = (
    "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=2).returncode; "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)


def peak(command: Sequence[str], env: Mapping[str, str]) -> dict[str, float]:
    """Run a command; return its seconds on the wall, in user code and in the kernel, and the MiB of its peak."""
    seconds, user, kernel, out = run([sys.executable, "-c", PEAK, *command], env)
    return {"seconds": seconds, "user": user, "kernel": kernel, "MiB": int(out) / 1024}


def medians(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Return the median of each column."""
    return [statistics.median(column) for column in zip(*rounds, strict=True)]
