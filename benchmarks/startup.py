"""How long a verb takes from nothing: `list`, and `predict` of one picture with an ONNX file, beside a plain script.

    OMP_NUM_THREADS=1 python benchmarks/startup.py PICTURE [--rounds 5] [--warmups 1] [--json]

Whole processes in turn. The plain script is what one writes by hand: Pillow, NumPy and ONNX Runtime, no convzoo. What
`predict` is held to is `import torch` alone plus that script: PyTorch resizes the pictures, bit for bit as in training.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from processes import convzoo, environment, medians, run

PLAIN = """
import sys, numpy as np, onnxruntime
from PIL import Image
image = Image.open(sys.argv[2]).convert("RGB").resize((32, 32))
x = (np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255 - 0.5) / 0.5
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(session.run(None, {session.get_inputs()[0].name: x})[0].argmax())
"""
TRAIN = ("tinydarknet-digits", "train.epochs=1", "data.max_train_images=64", "train.eval_every_epochs=0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmups", type=int, default=1, help="rounds before, that fill the file cache")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    env = environment(1)
    with tempfile.TemporaryDirectory() as folder:
        run(convzoo("train", *TRAIN, "--out", f"{folder}/run"), env)
        model = f"{folder}/model.onnx"
        run(convzoo("export", f"{folder}/run/checkpoints/last.safetensors", "--format", "onnx", "--out", model), env)
        commands = {
            "list": convzoo("list"),
            "predict": convzoo("predict", model, arguments.picture),
            "import torch": [sys.executable, "-c", "import torch"],
            "plain script": [sys.executable, "-c", PLAIN, model, str(arguments.picture)],
        }
        rounds = []
        for number in range(-arguments.warmups, arguments.rounds):
            seconds = [run(command, env)[0] for command in commands.values()]
            rounds += [seconds] * (number >= 0)
    result = dict(zip(commands, medians(rounds), strict=True))
    times = result["predict"] / (result["import torch"] + result["plain script"])
    if arguments.json:
        print(json.dumps({"seconds": result, "predict_times": times}))
        return
    print("\n".join(f"{name:14} {seconds:6.2f} s" for name, seconds in result.items()))
    print(f"predict is {times:.2f} times `import torch` plus the plain script")


if __name__ == "__main__":
    main()
