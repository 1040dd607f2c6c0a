"""Train the CIFAR-10 recipes and the blood-cell detector on a GPU, resumably, each for a limited time; a table last.

    python benchmarks/gpu_runs.py --cifar10 cifar10.zip --bccd bccd/ --minutes 8 --out runs/gpu
    python benchmarks/gpu_runs.py --cifar10 cifar10.zip --bccd bccd/ --check   # minutes on a CPU: everything, tiny

Run it again to continue what the time limit or a lost machine cut off: a finished run is only measured.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

RUNS = {  # None: in full, else a share of --minutes
    "yolov3-bccd": None,
    "vgg16-cifar10-fast": None,
    "vgg16-cifar10": None,
    "densenet100-cifar10-fast": None,
    "densenet100-cifar10": 1.0,
    "tinydarknet-cifar10": 1.0,
}
TINY = ["data.max_train_images=64", "train.epochs=1", "train.batch_size=16"]
TINY_MORE = {"densenet100-cifar10": ["schedule={name: constant}"], "yolov3-bccd": ["model.width=0.125"]}
TEST_SPLIT = {"yolov3-bccd": ["data.val_set=test"]}


def convzoo(*argv: str) -> list[str]:
    return [sys.executable, "-m", "convzoo", *argv]


def data_of(name: str, arguments: argparse.Namespace) -> Path | None:
    return arguments.bccd if name.endswith("bccd") else arguments.cifar10


def train(name: str, out: Path, arguments: argparse.Namespace) -> float:
    """Train or continue one recipe until it is done or its time is up; return the seconds spent now."""
    overrides = [*TINY, *TINY_MORE.get(name, [])] if arguments.check else []
    resume = ["--resume"] if (out / "recipe.yaml").exists() else []
    if (out / "finished").exists():
        return 0.0
    share = RUNS[name]
    workers = [] if arguments.workers is None else ["--workers", str(arguments.workers)]
    data = str(data_of(name, arguments))
    command = convzoo("train", name, *overrides, "--data", data, "--out", str(out), *workers, *resume)
    started = time.perf_counter()
    process = subprocess.Popen(command)
    try:
        process.wait(timeout=None if share is None else share * arguments.minutes * 60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait()
    if process.returncode not in (0, 75):
        raise SystemExit(f"{name}: exit {process.returncode}")
    return time.perf_counter() - started


def measure(name: str, out: Path, data: Path) -> str:
    done = subprocess.run(
        convzoo(
            "eval", str(out / "checkpoints/last.safetensors"), *TEST_SPLIT.get(name, []), "--data", str(data), "--json"
        ),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    env = json.loads((out / "env.json").read_text())
    speed = f"{epochs[-1]['images_per_s']:.0f}" if epochs else ""
    cells = [
        name,
        str(len(epochs)),
        f"top-1 {100 * result['top1']:.2f} %" if "top1" in result else f"AP50 {100 * result['AP50']:.2f} %",
        f"{result['images']} of {result['images_expected']}",
        speed,
        env["device_name"],
        env["commit"] or "",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--bccd", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    lines = []
    for name in RUNS:
        data = data_of(name, arguments)
        if data is None:
            continue
        seconds = train(name, arguments.out / name, arguments)
        print(f"{name}: {seconds:.0f} s", flush=True)
        lines.append(measure(name, arguments.out / name, data))
    print(
        "| recipe | epochs | measure | images | img/s | device | commit |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
