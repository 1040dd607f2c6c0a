"""Run the suite as other machines compute: `python tests/portable.py [SETTING ...]`; a table last, exit 1 if any fails.

Older CPUs are stood for by the variables that make PyTorch, oneDNN and MKL leave newer instructions out; the oldest
supported PyTorch by an environment of its own (`make .venv-oldest/.all`). A setting that passed with the same
files is not run again, so that an interrupted run goes on where it was.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "runs/portable"
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
SSE41 = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
PASSIVE = {"OMP_WAIT_POLICY": "passive"}  # four threads on two cores: one that waits must not spin
SETTINGS = {  # name: environment, variables, threads of a test, tests at a time
    "native": (".venv", {}, 1, 2),
    "avx2": (".venv", AVX2, 1, 2),
    "sse41": (".venv", SSE41, 1, 2),
    "two-threads": (".venv", PASSIVE, 2, 2),
    "oldest-torch": (".venv-oldest", {}, 1, 2),
}
VERSIONS = "import torch, torchvision; print(torch.__version__, torchvision.__version__)"


def files_sha256() -> str:
    """Return a hash of every file that the tests run or read, documents aside, names and contents."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", ":!*.md"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    digest = hashlib.sha256()
    for name in sorted(filter(None, names)):
        if (ROOT / name).is_file():
            digest.update(name.encode() + (ROOT / name).read_bytes())
    return digest.hexdigest()


def run(name: str, files: str) -> dict:
    """Run one setting and keep its result, unless it has passed with these files."""
    environment, variables, threads, at_a_time = SETTINGS[name]
    kept = RESULTS / f"{name}.json"
    if kept.is_file() and (result := json.loads(kept.read_text()))["files"] == files and result["passed"]:
        return result
    python = ROOT / environment / "bin/python"
    if not python.is_file():
        raise SystemExit(f"{environment}: not there; make test-portable sets it up")
    env = {**os.environ, **variables, "OMP_NUM_THREADS": str(threads), "CONVZOO_TEST_THREADS": str(threads)}
    command = [python, "-m", "pytest", "-n", str(at_a_time), "--dist", "loadfile", "-rs"]
    started = time.monotonic()
    RESULTS.mkdir(parents=True, exist_ok=True)
    with open(RESULTS / f"{name}.log", "w") as log:
        code = subprocess.run(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT).returncode
    minutes = (time.monotonic() - started) / 60
    closing = re.findall(r"\d+ (?:passed|failed).*(?= in )", (RESULTS / f"{name}.log").read_text())
    versions = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True).stdout.strip()
    result = {"setting": name, "passed": code == 0, "counts": closing[-1] if closing else f"exit {code}"}
    result |= {"minutes": round(minutes, 1), "torch, torchvision": versions, "files": files}
    kept.write_text(json.dumps(result, indent=2) + "\n")
    return result


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in SETTINGS]
    if unknown:
        raise SystemExit(f"{unknown[0]}: no such setting; {', '.join(SETTINGS)}")
    files, results = files_sha256(), []
    for name in names or SETTINGS:
        results.append(run(name, files))
        print(f"{name}: {results[-1]['counts']}, {results[-1]['minutes']} min; {RESULTS / name}.log", flush=True)
    print("\n| setting | torch, torchvision | tests | minutes |\n|---|---|---|---|")
    for result in results:
        cells = (result["setting"], result["torch, torchvision"], result["counts"], result["minutes"])
        print(f"| {' | '.join(map(str, cells))} |")
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
