"""Darknet's yolov3-tiny in every form beside OpenCV's dnn: milliseconds of a picture at batch 1, one thread.

    OMP_NUM_THREADS=1 python benchmarks/darknet_speed.py MODEL --calibration PICTURES [--rounds 5] [--json]

MODEL is what `convzoo convert yolov3-tiny.weights` wrote, or any other detector. All forms give the heads' raw maps and
take turns in every round. OpenCV 5 removed its reader of Darknet files, so it runs our ONNX file; without
opencv-python its row is left out. INT8 is the first scheme that `convzoo quantize` tries; its accuracy is that verb's.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from convzoo import distributed
from convzoo.deploy import export
from convzoo.deploy.exported import open_exported
from convzoo.deploy.metadata import UNSEALED
from convzoo.deploy.quantize import schemes
from convzoo.deploy.quantize.calibration import find_calibration
from convzoo.deploy.timing import alternate
from convzoo.inference.torch_model import open_model

BASE = "opencv"
FORMATS = ("onnx", "openvino", "ncnn")


def opencv(path: Path, x: torch.Tensor) -> Callable[[], Any] | None:
    """Return what runs an ONNX file in OpenCV's dnn, or None without OpenCV."""
    if importlib.util.find_spec("cv2") is None:
        return None
    cv2: Any = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    net = cv2.dnn.readNetFromONNX(str(path))
    names, image = net.getUnconnectedOutLayersNames(), x.numpy()

    def run() -> Any:
        net.setInput(image)
        return net.forward(names)

    return run


def variants(model: Path, pictures: Path, folder: Path) -> dict[str, Callable[[], Any]]:
    """Export and quantise a model, and return what runs each form on one picture."""
    opened = open_model(model)
    paths = {name: export.export(opened, export.ExportOptions(name, out=folder)).path for name in FORMATS}
    calibration = find_calibration(opened, None, pictures, 64, export.input_size(opened, None))
    x = torch.from_numpy(next(iter(calibration)))
    forms = {name: open_exported(path) for name, path in paths.items()}
    runners = {name: form.runner() for name, form in forms.items()}
    if distributed.computes_bfloat16(torch.device("cpu")):
        runners["openvino bf16"] = forms["openvino"].runner("bf16")
    for name in schemes.SCHEMES:
        form = forms[name]
        network = schemes.quantised(paths[name], name, schemes.SCHEMES[name][0], calibration)
        path = folder / f"int8{paths[name].suffix}"
        schemes.write(network, name, form.info.model_copy(update={"seal": UNSEALED}), path)
        runners[f"{name} int8"] = open_exported(path).runner()
    by_opencv = opencv(paths["onnx"], x)
    calls: dict[str, Callable[[], Any]] = {BASE: by_opencv} if by_opencv else {}
    return calls | {name: lambda run=run: run(x) for name, run in runners.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one object: milliseconds and times OpenCV's speed by form")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        calls = variants(arguments.model, arguments.calibration, Path(folder))
        times = alternate(calls, arguments.rounds, seconds=1.0)
    milliseconds = {
        name: 1e3 * statistics.median(statistics.median(durations) for durations in rounds)
        for name, rounds in times.items()
    }
    speedups = {name: milliseconds[BASE] / value for name, value in milliseconds.items()} if BASE in calls else {}
    if arguments.json:
        print(json.dumps({"milliseconds": milliseconds, "times_opencv": speedups}))
        return
    print("| form | ms | times OpenCV |\n|---|---|---|")
    for name, value in milliseconds.items():
        print(f"| {name} | {value:.1f} | {f'{speedups[name]:.2f}' if speedups else '-'} |")


if __name__ == "__main__":
    main()
