"""What keeps two processes out of one run's folder: held by a living process only, whatever ended the one before."""

import fcntl
import os
import socket
import time
import weakref
from pathlib import Path
from typing import IO, Protocol

from convzoo.logs import log

WAIT_S = 10.0  # a process that was killed or asked to stop may still be on its way out
POLL_S = 0.1


_open_files: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def _close_in_child() -> None:
    """A forked loader process has the open file too, and would hold the lock for a while after its parent's death."""
    for file in _open_files:
        file.close()


os.register_at_fork(after_in_child=_close_in_child)


class RunLock(Protocol):
    """A folder that is this process's own until it lets go of it, or ends."""

    def release(self) -> None: ...


class FileLock:
    """A lock on an open file of the folder, which the kernel drops with the process that holds it."""

    def __init__(self, file: IO[str]):
        self._file = file
        _open_files.add(file)

    def release(self) -> None:
        self._file.close()


def take_lock(folder: Path, wait_s: float | None = None) -> RunLock | None:
    """Return the lock of a run's folder, or None where a living process still has it after wait_s seconds.

    On a file system without locks the folder is taken with a warning.
    """
    file = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 (held until it is released)
    until = time.monotonic() + (WAIT_S if wait_s is None else wait_s)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > until:
                file.close()
                return None
            time.sleep(POLL_S)
        except OSError as error:
            log.warning(f"{folder}: {error.strerror}: nothing here keeps a second process out")
            break
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return FileLock(file)


def holder(folder: Path) -> str:
    """Return who holds the lock, such as "process 12 on node-3"."""
    try:
        return (folder / ".lock").read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"
