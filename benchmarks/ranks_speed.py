"""Two gloo ranks of one thread beside one process, and beside two processes that know nothing of each other.

    python benchmarks/ranks_speed.py [--recipe densenet100-digits] [--images 512] [--rounds 3] [--json] [KEY=VALUE ...]

Pictures a second in training, as the run itself measures them over its last epoch; rounds take turns. Two ranks share
each batch; an independent process takes half a batch too, so that both together are the most that two threads of this
machine can do with such steps.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from processes import environment, medians

from convzoo.config import recipe as recipes

EPOCHS = 2  # the first pays for what happens once


def finish(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        _, err = process.communicate()
        if process.returncode:
            raise SystemExit(f"exit {process.returncode}\n{err}")


def start(argv: list[str], out: Path, *launcher: str) -> subprocess.Popen:
    command = [sys.executable, "-m", *launcher, "convzoo", "train", *argv, "--out", str(out)]
    return subprocess.Popen(command, env=environment(1), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def images_per_s(out: Path) -> float:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["images_per_s"] for row in rows if row["kind"] == "epoch"][-1]


def measure(argv: list[str], share: str, folder: Path) -> tuple[float, float, float]:
    """Return pictures a second of one process, of two ranks, and of two independent processes with a rank's share."""
    finish([start(argv, folder / "one")])
    finish([start(argv, folder / "ranks", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")])
    finish([start([*argv, share], folder / name) for name in ("left", "right")])
    both = images_per_s(folder / "left") + images_per_s(folder / "right")
    return images_per_s(folder / "one"), images_per_s(folder / "ranks"), both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--recipe", default="densenet100-digits")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    size = [f"data.max_train_images={arguments.images}", f"train.epochs={EPOCHS}", "train.eval_every_epochs=0"]
    argv = [arguments.recipe, *size, *arguments.overrides, "--workers", "0"]
    share = f"train.batch_size={recipes.load(arguments.recipe, arguments.overrides).train.batch_size // 2}"
    rounds = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(measure(argv, share, Path(folder)))
    one, ranks, both = medians(rounds)
    result = {"one": one, "ranks": ranks, "independent": both, "of_one": ranks / one, "of_independent": ranks / both}
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{one:.0f} img/s alone, {ranks:.0f} with two ranks, {both:.0f} by two independent processes")
    print(f"two ranks: {ranks / one:.2f} times one, {ranks / both:.2f} of two independent processes")


if __name__ == "__main__":
    main()
