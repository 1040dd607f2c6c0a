"""Requests on their way in: bodies within limits, pictures out of them, clients that go away."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import TypeVar

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from convzoo.serve.limits import Limits, Refusal
from convzoo.serve.metrics import Metrics
from convzoo.serve.models import ServedModel

T = TypeVar("T")
CLOSE = {"Connection": "close"}
LINGER_S = 1.0  # for which a body that is refused is still read, so that its sender gets to see the answer


class House:
    """The requests that have no answer yet, counted against the limits."""

    def __init__(self, limits: Limits, metrics: Metrics):
        self.limits, self._metrics = limits, metrics
        self._held_bytes = 0

    @contextlib.asynccontextmanager
    async def body(self, request: Request, model: ServedModel) -> AsyncIterator[bytes]:
        """Give a request's body, counted until the answer is made; all of it within the limit of time.

        Raises:
            Refusal: 413, 429, 503.
            ClientDisconnect: the client went before its body was whole.
        """
        if model.waiting >= self.limits.queue:
            raise Refusal(429, f"{self.limits.queue} requests wait for this model already", {"Retry-After": "1"})
        model.waiting += 1
        self._metrics.add("convzoo_waiting", 1, model=model.name)
        held = Held(0)
        try:
            async with asyncio.timeout(self.limits.seconds):
                yield await self._read(request, held)
        except TimeoutError:
            raise Refusal(503, f"no answer within {self.limits.seconds:g} s", CLOSE) from None
        finally:
            model.waiting -= 1
            self._metrics.add("convzoo_waiting", -1, model=model.name)
            self._hold(held, -held.bytes)

    async def _read(self, request: Request, held: "Held") -> bytes:
        most, chunks, stream = self.limits.body_bytes, [], request.stream()
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > most:
            await _linger(request, stream)
            raise Refusal(413, f"a body of more than {most:,} bytes", CLOSE)
        async for chunk in stream:
            if held.bytes + len(chunk) > most:
                await _linger(request, stream)
                raise Refusal(413, f"a body of more than {most:,} bytes", CLOSE)
            if self._held_bytes + len(chunk) > self.limits.held_bytes:
                raise Refusal(429, "the server holds as much as it may", {"Retry-After": "1", **CLOSE})
            self._hold(held, len(chunk))
            chunks.append(chunk)
        return b"".join(chunks)

    def _hold(self, held: "Held", count: int) -> None:
        held.bytes += count
        self._held_bytes += count
        self._metrics.add("convzoo_held_bytes", count)


@dataclass
class Held:
    """How many bytes of a request are in memory."""

    bytes: int


async def _linger(request: Request, stream: AsyncIterator[bytes]) -> None:
    """Read on and forget, briefly; a client that asked whether to send its body is simply answered."""
    if "expect" in request.headers:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            async for _ in stream:
                pass


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return what comes of the work; the request has been read. Raises ClientDisconnect, and cancels the work then."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").split(";")[0].strip().lower() == "multipart/form-data"


async def pictures(request: Request, body: bytes, limits: Limits) -> list[tuple[str, bytes]]:
    """Return name and content of the pictures: the body itself, or the multipart fields `file`.

    Raises:
        Refusal: 400, no multipart or no field `file`; 422, too many.
    """
    if not is_form(request):
        return [("body", body)]

    async def once() -> AsyncIterator[bytes]:
        yield body

    class InMemory(MultiPartParser):
        spool_max_size = limits.body_bytes + 1  # nothing of a request goes to the disk

    try:
        parser = InMemory(request.headers, once(), max_files=limits.pictures, max_fields=0)  # type: ignore[arg-type]
        form = await parser.parse()
    except MultiPartException as error:
        status = 422 if "Too many files" in error.message else 400
        raise Refusal(status, f"the multipart form: {error.message}") from None
    files = [(name, part) for name, part in form.multi_items() if isinstance(part, UploadFile)]
    if not files or any(name != "file" for name, _ in files):
        raise Refusal(400, "the multipart form: pictures come in fields `file`, with a file name")
    return [(part.filename or "file", await part.read()) for _, part in files]


def fraction(request: Request, name: str, default: float) -> float:
    """Return a number in 0..1 from the query. Raises Refusal (400)."""
    text = request.query_params.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise Refusal(400, f"{name}: a number in 0..1, not {text!r:.40}")
    return value


def label_and_box(request: Request, class_names: list[str]) -> tuple[int | None, tuple[float, ...] | None]:
    """Return the index of the query's class, and its box x1,y1,x2,y2; None where it has none. Raises Refusal (400)."""
    name, box = request.query_params.get("class"), request.query_params.get("box")
    try:
        corners = None if box is None else tuple(float(value) for value in box.split(","))
        if corners is not None and (len(corners) != 4 or not all(map(math.isfinite, corners))):
            raise ValueError
        return None if name is None else class_names.index(name), corners
    except ValueError:
        raise Refusal(400, "class: one of the model's; box: x1,y1,x2,y2 in pixels") from None
