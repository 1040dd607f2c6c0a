"""One exception class per exit code, and the only place that turns errors into exit codes and messages."""

import contextlib
import errno
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

LOST_RANK_WAITS_S = 1.0  # so that the rank that failed first says why


class ConvzooError(Exception):
    """A run failed, or a model file cannot be read or does not match. Exit code 1, and the base of the others.

    Attributes:
        options: names of the parameters that are wrong or would help; the command line adds the flags (`cli.hints`).
    """

    exit_code = 1

    def __init__(self, message: str = "", options: tuple[str, ...] = ()):
        super().__init__(message)
        self.options = options


class UsageError(ConvzooError):
    """The command line, the recipe or a path is wrong. Exit code 2."""

    exit_code = 2


class DataError(ConvzooError):
    """The data is missing, damaged or does not fit the model. Exit code 3."""

    exit_code = 3


class ToleranceError(ConvzooError):
    """A comparison came out beyond its tolerance. Exit code 4."""

    exit_code = 4


class MissingPackageError(ConvzooError):
    """An optional package is needed and not installed. Exit code 5."""

    exit_code = 5


class InterruptedRun(ConvzooError):
    """A run was stopped by a signal and has saved its state: the same command continues it. Exit code 75.

    Attributes:
        first_here: the process of the first rank on this machine, which the others let end before them.
    """

    exit_code = 75

    def __init__(self, message: str = "", first_here: int | None = None):
        super().__init__(message)
        self.first_here = os.getpid() if first_here is None else first_here


def exit_code_and_message(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the one-line message of any error that reached the top."""
    if isinstance(error, ConvzooError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        lost = f"no space left while writing {error.filename or 'a file'}; nothing already saved was lost"
        return 1, f"{lost}. Free some space and run the same command again"
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError):
        return 2, f"{error.filename}: {(error.strerror or 'cannot be opened').lower()}"
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return 2, f"{error.filename}: a read-only file system"
    text = " ".join(str(error).split()) or "no message"
    out_of_memory = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate" in text
    if out_of_memory or isinstance(error, MemoryError):
        return 1, "out of memory; lower train.batch_size, or keep it and raise --accumulate"
    if text.startswith("DataLoader worker"):
        return (
            1,
            f"a loader process was killed or ran out of memory ({shared_memory()}); lower --workers, or give more",
        )
    if _lost_rank(error):
        return 1, f"the exchange with another rank failed; its own message, or the scheduler's, says why ({text[:120]})"
    return 1, f"{type(error).__name__}: {text} (CONVZOO_DEBUG=1 shows where)"


def report(error: BaseException, hint: str = "") -> int:
    """Print message and hint on stderr, with a traceback when CONVZOO_DEBUG is set, and return the exit code.

    Of several ranks that torchrun started here only the first that fails prints; each tells torchrun its message.
    """
    if os.environ.get("CONVZOO_DEBUG"):
        traceback.print_exception(error)
    code, message = exit_code_and_message(error)
    if os.environ.get("RANK", "0") != "0" and not isinstance(error, InterruptedRun):
        message = f"rank {os.environ['RANK']}: {message}"
    if _lost_rank(error):
        time.sleep(LOST_RANK_WAITS_S)
    if _first_to_fail(f"{message}{hint}"):
        print(f"convzoo: {message}{hint}", file=sys.stderr)
    return code


def shared_memory() -> str:
    """Say how much of /dev/shm, through which processes hand over tensors, is free."""
    try:
        total = os.statvfs("/dev/shm")
    except OSError:
        return "there is no /dev/shm"
    mib = total.f_frsize / 2**20
    return f"/dev/shm has {total.f_bavail * mib:,.1f} of {total.f_blocks * mib:,.1f} MiB free"


def _lost_rank(error: BaseException) -> bool:
    """Tell whether what failed was the exchange with another rank, which failed before."""
    if not isinstance(error, RuntimeError) or os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    return type(error).__name__.startswith("Dist") or any(
        name in str(error) for name in ("gloo", "Gloo", "NCCL", "HCCL")
    )


def _first_to_fail(message: str) -> bool:
    """Write torchrun's error file of this rank, and tell whether it is the first on this machine in this start."""
    path = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", ""))
    if path.name != "error.json":  # no torchrun, or one that keeps no files
        return True
    about = {"py_callstack": message, "timestamp": str(int(time.time()))}
    with contextlib.suppress(OSError):
        path.write_text(json.dumps({"message": {"message": message, "extraInfo": about}}), encoding="utf-8")
        try:
            (path.parents[1] / "first-to-fail").touch(exist_ok=False)
        except FileExistsError:
            return False
    return True
