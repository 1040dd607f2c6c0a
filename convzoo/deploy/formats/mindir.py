"""MINDIR, MindSpore's own file: the traced network is rebuilt there, written and run, all by a process with MindSpore.

MindSpore may want another NumPy or Python than this package, so `mindir_worker` has an environment of its own:
CONVZOO_MINDSPORE_PYTHON names its interpreter; without it, it is the current one where that has MindSpore.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from convzoo.deploy.exported import RuntimeOptions, Session
from convzoo.deploy.formats import mindir_worker
from convzoo.deploy.formats.mindir_plan import Plan
from convzoo.deploy.metadata import MAX_DOCUMENT, ExportInfo, check_seal, sealed
from convzoo.errors import ConvzooError, MissingPackageError, UsageError
from convzoo.plain import JsonValue

if TYPE_CHECKING:
    from convzoo.deploy.export import ExportOptions

PACKAGES = ()
PYTHON = "CONVZOO_MINDSPORE_PYTHON"
INSTALL = f"python3 -m venv ENV && ENV/bin/pip install mindspore==2.10.0, and {PYTHON}=ENV/bin/python"
END_S = 10  # to end by itself, before it is ended


def prepare(options: "ExportOptions") -> "ExportOptions":
    """Complete a the options. Raises UsageError, and MissingPackageError before any work is done."""
    if options.dynamic_size:
        raise UsageError("--format mindir --dynamic-size: a MINDIR file takes pictures of one size")
    if options.stage == "nms":
        suppress()
    interpreter()
    return replace(options, batch=options.batch or 1)


def suppress(*_: object) -> Tensor:
    """Refuse: this network has no counterpart of non-maximum suppression. Raises UsageError."""
    raise UsageError("--format mindir --stage nms: MINDIR files have no suppression inside; use --stage decoded")


def write(program: torch.export.ExportedProgram, info: ExportInfo, path: Path, kind: str = "MINDIR") -> list[Path]:
    """Rebuild a traced network in MindSpore and write it, its metadata beside it.

    Args:
        kind: "MINDIR", or "AIR" on an Ascend host.
    Raises:
        UsageError: a free batch or size, or an operator without counterpart.
        MissingPackageError: no MindSpore.
        ConvzooError: it was MindSpore that failed.
    """
    if info.batch is None or info.dynamic_size:
        raise UsageError(f"--format {kind.lower()}: the file takes a fixed batch and size; give --batch")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / f"network.{kind.lower()}"
        worker = Worker("write", *Plan(program).write(Path(folder)), str(written), kind)
        worker.end()
        os.replace(written, path)
    path.chmod(0o644)  # MindSpore makes files that even their owner may not write
    return [write_beside(info.model_copy(update={"versions": {**info.versions, "mindspore": worker.version}}), path)]


def read(path: Path) -> tuple[str, bytes]:
    """Return the metadata and the bytes of a file that convzoo wrote. Raises ConvzooError."""
    return read_beside(path)


def start(content: bytes, info: ExportInfo, options: RuntimeOptions) -> Session:
    """Open the file in MindSpore, with as many threads as PyTorch has. Raises UsageError, MissingPackageError."""
    if options.precision != "fp32":
        raise UsageError(f"--precision {options.precision}: a MINDIR file has the precision it was exported with")
    with tempfile.TemporaryDirectory() as folder:  # alone there, so that it cannot refer to other files beside it
        copy = Path(folder) / "network.mindir"
        copy.write_bytes(content)
        return Worker("run", str(copy), str(torch.get_num_threads()))


# --- metadata beside a file that has no place for it


def write_beside(info: ExportInfo, path: Path) -> Path:
    """Write FILE.json with the metadata and the digest of both files."""
    beside = path.with_name(f"{path.name}.json")
    beside.write_bytes(sealed(info.to_json().encode(), path.read_bytes()))
    return beside


def read_beside(path: Path) -> tuple[str, bytes]:
    """Return the metadata beside a file, and the file's verified bytes. Raises ConvzooError."""
    beside = path.with_name(f"{path.name}.json")
    if not beside.is_file() or beside.stat().st_size > MAX_DOCUMENT:
        raise ConvzooError(f"{beside.name}, its metadata, is not beside it; convzoo writes both")
    document, data = beside.read_bytes(), path.read_bytes()
    check_seal(document.decode("utf-8", "replace"), document, data)
    return document.decode(), data


# --- the process


def interpreter() -> str:
    """Return the Python that has MindSpore. Raises MissingPackageError where there is none."""
    named = os.environ.get(PYTHON)
    if not named and find_spec("mindspore") is None:
        raise MissingPackageError(f"MINDIR files need MindSpore: {INSTALL}")
    return named or sys.executable


class Worker:
    """A process of `mindir_worker`, a `Session` where it runs a file. It ends with this object, or this process.

    Raises:
        MissingPackageError: its interpreter is not there, or has no MindSpore.
        ConvzooError: MindSpore failed, with the first line of what it said.
    """

    def __init__(self, action: str, *arguments: str):
        python = interpreter()
        command = [python, mindir_worker.__file__, action, *arguments]
        try:
            stderr = None if os.environ.get("CONVZOO_DEBUG") else subprocess.DEVNULL
            scratch = tempfile.TemporaryDirectory(prefix="convzoo-mindspore-")
            environment = {**os.environ, "MS_OM_PATH": scratch.name}  # where it describes graphs that fail
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment
            )
        except OSError as error:
            raise MissingPackageError(f"{PYTHON}={python}: {(error.strerror or '').lower()}; {INSTALL}") from None
        self.lock = threading.Lock()
        self.end = weakref.finalize(self, _end, self.process, scratch, os.getpid())
        try:
            self._answers()
        except ConvzooError as error:
            self.end()
            if self.process.returncode == mindir_worker.NO_MINDSPORE:
                raise MissingPackageError(f"{python} has no MindSpore that loads ({error}): {INSTALL}") from None
            if self.process.returncode == mindir_worker.NO_ASCEND:
                raise MissingPackageError(
                    f"AIR files need an Ascend host, with CANN and its MindSpore ({error})"
                ) from None
            raise

    def __call__(self, images: Tensor) -> list[np.ndarray]:
        buffer = io.BytesIO()
        np.save(buffer, images.numpy())
        with self.lock:
            with contextlib.suppress(BrokenPipeError):  # the answer, or that there is none, says more
                mindir_worker.write_frame(self.process.stdin, buffer.getvalue())
                self.process.stdin.flush()  # type: ignore[union-attr]
            return self._answers()

    def _answers(self) -> list[np.ndarray]:
        stream = self.process.stdout
        head = mindir_worker.read_frame(stream)
        answer: JsonValue = json.loads(head) if head else {"error": f"its process ended ({self.process.wait()})"}
        if "error" in answer:
            raise ConvzooError(f"MindSpore: {answer['error']}")
        self.version = answer["mindspore"]
        frames = [mindir_worker.read_frame(stream) for _ in range(answer["arrays"])]
        return [np.load(io.BytesIO(frame), allow_pickle=False) for frame in frames]


def _end(process: subprocess.Popen, scratch: tempfile.TemporaryDirectory, owner: int) -> None:
    """Tell a process to end and wait until it has; a forked child, which holds the same pipes, leaves it alone."""
    if os.getpid() != owner:
        return
    with contextlib.suppress(OSError):
        mindir_worker.write_frame(process.stdin, b"")
        process.stdin.close()  # type: ignore[union-attr]
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()  # type: ignore[union-attr]
    scratch.cleanup()
