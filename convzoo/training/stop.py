"""A signal that asks a run to stop, and how its ranks end."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from convzoo.errors import InterruptedRun

POLL_S = 0.05
TWICE_S = 0.5  # within it a launcher's signal and a scheduler's to the whole job are the same one


class StopRequest:
    """Turn the first SIGTERM or Ctrl-C into a question that the loop asks; a second one acts as it would without us.

    Under torchrun its end is a request too: nobody could stop the ranks that it leaves behind.
    """

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self._before: dict[int, object] = {}
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    @property
    def requested(self) -> bool:
        return self._asked_at is not None or (self._launcher is not None and os.getppid() != self._launcher)

    def __enter__(self) -> "StopRequest":
        with contextlib.suppress(ValueError):  # not in the main thread: signals are somebody else's business
            self._before = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _request(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
            if self._launcher is None:
                self.__exit__()
        elif now - self._asked_at > TWICE_S:
            self.__exit__()
            signal.raise_signal(number)


@contextlib.contextmanager
def ending_in_turn() -> Iterator[None]:
    """Have a run's ranks end in their turn where it is stopped."""
    try:
        yield
    except InterruptedRun as stopped:
        leave(stopped)
        raise


def leave(stopped: InterruptedRun) -> None:
    """End a stopped rank in its turn: torchrun takes the first end for a failure, ends the others and starts all again.

    The first rank of a machine, which may have been bringing a run up to its URL, ends first; where torchrun has starts
    left, it asks torchrun to stop before.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's own, to ranks that are on their way
    if stopped.first_here != os.getpid():
        while _runs(stopped.first_here):
            time.sleep(POLL_S)
        return
    starts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) < starts:
        os.kill(os.getppid(), signal.SIGTERM)


def _runs(process: int) -> bool:
    """Tell whether a process of this machine is there and has not ended, waited for by its parent or not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
