"""Time `convzoo convert` as a whole process, and its peak memory beside that of importing torch and torchvision.

python benchmarks/convert_cost.py yolov3.weights [--rounds 3]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def cost(*argv: str) -> tuple[float, int]:
    """Return seconds and peak resident megabytes of a Python process."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *argv], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(argv)}: failed")
    return time.perf_counter() - started, usage.ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out.safetensors")
        for _ in range(arguments.rounds):
            seconds, base = cost("-c", "import torch, torchvision")
            print(f"imports alone: {seconds:.2f} s, {base} MB")
            seconds, peak = cost("-m", "convzoo", "convert", arguments.source, "--out", out)
            print(f"convert: {seconds:.2f} s, {peak} MB, {peak - base} MB above the imports", flush=True)


if __name__ == "__main__":
    main()
