"""The log goes to stderr, results go to stdout; a progress bar only where a terminal shows it."""

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

log = logging.getLogger("convzoo")
SECRETS = (
    re.compile(r"(?<=://)[^/@\s'\"]+(?=@)"),  # the user and password of a URL
    re.compile(r"(?<=[?&])[^=&\s'\"]*(?:sig|credential|token|secret|passw|key|auth)[^=&\s'\"]*=[^&\s'\"]+", re.I),
)


def redacted(text: str) -> str:
    """Return the text with the passwords and signatures of its URLs as ***; every line of a log goes through this."""
    for secret in SECRETS:
        text = secret.sub("***", text)
    return text


class _Redacted(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class _AboveProgressBar(logging.Handler):
    """Write lines so that a running progress bar is not torn."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # here and below: half of what `--help` would wait for

        tqdm.write(self.format(record), file=sys.stderr)


def setup(rank: int = 0) -> None:
    """Send the log of rank 0 to stderr, and only warnings of the other ranks."""
    handler = _AboveProgressBar(logging.INFO if rank == 0 else logging.WARNING)
    handler.setFormatter(_Redacted("%(message)s" if rank == 0 else f"rank {rank}: %(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


class _File(logging.FileHandler):
    """A file of the log. One that cannot be written, the disk being full, ends the run with its name."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            error.filename = self.baseFilename
            raise error
        super().handleError(record)


class Copy:
    """The log with times in a file too: what comes before the file is open is held back, then written first."""

    def __init__(self) -> None:
        from logging.handlers import MemoryHandler

        self._held = MemoryHandler(1 << 20, flushLevel=logging.CRITICAL + 1)
        self._current: logging.Handler = self._held
        log.addHandler(self._held)

    def open(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        file = _File(path, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(_Redacted("%(asctime)s %(message)s"))
        self._held.setTarget(file)
        self.close()  # writes what was held
        self._current = file
        log.addHandler(file)

    def close(self) -> None:
        log.removeHandler(self._current)
        self._current.close()


def on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def progress(items: Iterable, total: int | None, what: str) -> Iterator:
    """Iterate with a progress bar on a terminal, silently elsewhere."""
    from tqdm import tqdm

    return iter(tqdm(items, total=total, desc=what, leave=False, disable=not on_terminal(), dynamic_ncols=True))


def bar(total: int, start: int, what: str) -> "tqdm":
    """Return a progress bar that the training loop advances itself."""
    from tqdm import tqdm

    return tqdm(
        total=total, initial=start, desc=what, leave=False, disable=not on_terminal(), dynamic_ncols=True, unit="step"
    )
