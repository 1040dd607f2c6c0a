"""A signal that asks a run to stop."""

import contextlib
import os
import signal
import time

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
