"""Evaluate an ONNX file on a folder of validation pictures: `convzoo eval` beside a plain ONNX Runtime loop.

    OMP_NUM_THREADS=1 python benchmarks/eval_speed.py DATA WEIGHTS [--rounds 5] [--warmups 1] [--json]

DATA has val/CLASS/*.JPEG, WEIGHTS are Darknet's tiny.weights. Whole processes in turn, one thread. The plain loop is
what one writes by hand: Pillow decodes, resizes (short side 256) and crops 224, batches of 32. Ours is held to the
plain loop's seconds plus what `import torch` takes, which the plain script does without.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from processes import convzoo, environment, medians, run

PLAIN = """
import sys, time, numpy as np, onnxruntime
from pathlib import Path
from PIL import Image
def load(path):
    image = Image.open(path).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize([int(side * scale) for side in image.size], Image.Resampling.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32).transpose(2, 0, 1) / 255
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
name, paths = session.get_inputs()[0].name, sorted(Path(sys.argv[2], "val").glob("*/*"))
for start in range(0, len(paths), 32):
    x = np.stack([load(path) for path in paths[start : start + 32]])
    session.run(None, {name: x})
print(len(paths))
"""
COLUMNS = ("seconds", "user", "kernel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmups", type=int, default=1, help="rounds before, that fill the file cache")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    env = environment(1)
    with tempfile.TemporaryDirectory() as folder:
        model, exported = f"{folder}/tiny.safetensors", f"{folder}/tiny.onnx"
        run(convzoo("convert", arguments.weights, "--out", model), env)
        run(convzoo("export", model, "--format", "onnx", "--out", exported), env)
        commands = {
            "convzoo eval": convzoo("eval", exported, "--data", arguments.data, "--json"),
            "convzoo eval, PyTorch": convzoo("eval", model, "--data", arguments.data, "--json"),
            "plain ONNX Runtime": [sys.executable, "-c", PLAIN, exported, str(arguments.data)],
            "import torch": [sys.executable, "-c", "import torch"],
        }
        rounds: dict[str, list] = {name: [] for name in commands}
        for number in range(-arguments.warmups, arguments.rounds):
            for name, command in commands.items():
                measured = run(command, env)[:3]
                rounds[name] += [measured] * (number >= 0)
    result = {name: dict(zip(COLUMNS, medians(values), strict=True)) for name, values in rounds.items()}
    base = result["plain ONNX Runtime"]["seconds"] + result["import torch"]["seconds"]
    times = result["convzoo eval"]["seconds"] / base
    share = result["convzoo eval, PyTorch"]["kernel"] / result["convzoo eval, PyTorch"]["user"]
    if arguments.json:
        print(json.dumps({"rows": result, "times": times, "kernel_share": share}))
        return
    for name, row in result.items():
        print(f"{name:22} {row['seconds']:6.2f} s  user {row['user']:6.2f}  kernel {row['kernel']:5.2f}")
    print(f"convzoo eval takes {times:.2f} times the plain loop plus `import torch`")


if __name__ == "__main__":
    main()
