"""The server itself: uvicorn, told to close silent connections, to end in peace and to log no request."""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Protocol

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from convzoo.errors import UsageError
from convzoo.logs import log
from convzoo.serve.app import Service, build
from convzoo.serve.gate import LOOPBACK
from convzoo.serve.limits import Limits
from convzoo.serve.metrics import Metrics
from convzoo.serve.models import Models, Opening

KEEP_ALIVE_S = 75  # for which a connection may stay open between two requests
DESCRIPTORS = 8192  # files and connections that may be open at once, where the system lets us


def serve(
    paths: list[Path],
    opening: Opening,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    token: str | None = None,
    replaceable: bool = False,
) -> None:
    """Serve model files until SIGTERM or SIGINT; what was asked before is answered.

    Args:
        port: 0 for one that is free; the log says which.
        token: that requests must bear.
        replaceable: let `POST /models/NAME` open a model's file again.
    Raises:
        UsageError: the address is taken or not ours, or two models have one name.
        UsageError, ConvzooError, MissingPackageError: a model does not open.
    """
    limits, metrics = limits or Limits(), Metrics()
    listener = listen(host, port)
    with listener:
        models = Models(paths, opening, limits, metrics)
        service = Service(models, limits, metrics, replaceable)
        address = f"[{host}]" if ":" in host else host
        hosts = LOOPBACK | {host} if host in LOOPBACK else None
        url = f"http://{address}:{listener.getsockname()[1]}"
        for model in models:
            log.info(f"{model.opened.path}: POST {url}/predict/{model.name}")
        if hosts is None and token is None:
            log.warning(f"{host}: everybody who reaches this address may ask; a token would keep them out")
        log.info(f"serving {len(list(models))} models; their page is {url}/")
        Server(service, build(service, hosts, token), limits).run([listener])
    log.info("served; every request that came was answered")


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises UsageError."""
    with contextlib.suppress(ValueError, OSError):  # a thousand silent connections are a thousand descriptors
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=1024)
        # asyncio sets this only for sockets that name their protocol, which Python's do not; connections inherit it.
        # Without it an answer's body waits until its head is acknowledged, 40 ms on a connection that is used again.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise UsageError(f"{host}:{port}: cannot listen there: {error.strerror}", ("host", "port")) from None


class Drainable(Protocol):
    """What is served, and is told when the server ends."""

    draining: bool


class Server(uvicorn.Server):
    """uvicorn without its own log; SIGTERM and SIGINT end it once every request has its answer."""

    def __init__(self, service: Drainable, app: ASGIApp, limits: Limits):
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it would log each request that is none
        config = uvicorn.Config(
            app,
            http=_protocol(limits.head_seconds),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(limits.seconds) + 5,
        )
        super().__init__(config)
        self._service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals while the server runs, and give none of them on: a drained server has succeeded."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.draining = True
        super().handle_exit(sig, frame)


def _protocol(head_seconds: float) -> type[H11Protocol]:
    """Return uvicorn's protocol for a limit on the time that the head of a request may take."""

    class HeadInTime(H11Protocol):
        """Close a connection whose head is not whole in time, counted from when it opens or begins to send one."""

        late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._watch(True)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch(bool(data) and self.conn.their_state is h11.IDLE)

        def on_response_complete(self) -> None:
            super().on_response_complete()  # which also begins with a request that came early
            self._watch(self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0]))

        def connection_lost(self, exc: Exception | None) -> None:
            self._watch(False)
            super().connection_lost(exc)

        def _watch(self, waits: bool) -> None:
            if not waits and self.late is not None:
                self.late.cancel()
                self.late = None
            elif waits and self.late is None:
                self.late = self.loop.call_later(head_seconds, self.transport.abort)

    return HeadInTime
