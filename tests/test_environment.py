"""The allocator keeps freed memory: a step's tensors are faulted in once, not at every step."""

import os
import platform
import subprocess
import sys

import pytest

# Page faults of five times making and freeing 64 MB; printed after an optional call.
CODE = """
import resource, sys
from convzoo.environment import keep_memory
print(keep_memory() if sys.argv[1] == "keep" else None)
import numpy
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
numpy.ones(8_000_000)
before = faults()
for _ in range(5):
    numpy.ones(8_000_000)
print(faults() - before)
"""


def output(argument: str, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", CODE, argument]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean | environment)
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt's settings are glibc's")
def test_freed_memory_is_kept_for_the_next_tensor():
    answer, faults = output("plain")
    assert answer == "None" and int(faults) > 100  # 15,625 pages of 4 KiB a time, or 31 of 2 MiB
    answer, kept = output("keep")
    assert answer == "True" and int(kept) < int(faults) / 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt's settings are glibc's")
def test_what_the_environment_sets_for_malloc_stays():
    assert output("keep", MALLOC_MMAP_THRESHOLD_="65536")[0] == "False"
