"""An S3 server on the loopback, with a proxy before it that loses, delays and cuts what it is told to."""

import contextlib
import http.client
import http.server
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from moto.server import ThreadedMotoServer

KEY, SECRET = "AKIAEXAMPLEKEYID", "verySecretAccessKeyOfATest"
Matches = Callable[[str, str], bool]  # of the method and path of a request


@dataclass
class Fault:
    """What happens to the next so many requests that match: a status such as "503", "stall" (seconds), "cut" (half of
    the body), "gone" (no answer)."""

    kind: str
    matches: Matches = lambda method, path: True
    times: int = 1
    seconds: float = 0.0


@dataclass
class ObjectStore:
    """The server: `url` is the proxy's; `requests` are those that came, `faults` what is still to go wrong."""

    url: str
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    fs: Any = None

    def fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.matches(method, path):
                fault.times -= 1
                return fault
        return None

    @property
    def options(self) -> dict:
        """What fsspec needs to know: FSSPEC_S3, or fsspec.config.conf["s3"]."""
        config = {"read_timeout": 2, "s3": {"addressing_style": "path"}}
        return {"endpoint_url": self.url, "key": KEY, "secret": SECRET, "config_kwargs": config}

    @property
    def written(self) -> list[str]:
        """The objects that were written, in their order, copies included."""
        return [path.partition("?")[0].lstrip("/") for method, path in self.requests if method == "PUT"]


def serve() -> tuple[ObjectStore, Callable[[], None]]:
    """Start both; return the store and what stops it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    _, port = moto.get_host_and_port()
    store = ObjectStore("")

    class Proxy(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            store.requests.append((self.command, self.path))
            fault = store.fault(self.command, self.path)
            if fault and fault.kind == "gone":
                self.close_connection = True
                return
            if fault and fault.kind.isdigit():
                self.send_response(int(fault.kind))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fault and fault.kind == "stall":
                time.sleep(fault.seconds)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            data = response.read()
            self.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                    self.send_header(name, value)
            known = response.getheader("Content-Length")
            self.send_header("Content-Length", known if self.command == "HEAD" and known else str(len(data)))
            self.end_headers()
            if fault and fault.kind == "cut":
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError):  # the client gave up
                super().handle()

    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    store.url = f"http://127.0.0.1:{proxy.server_port}"

    def stop() -> None:
        proxy.shutdown()
        moto.stop()

    return store, stop
