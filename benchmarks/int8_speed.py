"""How many times as fast as float32 a network is in INT8, in the same runtime, batch 1, in alternating rounds.

    OMP_NUM_THREADS=1 python benchmarks/int8_speed.py --calibration PICTURES [--format openvino] [--json] [RECIPE ...]

Weights are random: this is about speed alone. `convzoo quantize` measures trained networks, speed and accuracy.
"""

import argparse
import json
import tempfile
from pathlib import Path

from untrained import TOLERANCE, open_untrained

from convzoo.config import recipe as recipes
from convzoo.deploy import export
from convzoo.deploy.exported import open_exported
from convzoo.deploy.metadata import UNSEALED
from convzoo.deploy.quantize import comparison, schemes
from convzoo.deploy.quantize.calibration import find_calibration

NETWORKS = ["tinydarknet-imagenet", "densenet121-imagenet", "vgg16-imagenet", "darknet53-imagenet", "yolov3-coco"]


def measure(recipe_name: str, format: str, pictures: Path, folder: Path) -> dict[str, float]:
    """Return the median seconds of a picture by variant."""
    opened = open_untrained(recipe_name, folder)
    before = open_exported(export.export(opened, export.ExportOptions(format, tolerance=TOLERANCE)).path)
    calibration = find_calibration(opened, None, pictures, 4, before.info.size)
    network = schemes.quantised(before.path, format, schemes.SCHEMES[format][0], calibration)
    quantised = folder / f"int8{before.path.suffix}"
    schemes.write(network, format, before.info.model_copy(update={"seal": UNSEALED}), quantised)
    return comparison.measure_speed(before, open_exported(quantised), next(iter(calibration)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=NETWORKS)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--format", choices=list(schemes.SCHEMES), default="openvino")
    parser.add_argument(
        "--json", action="store_true", help="one object at the end: median milliseconds by network and precision"
    )
    arguments = parser.parse_args()
    if not arguments.json:
        print("| network | input | float32 ms | bfloat16 ms | INT8 ms | times float32 | times the fastest float |")
        print("|---|---|---|---|---|---|---|", flush=True)
    measured = {}
    for name in arguments.recipes:
        with tempfile.TemporaryDirectory() as folder:
            seconds = measure(name, arguments.format, arguments.calibration, Path(folder))
        measured[name] = {key: 1e3 * value for key, value in seconds.items()}
        if not arguments.json:
            print(row(name, measured[name]), flush=True)
    if arguments.json:
        print(json.dumps(measured))


def row(name: str, milliseconds: dict[str, float]) -> str:
    operations = recipes.load(name).transform.eval
    size = next(iter(operations[-1].values()))["size_px"] if operations else "-"
    shown = [f"{milliseconds[key]:.1f}" if key in milliseconds else "-" for key in ("float32", "bfloat16", "int8")]
    int8_ms, floats = milliseconds["int8"], [value for key, value in milliseconds.items() if key != "int8"]
    ratios = f"{milliseconds['float32'] / int8_ms:.2f} | {min(floats) / int8_ms:.2f}"
    return f"| {name} | {size} | {' | '.join(shown)} | {ratios} |"


if __name__ == "__main__":
    main()
