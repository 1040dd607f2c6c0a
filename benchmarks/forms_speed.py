"""Float32 latency of a picture at batch 1, one thread: every form of our networks, in turn.

    OMP_NUM_THREADS=1 python benchmarks/forms_speed.py [--rounds 15] [--seconds 0.3] [--json] [RECIPE ...]

Weights are random, with the batch norms' own statistics: this is about speed alone, and each form is compared with
PyTorch before it is timed. Rounds are short, so that what else the machine does falls on all forms alike.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from untrained import TOLERANCE, open_untrained

from convzoo.deploy import export
from convzoo.deploy.exported import open_exported
from convzoo.deploy.timing import alternate

NETWORKS = ["tinydarknet-imagenet", "densenet121-imagenet", "darknet53-imagenet"]
FORMATS = ("onnx", "openvino", "ncnn")


def milliseconds(recipe_name: str, folder: Path, rounds: int, seconds: float) -> dict[str, float]:
    """Return the median milliseconds of a picture by form."""
    opened = open_untrained(recipe_name, folder)
    written = {name: export.export(opened, export.ExportOptions(name, tolerance=TOLERANCE)).path for name in FORMATS}
    forms = {name: open_exported(exported) for name, exported in written.items()}
    x = torch.rand(1, 3, *export.input_size(opened, None))
    runners = {"pytorch": opened.runner(), **{name: form.runner() for name, form in forms.items()}}
    times = alternate({name: lambda run=run: run(x) for name, run in runners.items()}, rounds, seconds=seconds)
    return {name: 1e3 * statistics.median(map(statistics.median, values)) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {}
    for name in arguments.recipes:
        with tempfile.TemporaryDirectory() as folder:
            result[name] = milliseconds(name, Path(folder), arguments.rounds, arguments.seconds)
        if not arguments.json:
            print(f"{name}: {', '.join(f'{form} {value:.1f} ms' for form, value in result[name].items())}", flush=True)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
