"""The lock of a folder behind a URL: an object that its holder renews every minute, taken over after five without."""

import json
import os
import socket
import threading
import time
import uuid

from convzoo.errors import ConvzooError, UsageError
from convzoo.logs import log
from convzoo.storage.urls import Remote

RENEW_S, EXPIRES_S, LOOK_S, SETTLE_S = 60.0, 300.0, 2.0, 1.0


class Lease:
    """A lease on an object, held from its creation until `release`.

    No clock is compared with another machine's: whoever waits sees whether the lease is renewed meanwhile.
    """

    def __init__(self, remote: Remote):
        """Take the lease, waiting where its holder may be dead. Raises UsageError where it is alive."""
        self._remote = remote
        self._id = uuid.uuid4().hex
        self._take()
        self.lost = False
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def is_held(self) -> bool:
        """Ask the store whether it is still ours; once lost it stays so. Raises ConvzooError: it does not answer."""
        if not self.lost:
            self.lost = self._holder() != self._id
        return not self.lost

    def release(self) -> None:
        """Give the lease back. Raises ConvzooError where the store does not answer."""
        self._released.set()
        self._thread.join()
        if self.is_held():
            self._remote.remove()

    def abandon(self) -> None:
        """Leave the lease to its end where the store does not answer."""
        self._released.set()

    def _take(self) -> None:
        seen, since = self._remote.read(), time.monotonic()
        if seen is not None and not _is_dead(seen):
            log.info(f"{self._remote.shown}: {_owner(seen)} was training there; waiting whether it still is")
            while time.monotonic() - since < EXPIRES_S:
                time.sleep(LOOK_S)
                now = self._remote.read()
                if now is None:
                    break
                if now != seen:
                    raise UsageError(f"{self._folder}: {_owner(now)} is training there", ("out",))
        self._write()
        time.sleep(SETTLE_S)  # of two that write at once the later one has it
        if self._holder() != self._id:
            raise UsageError(f"{self._folder}: another process began to train there", ("out",))

    @property
    def _folder(self) -> str:
        return self._remote.shown.rpartition("/")[0]

    def _write(self) -> None:
        owner = {"id": self._id, "host": socket.gethostname(), "process": os.getpid(), "renewed": time.time()}
        self._remote.write(json.dumps(owner).encode())

    def _holder(self) -> str | None:
        return _plain(self._remote.read()).get("id")

    def _renew(self) -> None:
        while not self._released.wait(RENEW_S):
            try:
                if not self.is_held() or self._released.is_set():
                    return
                self._write()
            except ConvzooError as error:
                if not self._released.is_set():
                    log.warning(f"{error}; the lease is not renewed")


def _plain(content: bytes | None) -> dict:
    try:
        plain = json.loads(content or b"{}")
    except ValueError:
        return {}
    return plain if isinstance(plain, dict) else {}


def _owner(content: bytes) -> str:
    plain = _plain(content)
    return f"process {plain.get('process', '?')} on {plain.get('host', '?')}"


def _is_dead(content: bytes) -> bool:
    """Tell whether the holder was a process of this machine that is no more. Raises UsageError where it is alive."""
    plain = _plain(content)
    process = plain.get("process")
    if plain.get("host") != socket.gethostname() or not isinstance(process, int) or process <= 0:
        return False
    if process == os.getpid():
        return True  # numbers are used again
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
