"""How long training on CIFAR-10's JPEG zip waits for data, pictures from the zip and kept in memory.

    OMP_NUM_THREADS=1 python benchmarks/cache_speed.py CIFAR10.zip [--images 10000] [--rounds 3] [--json]

tinydarknet at 32 pixels, two epochs of which the second counts, as the run's own log has it.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path

from processes import convzoo, environment, medians, run

LINE = re.compile(r"epoch 2/2 .* (\d+) img/s  waiting for data (\d+) %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    size = [f"data.max_train_images={arguments.images}", "train.epochs=2", "train.eval_every_epochs=0"]
    ways = {"files": ["--workers", "0"], "memory": ["--cache", "memory"]}
    rounds: dict[str, list] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, options in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder, "run")
                run(
                    convzoo("train", "tinydarknet-cifar10", *size, "--data", arguments.data, "--out", out, *options),
                    environment(1),
                )
                found = LINE.search((out / "train.log").read_text())
                assert found, "no line of the second epoch"
                rounds[name].append((int(found[1]), int(found[2]) / 100))
    result = {name: dict(zip(("images_per_s", "waiting"), medians(rows), strict=True)) for name, rows in rounds.items()}
    if arguments.json:
        print(json.dumps(result))
        return
    for name, row in result.items():
        print(f"{name:8} {row['images_per_s']:.0f} img/s, waiting for data {100 * row['waiting']:.0f} %")


if __name__ == "__main__":
    main()
