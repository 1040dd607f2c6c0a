"""Clients that ask a server the same again and again, at next to no cost: threads, sockets, and nothing beyond Python.

    python -S serve_clients.py PORT REQUEST [--clients 8] [--seconds 5]

REQUEST is a file with a whole HTTP request, which each client sends on its own connection once its last answer is
there. Prints one JSON object: how many were answered, in how long, the seconds that each took (after the first two of a
client), and this program's own CPU time, which is no part of what a server costs.
"""

import argparse
import json
import re
import socket
import threading
import time
from pathlib import Path

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.I)
WARM_UP = 2  # requests of each client that are not counted


class Client(threading.Thread):
    """One connection; `seconds` has what each counted request took."""

    def __init__(self, port: int, request: bytes, start: threading.Barrier, duration: float):
        super().__init__(daemon=True)
        self.request, self.start_together, self.duration = request, start, duration
        self.seconds: list[float] = []
        self.error = ""
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray(1 << 20)

    def run(self) -> None:
        try:
            for _ in range(WARM_UP):
                self.ask()
            self.start_together.wait()
            end = time.perf_counter() + self.duration
            while not self.seconds or time.perf_counter() < end:
                started = time.perf_counter()
                self.ask()
                self.seconds.append(time.perf_counter() - started)
        except (OSError, ValueError, threading.BrokenBarrierError) as error:
            self.error = f"{type(error).__name__}: {error}"
            self.start_together.abort()

    def ask(self) -> None:
        """Send the request and read its answer to the end. Raises ValueError for one that is not 200."""
        self.connection.sendall(self.request)
        view, size, whole = memoryview(self.buffer), 0, None
        while whole is None or size < whole:
            count = self.connection.recv_into(view[size:])
            if not count:
                raise ValueError("the connection was closed")
            size += count
            head = self.buffer.find(b"\r\n\r\n", 0, size) if whole is None else -1
            if head >= 0:
                length = LENGTH.search(self.buffer, 0, head + 2)
                if not self.buffer.startswith(b"HTTP/1.1 200 ") or length is None:
                    raise ValueError(bytes(self.buffer[:300]))
                whole = head + 4 + int(length[1])


def load(port: int, request: bytes, clients: int, seconds: float) -> dict[str, object]:
    """Let all clients ask for so long. Raises SystemExit where one is not answered."""
    begun: list[tuple[float, float]] = []
    barrier = threading.Barrier(clients, lambda: begun.append((time.perf_counter(), time.process_time())))
    threads = [Client(port, request, barrier, seconds) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended, cpu = time.perf_counter(), time.process_time()
    errors = [thread.error for thread in threads if thread.error]
    if errors:
        raise SystemExit(errors[0])
    return {
        "answered": sum(len(thread.seconds) for thread in threads),
        "elapsed_s": ended - begun[0][0],
        "cpu_s": cpu - begun[0][1],
        "seconds": [value for thread in threads for value in thread.seconds],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("request", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    print(json.dumps(load(arguments.port, arguments.request.read_bytes(), arguments.clients, arguments.seconds)))


if __name__ == "__main__":
    main()
