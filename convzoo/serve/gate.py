"""What every request passes: its host, origin and token on the way in, headers and the count on the way out."""

import hmac
import time
import traceback
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from convzoo.logs import log
from convzoo.serve.limits import Refusal
from convzoo.serve.metrics import Metrics

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
OPEN = ("/static/", "/v2/health/")  # and the page itself: what needs no token
# The page loads nothing from anywhere else, and nobody else's page holds it or reads from it.
SECURITY = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    b"connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"permissions-policy": b"camera=(self), microphone=(), geolocation=()",
}


class Gate:
    """An ASGI application around the server's own.

    Args:
        hosts: that requests may name, None for any: a page elsewhere cannot reach a server on the loopback by giving it
            a name of its own.
        token: that requests must bear, None for none.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, hosts: set[str] | None = None, token: str | None = None):
        self.app, self._metrics, self._hosts, self._token = app, metrics, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started, status = time.perf_counter(), 0

        async def passed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [pair for pair in message["headers"] if pair[0].lower() not in SECURITY]
                message = {**message, "headers": [*headers, *SECURITY.items()]}
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, receive, passed)
        except Refusal as error:
            await refused(error)(scope, receive, passed)
        except Exception as error:
            status = 500
            place = traceback.extract_tb(error.__traceback__)[-1]  # and not the message, which may quote the request
            log.error(f"serve: {type(error).__name__} in {place.filename}:{place.lineno}")
        finally:
            self._count(scope, status, time.perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        """Raise Refusal: 421 another host's name, 403 another site's page, 401 no token."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts is not None and _hostname(host) not in self._hosts:
            raise Refusal(421, "this server is not of that name")
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin is not None and urlsplit(origin).netloc != host:
            raise Refusal(403, "a page of another site may not ask")
        if self._token is None or scope["path"] == "/" or scope["path"].startswith(OPEN):
            return
        scheme, _, credential = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(credential.strip().encode(), self._token.encode()):
            raise Refusal(401, "a token is needed: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        endpoint = getattr(scope.get("endpoint"), "__name__", "none")
        model = scope.get("model", "")  # of a known name: labels that anybody may invent would grow without end
        self._metrics.add("convzoo_requests_total", endpoint=endpoint, model=model, status=str(status))
        self._metrics.observe("convzoo_request_seconds", seconds, endpoint=endpoint, model=model)


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def refused(error: Refusal) -> JSONResponse:
    """Return the answer to a request that gets none, as the protocol has it."""
    return said(str(error), error.status, error.headers)


def said(message: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)
