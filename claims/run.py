"""Run a claim's commands on the machine at hand and read what they gave."""

import ast
import datetime
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import torch
import yaml

from claims.claim import HERE, ROOT, Claim, Measurement, claims, read_value
from convzoo.distributed import computes_bfloat16

SHARED = Path(os.environ.get("CONVZOO_SHARED", ROOT.parent / "shared"))
RUNS = ROOT / "runs/claims"
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
KINDS = {"VNNI": "avx512_vnni", "AMX": "amx_int8"}  # beside AVX-512 and AVX2
VARIABLES = {"native": {}, "avx2": AVX2}
_BUSY: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)  # folders: two claims may build on a third
_PARSING = threading.Lock()  # ast.parse counts its depth for all threads: two at once end now and then in a SystemError


class MeasurementError(Exception):
    """A command failed, or did not print what is read."""


def cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())


def cpu(setting: str) -> str:
    """Return what a setting computes with, in words."""
    if setting == "avx2":
        return "AVX2"
    flags, shown = cpu_flags(), []
    shown.append(
        "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else torch.backends.cpu.get_cpu_capability()
    )
    shown += [name for name, flag in KINDS.items() if flag in flags]
    if computes_bfloat16(torch.device("cpu")):
        shown.insert(2, "bfloat16")
    return ", ".join(shown)


def missing(claim: Claim) -> str | None:
    """Say what this machine lacks for a claim, or None."""
    flags = cpu_flags()
    bfloat16 = computes_bfloat16(torch.device("cpu"))
    vnni = bool(flags & {"avx512_vnni", "avx_vnni"})
    known = {
        "vnni": ("this CPU has no VNNI", vnni),
        "no-vnni": ("this CPU has VNNI", not vnni),
        "amx": ("this CPU has no AMX", "amx_int8" in flags),
        "no-amx": ("this CPU has AMX", "amx_int8" not in flags),
        "bfloat16": ("this CPU is no faster in bfloat16", bfloat16),
        "no-bfloat16": ("this CPU is faster in bfloat16", not bfloat16),
        "avx2": (
            "without AVX2 pictures are resized to other pixels",
            torch.backends.cpu.get_cpu_capability() != "DEFAULT",
        ),
        "cuda": ("no GPU", torch.cuda.is_available()),
        "darknet2any": ("CONVZOO_DARKNET2ANY does not say where it is", "CONVZOO_DARKNET2ANY" in os.environ),
        "opencv": ("opencv-python is not installed", importlib.util.find_spec("cv2") is not None),
    }
    for need in claim.needs:
        reason, is_here = known.get(need, (f"no {need} in the reference data", (SHARED / need).exists()))
        if not is_here:
            return reason
    return None


def folder(name: str, seed: int, setting: str) -> Path:
    return RUNS / name / f"seed-{seed}-{setting}"


def measure(name: str, seed: int = 0, setting: str = "native") -> Measurement:
    """Measure a claim, after the claims it builds on; what was measured with the same code is only read.

    Raises:
        MeasurementError: what went wrong, and where its output is.
    """
    with _BUSY[folder(name, seed, setting)]:
        return _measure(name, seed, setting)


def _measure(name: str, seed: int, setting: str) -> Measurement:
    claim, out = claims()[name], folder(name, seed, setting)
    kept, code = out / "measurement.json", _code_sha256(claim)
    if kept.is_file() and (earlier := json.loads(kept.read_text()))["code"] == code:
        return Measurement.model_validate(earlier["measurement"])
    places = {"out": out, "seed": seed, "shared": SHARED}
    for other in re.findall(r"\{([\w-]+)\}", " ".join(claim.commands)):
        if other not in places:
            measure(other, 0, setting)
            places[other] = folder(other, 0, setting)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    started, stdout = time.monotonic(), ""
    for command in claim.commands:
        stdout = _run(command.format(**places), claim, setting, out)
    seconds = time.monotonic() - started
    values = {key: _read(value.read, out, stdout) for key, value in claim.values.items()}
    measurement = Measurement(
        claim=name,
        seed=seed,
        setting=setting,
        values=values,
        cpu=cpu(setting),
        torch=torch.__version__.partition("+")[0],
        seconds=round(seconds, 1),
        commit=_commit(),
        date=datetime.date.today().isoformat(),
    )
    kept.write_text(json.dumps({"code": code, "measurement": measurement.model_dump()}, indent=2) + "\n")
    return measurement


def _run(command: str, claim: Claim, setting: str, out: Path) -> str:
    """Run one command, `convzoo` or `python`, and return its stdout; both streams are kept in the claim's folder."""
    program, *arguments = shlex.split(command)
    argv = [sys.executable, *(["-m", "convzoo"] if program == "convzoo" else []), *arguments]
    threads = {"OMP_NUM_THREADS": str(claim.threads)}
    env = {**os.environ, **VARIABLES[setting], **threads, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True)
    with open(out / "claim.log", "a", encoding="utf-8") as log:
        log.write(f"$ {command}\n{done.stderr}{done.stdout}\n")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise MeasurementError(f"exit {done.returncode}: {last} ({out}/claim.log)")
    return done.stdout


def _read(read: str, out: Path, stdout: str) -> float:
    numbers = []
    for part in read.split(" / "):
        source, _, key = part.partition(" ")
        try:
            text = stdout.strip().splitlines()[-1] if source == "stdout" else (out / source).read_text()
            numbers.append(read_value(json.loads(text), key))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise MeasurementError(f"{part}: {type(error).__name__} {error} ({out}/claim.log)") from None
    return numbers[0] if len(numbers) == 1 else numbers[0] / numbers[1]


def _code_sha256(claim: Claim) -> str:
    """Return a hash of what a measurement depends on: package, benchmarks and claim, not their comments or lines."""
    digest = hashlib.sha256(claim.model_dump_json(exclude={"title", "minutes", "quick"}).encode())
    with _PARSING:
        for path in sorted([*ROOT.glob("convzoo/**/*.py"), *ROOT.glob("benchmarks/*.py")]):
            digest.update(ast.dump(ast.parse(path.read_bytes())).encode())
    for path in sorted(ROOT.glob("convzoo/**/*.yaml")):
        digest.update(json.dumps(yaml.safe_load(path.read_bytes())).encode())
    return digest.hexdigest()


def _commit() -> str:
    git = lambda *argv: subprocess.run(["git", "-C", str(HERE), *argv], capture_output=True, text=True).stdout.strip()
    changed = git("status", "--porcelain", "--", str(ROOT / "convzoo"), str(ROOT / "benchmarks"))
    return git("rev-parse", "--short=7", "HEAD") + ("+" if changed else "")
