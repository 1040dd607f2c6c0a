"""What is made of a machine: freed memory that is kept, and bfloat16 where it pays."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from convzoo import distributed

# Page faults of five times making and freeing 64 MB, then of as much in a thread; printed after an optional call.
CODE = """
import resource, sys, threading
from convzoo.environment import keep_memory
print(keep_memory() if sys.argv[1] == "keep" else None)
import numpy
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
numpy.ones(8_000_000)
def count(size, times):
    before = faults()
    for _ in range(times):
        numpy.ones(size)
    print(faults() - before)
count(8_000_000, 5)
thread = threading.Thread(target=count, args=(500_000, 80))
thread.start()
thread.join()
"""


def output(argument: str, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", CODE, argument]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean | environment)
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt's settings are glibc's")
def test_freed_memory_is_kept_for_the_next_tensor():
    answer, *faults = output("plain")
    assert answer == "None" and min(map(int, faults)) > 100  # 15,625 pages of 4 KiB a time, or 31 of 2 MiB
    answer, *kept = output("keep")
    assert answer == "True" and all(int(few) < int(many) / 4 for few, many in zip(kept, faults, strict=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt's settings are glibc's")
def test_what_the_environment_sets_for_malloc_stays():
    assert output("keep", MALLOC_MMAP_THRESHOLD_="65536")[0] == "False"


@pytest.mark.parametrize(
    ("text", "faster"),
    [
        ("vendor_id : AuthenticAMD\nflags : fpu avx512f avx512_bf16 avx512_vnni", True),
        ("vendor_id : GenuineIntel\nflags : fpu avx512f avx512_bf16 avx512_vnni", False),
        ("vendor_id : GenuineIntel\nflags : fpu avx512f avx512_bf16 amx_bf16", True),
        ("vendor_id : GenuineIntel\nflags : fpu avx2", False),
        ("CPU implementer : 0x41\nFeatures : fp asimd bf16 i8mm", True),
    ],
)
def test_bfloat16_is_taken_where_it_is_faster(tmp_path, monkeypatch, text, faster):
    """Intel's cores have instructions for it that are slower than float32; a hypervisor may hide their AMX."""
    monkeypatch.setattr(distributed, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(text)
    assert distributed.computes_bfloat16(torch.device("cpu")) is faster
