"""What a server takes, and how it says no."""

from dataclasses import dataclass

from convzoo.errors import ConvzooError


@dataclass(frozen=True)
class Limits:
    """What a server takes at most; beyond it a request gets an HTTP status and one line.

    Attributes:
        body_bytes: of a request (413). held_bytes: of all requests together (429).
        pixels: of a picture, and of one request's tensors (422). pictures: of one request (422).
        queue: requests for a model that have no answer yet (429).
        seconds: from a request's head to its answer (503). head_seconds: for the head; the connection is then closed.
        batch: pictures that run together. delay_s: for which a batch waits for requests that come at the same time.
    """

    body_bytes: int = 32 << 20
    held_bytes: int = 512 << 20
    pixels: int = 64_000_000
    pictures: int = 64
    queue: int = 64
    seconds: float = 30.0
    head_seconds: float = 10.0
    batch: int = 16
    delay_s: float = 0.002


class Refusal(ConvzooError):
    """A request that gets no answer: the HTTP status, one line and headers."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
