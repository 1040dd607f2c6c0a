"""A signal that asks a run to stop."""

import contextlib
import signal


class StopRequest:
    """Turn the first SIGTERM or Ctrl-C into a question that the loop asks; a second one acts as it would without us."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        with contextlib.suppress(ValueError):  # not in the main thread: signals are somebody else's business
            self._before = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        self.__exit__()
