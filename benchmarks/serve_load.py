"""What HTTP costs: a server under 8 clients against its bare runner, and one client against one process.

    OMP_NUM_THREADS=1 python benchmarks/serve_load.py MODEL PICTURE [--clients 8] [--seconds 5] [--rounds 3] [--soak 0]

Prints one JSON object. `throughput`: binary tensors over the Open Inference Protocol, pictures/s, against the runner
alone in this process at the mean batch that the server formed. `latency`: median of one client that posts the picture
file, against decoding, preprocessing and running it in this process. Both sides take turns, round after round.
`--soak` asks for that many seconds more and reports the server's memory at each tenth of them.
"""

import argparse
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from convzoo.data.decode import decode_rgb
from convzoo.deploy.exported import open_any
from convzoo.inference.loaded import LoadedModel
from convzoo.serve.protocol import JSON_LENGTH
from convzoo.types import Key, Runner, Sample

CPU = torch.device("cpu")


class Client:
    """One connection that asks the same again and again."""

    def __init__(self, port: int, path: str, body: bytes, headers: dict[str, str]):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.question = ("POST", path, body, headers)

    def __call__(self) -> None:
        self.connection.request(*self.question)
        response = self.connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise SystemExit(f"{response.status}: {content[:200]!r}")


@contextmanager
def server(model: Path) -> Iterator[tuple[int, int]]:
    """Give port and process id of a server in a process of its own."""
    command = [sys.executable, "-m", "convzoo", "serve", str(model), "--port", "0", "--queue", "64"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            port = re.search(r"^serving .*:(\d+)", line)
            if port:
                yield int(port[1]), process.pid
                break
        else:
            raise SystemExit("the server did not start")
    finally:
        process.send_signal(signal.SIGTERM)
        if process.wait(60) != 0:
            raise SystemExit("the server did not end well")


def batches(port: int) -> tuple[float, float]:
    """Return how many pictures and how many batches the server has run."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    totals = [re.search(rf"^convzoo_batch_pictures_{name}\S* (\S+)$", text, re.M) for name in ("sum", "count")]
    return float(totals[0][1]) if totals[0] else 0.0, float(totals[1][1]) if totals[1] else 0.0


def times(call: Callable[[], object], seconds: float) -> list[float]:
    """Return what each call took, for so long; the first two do not count."""
    for _ in range(2):
        call()
    durations, end = [], time.perf_counter() + seconds
    while not durations or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        durations.append(time.perf_counter() - started)
    return durations


def loaded_throughput(clients: list[Client], seconds: float) -> float:
    """Return the pictures a second that all clients together get answered."""
    counts, end = [0] * len(clients), time.perf_counter() + seconds

    def work(i: int) -> None:
        while time.perf_counter() < end:
            clients[i]()
            counts[i] += 1

    started = time.perf_counter()
    threads = [threading.Thread(target=work, args=[i]) for i in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def tensor_client(port: int, name: str, images: np.ndarray) -> Client:
    """Return a client that sends pictures as bytes and wants the outputs as bytes."""
    datatype = "FP32" if images.dtype == np.float32 else "UINT8"
    parameters = {"binary_data_size": images.nbytes}
    tensor = {"name": "images", "datatype": datatype, "shape": list(images.shape), "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {JSON_LENGTH: str(len(head))}
    return Client(port, f"/v2/models/{name}/infer", head + images.tobytes(), headers)


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def in_process(opened: LoadedModel, runner: Runner, content: bytes) -> None:
    """Decode, preprocess and run a picture, and say what it shows."""
    image = decode_rgb(content, "picture")
    sample = Sample(image, 0, 0, "picture", (image.shape[1], image.shape[2]))
    task = opened.task()
    batch = task.collate([opened.pipeline()(sample, Key(0, 0))])
    task.postprocess(runner(batch.images), batch)


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run all rounds and return what they gave."""
    opened = open_any(arguments.model, CPU)
    runner, content = opened.runner(), arguments.picture.read_bytes()
    image = decode_rgb(content, "picture")
    pipeline = opened.pipeline()
    input_ = pipeline(Sample(image, 0, 0, "", (image.shape[1], image.shape[2])), Key(0, 0)).image[None].numpy()
    wire = input_.transpose(0, 2, 3, 1) if runner.input == "uint8_nhwc" else input_.astype(np.float32)
    bare, served, local, remote = [], [], [], []
    with server(arguments.model) as (port, pid):
        name = arguments.model.stem
        clients = [tensor_client(port, name, np.ascontiguousarray(wire)) for _ in range(arguments.clients)]
        poster = Client(port, f"/predict/{name}", content, {})
        loaded_throughput(clients, 1)
        before = batches(port)
        served_first = loaded_throughput(clients, arguments.seconds)
        after = batches(port)
        formed = (after[0] - before[0]) / (after[1] - before[1])
        stacked = torch.from_numpy(np.repeat(input_ if runner.input == "uint8_nhwc" else wire, round(formed), 0))
        served.append(served_first)
        for _ in range(arguments.rounds):
            bare.append(len(stacked) / statistics.median(times(lambda: runner(stacked), arguments.seconds)))
            served.append(loaded_throughput(clients, arguments.seconds))
            local += times(lambda: in_process(opened, runner, content), arguments.seconds / 2)
            remote += times(poster, arguments.seconds / 2)
        memory = []
        for _ in range(10 if arguments.soak else 0):
            loaded_throughput([*clients, poster], arguments.soak / 10)
            memory.append(resident_mb(pid))
    medians = {key: statistics.median(values) for key, values in (("bare", bare), ("served", served))}
    one = {key: 1000 * statistics.median(values) for key, values in (("process", local), ("client", remote))}
    return {
        "model": str(arguments.model),
        "threads": torch.get_num_threads(),
        "clients": arguments.clients,
        "batch": round(formed, 2),
        "throughput": {**{key: round(value, 1) for key, value in medians.items()}},
        "throughput_ratio": round(medians["served"] / medians["bare"], 3),
        "latency_ms": {key: round(value, 2) for key, value in one.items()},
        "latency_ratio": round(one["client"] / one["process"], 3),
        "soak_mb": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak", type=float, default=0.0)
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
