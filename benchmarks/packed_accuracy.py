"""A model's accuracy on pictures from their files and packed at several sizes, side by side.

    OMP_NUM_THREADS=1 python benchmarks/packed_accuracy.py DATA WEIGHTS [--sizes 256 320] [--json]

DATA has val/CLASS/*.JPEG, WEIGHTS are Darknet's tiny.weights, whose evaluation resizes to 256 and crops 224.
"""

import argparse
import json
import tempfile
from pathlib import Path

from processes import convzoo, environment, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 320])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    env, rows = environment(1), {}
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/tiny.safetensors"
        run(convzoo("convert", arguments.weights, "--out", model), env)
        packs = {f"packed_{size}": Path(folder, f"{size}.pack") for size in arguments.sizes}
        for size, pack in zip(arguments.sizes, packs.values(), strict=True):
            options = ("--data", arguments.data, "--split", "val", "--size", size, "--out", pack)
            run(convzoo("data", "pack", "image_folder", *options), env)
        for name, data in {"files": arguments.data, **packs}.items():
            result = json.loads(run(convzoo("eval", model, "--data", data, "--json"), env)[3])
            size = data.stat().st_size if data.is_file() else sum(f.stat().st_size for f in data.glob("val/*/*"))
            rows[name] = {key: result[key] for key in ("top1", "top5", "images", "images_per_s")} | {"bytes": size}
    if arguments.json:
        print(json.dumps(rows))
        return
    for name, row in rows.items():
        print(f"{name:12} top-1 {row['top1']:.4f}  top-5 {row['top5']:.4f}  {row['bytes'] / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
