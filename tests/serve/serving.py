"""A server in this process, on a thread of its own, and requests to it by hand."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from convzoo.model_file import load_model, save_model
from convzoo.serve.app import Service, build
from convzoo.serve.limits import Limits
from convzoo.serve.metrics import Metrics
from convzoo.serve.models import Models, Opening
from convzoo.serve.server import Server, listen
from networks import SMALL_YOLO, write_model


def write_detector(folder: Path, class_names: list[str] | None = None) -> Path:
    """Write a small detector of random weights as boxes.safetensors."""
    path = write_model(folder, "yolov3-digits", SMALL_YOLO)
    weights, info, _ = load_model(path)
    boxes = folder / "boxes.safetensors"
    save_model(boxes, weights, info.model_copy(update={"class_names": class_names or info.class_names}))
    return boxes


class Running:
    """A server that runs: its service, its port, and requests to it."""

    def __init__(self, paths: list[Path], limits: Limits | None = None, **options: Any):
        self.limits, metrics = limits or Limits(), Metrics()
        models = Models(paths, Opening(torch.device("cpu")), self.limits, metrics)
        self.service = Service(models, self.limits, metrics, options.pop("replaceable", False))
        self.listener = listen("127.0.0.1", 0)
        self.port: int = self.listener.getsockname()[1]
        self.server = Server(self.service, build(self.service, **options), self.limits)
        self._loops: list[asyncio.AbstractEventLoop] = []
        self._thread = threading.Thread(target=asyncio.run, args=[self._run()])

    async def _run(self) -> None:
        self._loops.append(asyncio.get_running_loop())
        await self.server.serve([self.listener])

    def __enter__(self) -> "Running":
        self._thread.start()
        until(lambda: self.server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> "Answer":
        """Ask over a new connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())

    def predict(self, name: str, content: bytes, query: str = "") -> Any:
        answer = self.ask("POST", f"/predict/{name}{query}", content)
        assert answer.status == 200, answer.content
        return answer.json

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def waiting(self, name: str) -> int:
        return self.service.models.get(name).waiting

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Keep the model's thread busy meanwhile: what is asked of it waits."""
        go = threading.Event()
        busy = threading.Event()
        batcher = self.service.models.get(name).batcher
        future = asyncio.run_coroutine_threadsafe(batcher.alone(lambda: (busy.set(), go.wait(20))), self._loops[0])
        assert busy.wait(20)
        try:
            yield
        finally:
            go.set()
            future.result(20)


class Answer:
    """An HTTP response."""

    def __init__(self, status: int, headers: dict[str, str], content: bytes):
        self.status, self.content = status, content
        self.headers = {name.lower(): value for name, value in headers.items()}

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> str:
        return self.json["error"]


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something holds; fail where it does not in time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def form(files: list[tuple[str, bytes]], field: str = "file") -> tuple[bytes, dict[str, str]]:
    """Return the body and headers of a multipart form."""
    parts = [
        f'--limit\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode() + content
        for name, content in files
    ]
    return b"\r\n".join([*parts, b"--limit--\r\n"]), {"Content-Type": "multipart/form-data; boundary=limit"}
