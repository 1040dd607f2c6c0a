"""How far a recipe scales, computed from what one device takes: writes docs/scale.md's tables and its figure.

    python benchmarks/scale.py --write                 # from benchmarks/scale.json and the constants below
    python benchmarks/scale.py --measure               # first measures this machine into that file, in about 5 minutes
    python benchmarks/scale.py --measure --only check  # of it the 1 and 2 gloo ranks alone

A step of a batch B on n devices takes compute(B / n) = fixed + seconds a picture * B / n, and an all-reduce of the
gradients in a ring: 2 (n - 1) / n of their bytes through the slowest link, and 2 (n - 1) latencies for each of DDP's
buckets. The backward pass hides it, and is two thirds of the compute. Nothing else is counted.
"""

import argparse
import importlib
import json
import math
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as td
from torch.utils.flop_counter import FlopCounterMode

from convzoo.build import build_pipeline, given_size
from convzoo.config import recipe as recipes
from convzoo.config import registry
from convzoo.data.decode import decode_rgb
from convzoo.environment import environment
from convzoo.plain import JsonObject
from convzoo.report.tables import table

ROOT = Path(__file__).resolve().parents[1]
MEASURED, DOCUMENT, FIGURE = ROOT / "benchmarks/scale.json", ROOT / "docs/scale.md", ROOT / "docs/images/scale.png"
BLOCK = re.compile(r"(<!-- scale: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
NAMES = [f"{model}-imagenet" for model in ("vgg16", "densenet121", "darknet53", "tinydarknet")]
NAMES += ["yolov3-coco", "yolov3-tiny-coco", "vgg16-cifar10", "densenet100-cifar10", "tinydarknet-cifar10"]
# Training pictures, and bytes of a picture as published: ILSVRC2012_img_train.tar and train2017.zip over their counts.
DATA = {"imagenet": (1_281_167, 147_897_477_120 / 1_281_167), "coco": (117_266, 19_336_861_798 / 118_287)}
DATA["cifar10"] = (50_000, 0)  # lies in memory
BACKWARD, BUCKET_BYTES, GRADIENT_BYTES = 2 / 3, 25 * 2**20, 4
COUNTS = [2**k for k in range(11)]
SHOWN = [1, 8, 64, 256, 1024]
PER_NODE = 8
LINK_IN_NODE = (300e9, 3e-6)  # bytes/s and seconds of latency between the devices of a node
NETWORKS = {"10 Gb/s": (1.25e9, 30e-6), "100 Gb/s": (12.5e9, 10e-6), "3,200 Gb/s": (400e9, 5e-6)}  # of a node
STORE_BYTES_S = 3.125e9  # 25 Gb/s, what an object store gives a node
PAYS = 0.5  # of n times one device's speed
TFLOPS, FIXED_S = 100, 5e-3  # what the assumed accelerator sustains, and a step of no pictures takes
CHECKED = ("vgg16-digits", 32, 16)  # recipe, batch, steps
SIZES = (4 << 10, 1 << 20, 16 << 20, 64 << 20)  # bytes of the all-reduces that are timed


@dataclass(frozen=True)
class Work:
    """What a recipe gives a device to do."""

    name: str
    batch: int
    epochs: int
    pictures: int
    picture_bytes: float
    parameters: int
    flops: int  # of a picture, forward and backward: three times forward, a multiplication and an addition as two

    @property
    def gradient_bytes(self) -> int:
        return GRADIENT_BYTES * self.parameters


@dataclass(frozen=True)
class Device:
    """How long a device takes for a step: fixed_s, and seconds a picture by recipe; and how many are in a node."""

    name: str
    fixed_s: float
    picture_s: Callable[[Work], float]
    per_node: int

    def compute_s(self, work: Work, batch: float) -> float:
        return self.fixed_s + batch * self.picture_s(work)


def all_reduce_s(count: int, size: float, bandwidth: float, latency_s: float) -> float:
    """Return the seconds of an all-reduce of `size` bytes in a ring (Patarasuk and Yuan 2009, section 3)."""
    buckets = max(1, math.ceil(size / BUCKET_BYTES))
    return 2 * (count - 1) / count * size / bandwidth + 2 * (count - 1) * latency_s * buckets


def step_s(work: Work, device: Device, count: int, network: tuple[float, float], batch: int) -> tuple[float, float]:
    """Return the seconds of a step, and those of it in which gradients travel and nothing is computed."""
    link = LINK_IN_NODE if count <= device.per_node else network
    compute = device.compute_s(work, batch / count)
    exposed = max(0.0, all_reduce_s(count, work.gradient_bytes, *link) - BACKWARD * compute)
    return compute + exposed, exposed


def efficiency(work: Work, device: Device, count: int, network: tuple[float, float], batch: int) -> float:
    """Return the pictures a second of n devices over n times those of one that computes batches of its own."""
    alone = device.compute_s(work, work.batch) / work.batch
    return alone * batch / (step_s(work, device, count, network, batch)[0] * count)


def last_that_pays(work: Work, device: Device, network: tuple[float, float], grows: bool = False) -> int:
    """Return the largest count that divides the batch and is at least PAYS as efficient as one device."""
    shares = [n for n in COUNTS if grows or work.batch % n == 0]
    return max(n for n in shares if n == 1 or efficiency(work, device, n, network, batch_of(work, n, grows)) >= PAYS)


def batch_of(work: Work, count: int, grows: bool) -> int:
    """Return the recipe's own batch, or one that grows with the devices beyond a node of them."""
    return work.batch * max(1, count // PER_NODE) if grows else work.batch


def work_of(name: str) -> Work:
    """Count a recipe's parameters and operations, at the size that its evaluation has."""
    recipe = recipes.load(name)
    height, width = given_size(build_pipeline(recipe, "eval")) or (32, 32)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():  # counted, not computed
        model = registry.bind("model", recipe.model)().eval()
        model(torch.zeros(1, 3, height, width))
    pictures, picture_bytes = DATA[name.rpartition("-")[2]]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    train = recipe.train
    flops = 3 * counter.get_total_flops()
    return Work(name, train.batch_size, train.epochs, pictures, picture_bytes, parameters, flops)


def assumed() -> Device:
    return Device(f"{TFLOPS} TFLOP/s", FIXED_S, lambda work: work.flops / (TFLOPS * 1e12), PER_NODE)


# --- what is measured


def measure(only: str | None) -> JsonObject:
    """Measure this machine: steps of each recipe, pictures, gloo, and a run of 1 and of 2 ranks."""
    parts = {"steps": _steps, "pictures": _pictures, "gloo": _gloo, "check": _check}
    facts = environment(torch.device("cpu"))
    before = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    new = {name: part() for name, part in parts.items() if only in (None, name)}
    keys = ("device_name", "cpu_cores", "torch", "commit")
    return {**before, **new, "machine": {key: facts[key] for key in keys}, "date": time.strftime("%F")}


def _steps() -> dict[str, list[list[float]]]:
    """Return (pictures, seconds) of training steps at two batches; noise in place of pictures, no loss of a task."""
    seconds: dict[str, list[list[float]]] = {}
    for name in NAMES:
        recipe = recipes.load(name)
        height, width = given_size(build_pipeline(recipe, "eval")) or (32, 32)
        model = registry.bind("model", recipe.model)().train().to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
        for batch in (4, 8) if height > 32 else (32, 64):
            images = torch.randn(batch, 3, height, width).contiguous(memory_format=torch.channels_last)
            times = []
            for _ in range(4):
                started = time.perf_counter()
                optimizer.zero_grad()
                outputs = model(images)
                losses = [out.square().mean() for out in (outputs if isinstance(outputs, tuple | list) else [outputs])]
                torch.stack(losses).sum().backward()
                optimizer.step()
                times.append(time.perf_counter() - started)
            seconds.setdefault(name, []).append([batch, min(times[1:])])
        print(name, seconds[name], file=sys.stderr)
    return seconds


def _pictures() -> float | None:
    """Return how many pictures of ImageNet's sample one core decodes in a second, None without the sample."""
    folder = Path(os.environ.get("CONVZOO_SHARED", ROOT.parent / "shared")) / "data/imagenet-sample/val"
    files = [path.read_bytes() for path in sorted(folder.rglob("*.JPEG"))[:200]]
    started = time.perf_counter()
    for data in files:
        decode_rgb(data, "sample")
    return len(files) / (time.perf_counter() - started) if files else None


def _ranked(*argv: str, ranks: int) -> str:
    """Run a Python command line under torchrun, a core a rank, and return what it printed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *launcher, *argv], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def _gloo() -> list[list[float]]:
    """Return (bytes, seconds) of all-reduces between two ranks here, while each computes as in a backward pass."""
    return json.loads(_ranked(str(Path(__file__)), "--all-reduce", ranks=2).splitlines()[-1])


def _all_reduce() -> None:
    td.init_process_group("gloo")
    done, rows = threading.Event(), []
    thread = threading.Thread(target=_multiply, args=[done])
    thread.start()
    for size in SIZES:
        tensor, times = torch.ones(size // 4), []
        for _ in range(12):
            td.barrier()
            started = time.perf_counter()
            td.all_reduce(tensor)
            times.append(time.perf_counter() - started)
            tensor.fill_(1)
        rows.append([size, statistics.median(times[2:])])
    done.set()
    thread.join()
    if td.get_rank() == 0:
        print(json.dumps(rows))
    td.destroy_process_group()


def _multiply(done: threading.Event) -> None:
    matrix = torch.randn(512, 512)
    while not done.is_set():
        torch.mm(matrix, matrix)


def _check() -> dict[str, float]:
    """Return the seconds of a step of the real command: one rank with the batch, with half of it, that beside another
    process that does the same, for the cores of a machine share its memory and its power; and two ranks.
    """
    name, batch, _ = CHECKED
    parameters = sum(p.numel() for p in registry.bind("model", recipes.load(name).model)().parameters())
    seconds = {"parameters": parameters, "whole": _trained_s(1, batch), "half": _trained_s(1, batch // 2)}
    with ThreadPoolExecutor(2) as pool:
        seconds["beside"] = statistics.mean(pool.map(_trained_s, [1, 1], [batch // 2] * 2))
    return {**seconds, "two": _trained_s(2, batch)}


def _trained_s(ranks: int, size: int) -> float:
    """Return the seconds of a step of CHECKED with batches of a size, in the second epoch."""
    name, _, steps = CHECKED
    with TemporaryDirectory() as folder:
        sizes = [f"train.batch_size={size}", f"data.max_train_images={size * steps}", "train.epochs=2"]
        more = ["train.eval_every_epochs=0", "train.precision=fp32", "--workers", "0", "--log-every-steps", "1"]
        _ranked("-m", "convzoo", "train", name, *sizes, *more, "--out", f"{folder}/run", ranks=ranks)
        rows = [json.loads(line) for line in Path(folder, "run/metrics.jsonl").read_text().splitlines()]
    return size / next(row["images_per_s"] for row in reversed(rows) if row["kind"] == "epoch")


# --- what is written


def tables(measured: JsonObject, works: list[Work]) -> dict[str, str]:
    """Return the document's tables by name, in Markdown."""
    accelerator = assumed()
    own, ours = _fitted(measured), {}
    if own:
        ours = {work.name: f"{own.picture_s(work) * 1e3:,.0f} ms" for work in works}
    head = ["recipe", "batch", "parameters", "gradients", "work a picture", f"time at {accelerator.name}", "time here"]
    rows = [
        [
            work.name,
            f"{work.batch:,}",
            f"{work.parameters / 1e6:,.1f} M",
            f"{work.gradient_bytes / 1e6:,.0f} MB",
            f"{work.flops / 1e9:,.1f} GFLOP",
            f"{accelerator.picture_s(work) * 1e6:,.0f} µs",
            ours.get(work.name, "not measured"),
        ]
        for work in works
    ]
    result = {"work": table(head, rows)}
    for name, grows in (("own", False), ("growing", True)):
        result[name] = _scaling(works, accelerator, grows)
    result["here"] = _scaling(works, own, False) if own else "Not measured yet.\n"
    result["input"] = _input(works, accelerator, measured.get("pictures"))
    result["check"] = _checked(measured)
    return {name: text.rstrip("\n") + "\n" for name, text in result.items()}


def _scaling(works: list[Work], device: Device, grows: bool) -> str:
    """Return for each recipe the training's time and the share of waiting on SHOWN devices, and how many pay."""
    head = ["recipe", *(f"{count:,}" for count in SHOWN), f"pays up to, at {' / '.join(NETWORKS)}"]
    rows = []
    for work in works:
        cells = []
        for count in SHOWN:
            batch = batch_of(work, count, grows)
            seconds, exposed = step_s(work, device, count, NETWORKS["100 Gb/s"], batch)
            total = seconds / batch * work.pictures * work.epochs
            cells.append("" if batch % count else f"{_duration(total)}, {100 * exposed / seconds:.0f} %")
        paying = (f"{last_that_pays(work, device, network, grows):,}" for network in NETWORKS.values())
        rows.append([work.name, *cells, " / ".join(paying)])
    return table(head, rows)


def _input(works: list[Work], device: Device, decoded_a_core: float | None) -> str:
    head = ["recipe", "pictures a node and second", "JPEG bytes", "of 25 Gb/s", "cores that decode"]
    rows = []
    for work in works:
        rate = work.batch / step_s(work, device, PER_NODE, LINK_IN_NODE, work.batch)[0]
        need = rate * work.picture_bytes
        cores = "not measured" if decoded_a_core is None else f"{rate / decoded_a_core:,.1f}"
        if not work.picture_bytes:
            cores, need_text, share = "", "in memory", ""
        else:
            need_text, share = f"{need / 1e6:,.0f} MB/s", f"{100 * need / STORE_BYTES_S:.0f} %"
        rows.append([work.name, f"{rate:,.0f}", need_text, share, cores])
    return table(head, rows)


def _fitted(measured: JsonObject) -> Device | None:
    """Return this machine as a device, from its steps at two batches; None where they are not measured."""
    steps = measured.get("steps")
    if not steps:
        return None
    # The picture's share of the larger batch: on a CPU a step of no pictures takes next to nothing.
    return Device("here", 0.0, lambda work: steps[work.name][1][1] / steps[work.name][1][0], 1)


def _checked(measured: JsonObject) -> str:
    """Return prediction and measurement of two gloo ranks, which share this machine."""
    check, gloo = measured.get("check"), measured.get("gloo")
    if not check or not gloo:
        return "Not measured yet.\n"
    (small, latency), (large, seconds) = gloo[0], gloo[-1]
    bandwidth = (large - small) / (seconds - latency)  # two ranks: 2 (n - 1) / n is 1
    exchange = all_reduce_s(2, GRADIENT_BYTES * check["parameters"], bandwidth, latency / 2)
    beside, half = check["beside"], CHECKED[1] // 2
    hidden = beside + max(0.0, exchange - BACKWARD * beside)
    computed = f"{1e3 * hidden:.0f} ms, not hidden {1e3 * (beside + exchange):.0f} ms"
    rows = [
        [f"1 rank, {CHECKED[1]} pictures", "", f"{1e3 * check['whole']:.0f} ms"],
        [f"1 rank, {half} pictures", "", f"{1e3 * check['half']:.0f} ms"],
        [f"1 rank, {half} pictures, beside another process that does the same", "", f"{1e3 * beside:.0f} ms"],
        [f"2 ranks, {CHECKED[1]} pictures", computed, f"{1e3 * check['two']:.0f} ms"],
    ]
    note = f"{bandwidth / 1e9:.2f} GB/s and {1e6 * latency / 2:.0f} µs between the two ranks"
    machine = "{device_name}, {cpu_cores} cores, torch {torch}, commit {commit}".format(**measured["machine"])
    head = [f"{CHECKED[0]}, a step", "computed", "measured"]
    return f"{table(head, rows)}\n\n{note}; {machine}; {measured['date']}\n"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def rendered(measured: JsonObject, works: list[Work]) -> str:
    """Return the document with its tables as they are now."""
    parts = tables(measured, works)
    return BLOCK.sub(lambda match: f"{match[1]}{parts[match[2]]}{match[3]}", DOCUMENT.read_text(encoding="utf-8"))


def draw(works: list[Work]) -> None:
    """Draw efficiency over devices, with the recipe's own batch and with one that grows, on 100 Gb/s a node."""
    import matplotlib

    from convzoo.report.plots import SERIES, STYLE

    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
        for ax, grows in zip(axes, (False, True), strict=True):
            for work, colour in zip(works, SERIES, strict=False):
                shares = [n for n in COUNTS if grows or work.batch % n == 0]
                network = NETWORKS["100 Gb/s"]
                values = [efficiency(work, assumed(), n, network, batch_of(work, n, grows)) for n in shares]
                ax.plot(shares, values, color=colour, marker=".", label=work.name)
            ax.axhline(PAYS, color="#6c757d", linewidth=1, linestyle="--")
            ax.set(xscale="log", xlabel="devices", ylim=(0, None))
            ax.set_xticks(COUNTS[::2], [f"{n:,}" for n in COUNTS[::2]])
            ax.set_title("a batch that grows beyond 8 devices" if grows else "the recipe's own batch")
        axes[0].set_ylabel("efficiency")
        axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        FIGURE.parent.mkdir(exist_ok=True)
        figure.savefig(FIGURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--only", choices=["steps", "pictures", "gloo", "check"])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--all-reduce", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.all_reduce:
        _all_reduce()
        return
    if arguments.measure:
        MEASURED.write_text(json.dumps(measure(arguments.only), indent=1) + "\n")
    measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    works = [work_of(name) for name in NAMES]
    if arguments.write:
        DOCUMENT.write_text(rendered(measured, works), encoding="utf-8")
        draw(works)
    else:
        print("\n".join(f"{name}\n\n{text}" for name, text in tables(measured, works).items()))


if __name__ == "__main__":
    main()
