"""What keeping freed memory costs and gives: `train` and `eval` with glibc as it comes, and as the command line has it.

    OMP_NUM_THREADS=1 python benchmarks/kept_memory.py [--recipe densenet100-digits] [--images 512] [--rounds 3]
                                                       [--json]

Whole processes in turn: seconds, of these in the kernel, and the largest resident memory.
"""

import argparse
import json
import tempfile

from processes import convzoo, environment, medians, peak

# Its default, which leaves malloc to the environment: convzoo then asks glibc for nothing.
AS_IT_COMES = {"MALLOC_TOP_PAD_": "131072"}
COLUMNS = ("seconds", "user", "kernel", "MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="densenet100-digits")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    environments = {"as it comes": environment(1, **AS_IT_COMES), "memory kept": environment(1)}
    size = [f"data.max_train_images={arguments.images}", "train.epochs=1"]
    rounds: dict[str, dict[str, list]] = {verb: {name: [] for name in environments} for verb in ("train", "eval")}
    for _ in range(arguments.rounds):
        for name, env in environments.items():
            with tempfile.TemporaryDirectory() as folder:
                train = convzoo("train", arguments.recipe, *size, "--workers", "0", "--out", f"{folder}/run")
                evaluation = convzoo("eval", f"{folder}/run/checkpoints/last.safetensors", "--workers", "0")
                for verb, command in (("train", train), ("eval", evaluation)):
                    measured = peak(command, env)
                    rounds[verb][name].append([measured[column] for column in COLUMNS])
    result = {
        verb: {name: dict(zip(COLUMNS, medians(rows), strict=True)) for name, rows in by_name.items()}
        for verb, by_name in rounds.items()
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for verb, by_name in result.items():
        for name, row in by_name.items():
            print(f"{verb:6} {name:12} " + "  ".join(f"{column} {row[column]:.1f}" for column in COLUMNS))


if __name__ == "__main__":
    main()
