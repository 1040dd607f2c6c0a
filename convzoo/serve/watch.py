"""The pages of runs while they go on: made of what lies in their folders whenever somebody looks."""

import threading
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from convzoo.logs import log
from convzoo.serve.limits import Limits
from convzoo.serve.server import Server, listen
from convzoo.training.run_report import Report

HOST, NAMES = "127.0.0.1", ["127.0.0.1", "localhost"]  # a page elsewhere cannot reach it by a name of its own


class Watched:
    """The page of some runs, made again only when something new is there."""

    def __init__(self, report: Report):
        self.draining = False
        self._report, self._lock = report, threading.Lock()
        self._page, self._of_version = "", ""

    def page(self) -> str:
        with self._lock:
            version = self._report.version()
            if version != self._of_version:
                self._page, self._of_version = self._report.page(live=True), version
            return self._page

    def app(self) -> Starlette:
        """Return the application: the page, and the version by which it knows that there is something new."""

        async def page(request: Request) -> Response:
            return HTMLResponse(await run_in_threadpool(self.page), headers={"Cache-Control": "no-store"})

        async def version(request: Request) -> Response:
            return PlainTextResponse(self._report.version(), headers={"Cache-Control": "no-store"})

        routes = [Route("/", page), Route("/version", version)]
        return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=NAMES)])


def watch(runs: list[Path], port: int, data: Path | None = None) -> None:
    """Serve the page of runs on this machine alone until SIGTERM or SIGINT.

    Args:
        port: 0 for one that is free; the log says which.
        data: where the validation pictures are now; None for where they were.
    Raises:
        UsageError: a folder that is no run's, or the port is taken.
    """
    watched = Watched(Report(runs, data))
    with listen(HOST, port) as listener:
        log.info(f"watching {', '.join(map(str, runs))}: http://{HOST}:{listener.getsockname()[1]}/")
        Server(watched, watched.app(), Limits()).run([listener])
