"""What HTTP costs: a server under 8 clients against its bare runner, and one client against one process.

    OMP_NUM_THREADS=1 python benchmarks/serve_load.py MODEL PICTURES [--clients 8] [--seconds 4] [--rounds 7]
    OMP_NUM_THREADS=1 python benchmarks/serve_load.py MODEL PICTURES --soak 10

PICTURES is a picture, or a folder whose first it takes. Prints one JSON object.

`throughput`, pictures/s: binary tensors over the Open Inference Protocol, against the runner alone, in this process, at
the batch that the server formed. `latency`, ms: the median of one client that posts the picture file, against decoding,
preprocessing, running and answering in this process. Both sides take turns in short rounds, and each ratio is the
median over the rounds. `cpu_ms` is CPU time per request of server and clients, which other work on the machine does
not change as it does the rest. The clients have a process of their own (serve_clients.py), held to one core where there
are several, and this process to another; the server takes what it needs.

`--soak` asks for that many minutes instead, tensors and picture files in turn, and reports the server's resident memory
(`rss_bytes`, 21 times) and three times the least that a third of the time added (`growth_bytes`): a leak adds in every
third, a batch that is larger than all before in one.
"""

import argparse
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import torch

from convzoo.data.decode import decode_rgb
from convzoo.deploy.exported import open_any
from convzoo.inference.loaded import LoadedModel
from convzoo.inference.predict import MIN_SCORE, answer
from convzoo.serve.protocol import JSON_LENGTH
from convzoo.types import Key, Runner, Sample

CPU = torch.device("cpu")
CLIENTS = Path(__file__).with_name("serve_clients.py")
SAMPLES = 21  # of the memory, in a soak
PICTURES = ("*.JPEG", "*.jpg", "*.png")


@dataclass
class Server:
    """A server in a process of its own."""

    port: int
    pid: int

    @property
    def cpu_s(self) -> float:
        """Return the CPU time that it has taken."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def batches(self) -> tuple[float, float]:
        """Return how many pictures and how many batches it has run."""
        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=60) as response:
            text = response.read().decode()
        totals = [re.search(rf"^convzoo_batch_pictures_{name}\S* (\S+)$", text, re.M) for name in ("sum", "count")]
        return float(totals[0][1]) if totals[0] else 0.0, float(totals[1][1]) if totals[1] else 0.0

    def load(self, request: Path, clients: int, seconds: float) -> dict[str, Any]:
        """Let clients ask for so long; what `serve_clients.load` says, the server's CPU time and the mean batch."""
        before, cpu_before = self.batches(), self.cpu_s
        command = [sys.executable, "-S", CLIENTS, str(self.port), request, "--clients", str(clients)]
        done = subprocess.run(
            [*map(str, command), "--seconds", str(seconds)],
            check=True,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: pin(-1),
        )
        loaded, after, cpu_after = json.loads(done.stdout), self.batches(), self.cpu_s
        asked = after[0] - before[0]
        return {
            **loaded,
            "server_cpu_ms": 1000 * (cpu_after - cpu_before) / asked,
            "batch": asked / (after[1] - before[1]),
        }


@contextmanager
def server(model: Path) -> Iterator[Server]:
    """Start a server and end it."""
    command = [sys.executable, "-m", "convzoo", "serve", str(model), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            port = re.search(r"^serving .*:(\d+)/$", line)
            if port:
                yield Server(int(port[1]), process.pid)
                break
        else:
            raise SystemExit("the server did not start")
    finally:
        process.send_signal(signal.SIGTERM)
        if process.wait(60) != 0:
            raise SystemExit("the server did not end well")


def pin(core: int) -> None:
    """Hold this process to the first (0) or last (-1) of its cores, where there are several."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})


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


class Bare:
    """The model in this process, without a server: its runner alone, and a picture's whole way."""

    def __init__(self, path: Path, picture: Path):
        self.opened: LoadedModel = open_any(path, CPU)
        self.runner: Runner = self.opened.runner()
        self.task, self.pipeline = self.opened.task(), self.opened.pipeline()
        self.content = picture.read_bytes()
        pixels = self._sample().image[None].contiguous()
        # The server's protocol has uint8 pixels where preprocessing is in the file, else floats as they are normalised.
        self.input = pixels if self.runner.input == "uint8_nhwc" else pixels.float()

    def _sample(self) -> Sample:
        image = decode_rgb(self.content, "picture")
        return self.pipeline(Sample(image, 0, 0, "picture", (image.shape[1], image.shape[2])), Key(0, 0))

    def whole(self) -> str:
        """Decode, preprocess and run the picture, and say what it shows."""
        batch = self.task.collate([self._sample()])
        prediction = self.task.postprocess(self.runner(batch.images), batch)[0]
        height, width = batch.original_hw[0].tolist()
        size_only = np.broadcast_to(np.uint8(0), (height, width, 3))
        return json.dumps(answer("picture", size_only, prediction, self.opened.class_names, MIN_SCORE).row())

    def throughput(self, batch: int, seconds: float) -> tuple[float, float]:
        """Return the pictures a second that the runner takes in batches of that size, and its CPU time for one, ms."""
        stacked = self.input.repeat(batch, 1, 1, 1)
        taken = times(lambda: self.runner(stacked), seconds)
        started, calls = time.process_time(), 3
        for _ in range(calls):
            self.runner(stacked)
        return batch / statistics.median(taken), 1000 * (time.process_time() - started) / (calls * batch)

    def requests(self, name: str, folder: Path) -> tuple[Path, Path]:
        """Write two requests, the picture as a tensor in bytes and as the file that it is."""
        wire = self.input.numpy().transpose(0, 2, 3, 1) if self.runner.input == "uint8_nhwc" else self.input.numpy()
        body = np.ascontiguousarray(wire).tobytes()
        datatype = "FP32" if wire.dtype == np.float32 else "UINT8"
        parameters = {"binary_data_size": len(body)}
        tensor = {"name": "images", "datatype": datatype, "shape": list(wire.shape), "parameters": parameters}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        inferred = http_request(f"/v2/models/{name}/infer", head + body, {JSON_LENGTH: str(len(head))})
        paths = folder / "tensor", folder / "picture"
        for path, content in zip(paths, (inferred, http_request(f"/predict/{name}", self.content)), strict=True):
            path.write_bytes(content)
        return paths


def http_request(path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """Return a request as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def compare(bare: Bare, served: Server, tensor: Path, picture: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds and return what they gave."""
    seconds, rounds = arguments.seconds, []
    served.load(picture, 1, 1)
    formed = served.load(tensor, arguments.clients, seconds)["batch"]
    for i in range(arguments.rounds):
        load = served.load(tensor, arguments.clients, seconds)
        alone = served.load(picture, 1, seconds / 2)
        bare_speed, bare_cpu_ms = bare.throughput(max(1, round(formed)), seconds / 2)
        whole_s = statistics.median(times(bare.whole, seconds / 2))
        rounds.append(
            {
                "served": load["answered"] / load["elapsed_s"],
                "bare": bare_speed,
                "client_ms": 1000 * statistics.median(alone["seconds"]),
                "process_ms": 1000 * whole_s,
                "batch": load["batch"],
                "bare_cpu_ms": bare_cpu_ms,
                "server_cpu_ms": load["server_cpu_ms"],
                "clients_cpu_ms": 1000 * load["cpu_s"] / load["answered"],
                "picture_cpu_ms": alone["server_cpu_ms"],
            }
        )
        formed = load["batch"]
        print(
            f"round {i + 1}: {json.dumps({key: round(value, 2) for key, value in rounds[-1].items()})}", file=sys.stderr
        )
    middle = {key: round(statistics.median(one[key] for one in rounds), 3) for key in rounds[0]}
    ratios = {
        "throughput_ratio": [one["served"] / one["bare"] for one in rounds],
        "latency_ratio": [one["client_ms"] / one["process_ms"] for one in rounds],
    }
    return {
        "rounds": len(rounds),
        "batch": middle["batch"],
        "throughput": {key: middle[key] for key in ("served", "bare")},
        **{key: round(statistics.median(values), 3) for key, values in ratios.items()},
        "latency_ms": {"client": middle["client_ms"], "process": middle["process_ms"]},
        "cpu_ms": {key: middle[f"{key}_cpu_ms"] for key in ("bare", "server", "clients", "picture")},
        "each": {key: [round(value, 3) for value in values] for key, values in ratios.items()},
    }


def soak(served: Server, tensor: Path, picture: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Ask for minutes and return the server's memory."""
    memory, answered = [], 0
    for _ in range(SAMPLES):
        for request in (tensor, picture):
            answered += served.load(request, arguments.clients, 60 * arguments.soak / (2 * SAMPLES))["answered"]
        memory.append(served.rss_bytes)
        print(f"{memory[-1] / 1e6:.1f} MB after {answered} requests", file=sys.stderr)
    thirds = memory[0], memory[SAMPLES // 3], memory[2 * SAMPLES // 3], memory[-1]
    growth = 3 * min(later - earlier for earlier, later in itertools.pairwise(thirds))
    about = {"minutes": arguments.soak, "answered": answered, "rss_bytes": memory}
    return {**about, "last_rss_bytes": memory[-1], "growth_bytes": growth}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start the server and measure; the order of rounds is the same on every machine."""
    found = sorted(path for form in PICTURES for path in arguments.pictures.rglob(form))
    picture = found[0] if found else arguments.pictures
    bare = Bare(arguments.model, picture)
    about = {"model": arguments.model.name, "runner": bare.runner.name, "picture": picture.name}
    about |= {"threads": torch.get_num_threads(), "cores": len(os.sched_getaffinity(0)), "clients": arguments.clients}
    with tempfile.TemporaryDirectory() as folder, server(arguments.model) as served:
        pin(0)
        requests = bare.requests(arguments.model.stem, Path(folder))
        if arguments.soak:
            return {**about, "soak": soak(served, *requests, arguments)}
        return {**about, **compare(bare, served, *requests, arguments)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
