"""Converters of Darknet networks beside each other: the ONNX file of each, against what Darknet itself computed.

    python benchmarks/darknet_converters.py ZOO [--darknet2any FOLDER[:FOLDER]] [--json] [NETWORK ...]

ZOO has a folder a network: slim.cfg, slim.weights, detections.json or outputs.npz; a README.md with a table of what
float32 costs each. FOLDER, or CONVZOO_DARKNET2ANY, is where darknet2any and what it imports were installed
(`pip install --target`); it runs in a process of its own. Right is within four times what float32 costs, or 1e-3 where
that is more; else the largest error of a score, or of a box over its size where that is larger. A box that one side
lacks counts by how far its score is above the threshold.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from convzoo.convert.convert import convert
from convzoo.convert.state_dict import ExpectedWeights
from convzoo.deploy.export import ExportOptions, export
from convzoo.errors import ConvzooError
from convzoo.inference.torch_model import open_model

TIMEOUT_S = 300
THEIR_EXPORT = """
import sys
from darknet2any.tool.darknet2onnx import transform_to_onnx
transform_to_onnx(sys.argv[1], sys.argv[2], 1, sys.argv[3])
"""
REGION_TRAINING = "object_scale=5\nnoobject_scale=1\nclass_scale=1\ncoord_scale=1\n"
Outputs = list[np.ndarray]


class ConverterError(Exception):
    """No file, or one that does not run."""


def float32_costs(zoo: Path) -> dict[str, float]:
    rows = re.findall(
        r"^\| (\S+) \| \w[\w-]* \| \d+ \| [\d.]+ MB \| (\S+) \|", (zoo / "README.md").read_text(encoding="utf-8"), re.M
    )
    return {name: float(cost) for name, cost in rows}


def picture(folder: Path) -> np.ndarray:
    """Return the network's picture, float32 [1, 3, H, W]."""
    own = folder / "input.npy"
    if own.exists():
        return np.load(own)[None]
    width = re.search(r"^width *= *(\d+)", (folder / "slim.cfg").read_text(), re.M)
    assert width
    return np.load(folder.parent / f"input{width[1]}.npy")[None]


def outputs_of(path: Path, images: np.ndarray) -> Outputs:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, {session.get_inputs()[0].name: images})]


def ours(folder: Path, scratch: Path) -> Outputs:
    """Return boxes in fractions [N, 4] and scores [N, K], or probabilities [K]."""
    model, images = scratch / "model.safetensors", picture(folder)
    try:
        convert(str(folder / "slim.weights"), model, ExpectedWeights(cfg=folder / "slim.cfg", resize="stretch"))
        opened = open_model(model)
        result = export(opened, ExportOptions("onnx"))
    except ConvzooError as error:
        raise ConverterError(str(error)) from None
    outputs = tuple(map(torch.from_numpy, outputs_of(result.path, images)))
    if opened.recipe.task == "classify":
        return [outputs[0][0].softmax(0).numpy()]
    height, width = images.shape[2:]
    boxes, scores = (output[0].numpy() for output in opened.task().decode(outputs))
    return [boxes / [width, height, width, height], scores]


def darknet2any(folder: Path, scratch: Path, install: str) -> Outputs:
    """Return the same of darknet2any's file, which wants the training keys of a region head, too."""
    path, cfg = scratch / "theirs.onnx", scratch / "network.cfg"
    cfg.write_text((folder / "slim.cfg").read_text().replace("[region]\n", f"[region]\n{REGION_TRAINING}"))
    argv = [sys.executable, "-c", THEIR_EXPORT, cfg, folder / "slim.weights", path]
    env = {**os.environ, "PYTHONPATH": install}
    try:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, cwd=scratch, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ConverterError(f"no end after {TIMEOUT_S} s") from None
    if done.returncode or not path.exists():
        message = (done.stderr.strip().splitlines() or ["no file"])[-1]
        if message.startswith("ModuleNotFoundError"):
            raise SystemExit(f"darknet2any does not start, so nothing is measured: {message}")
        raise ConverterError(message)
    try:
        outputs = outputs_of(path, picture(folder))
    except Exception as error:
        raise ConverterError(f"its file does not run: {str(error).splitlines()[0]}") from None
    if (folder / "detections.json").exists():
        if len(outputs) < 2:
            raise ConverterError("its file gives no boxes")
        return [outputs[0].reshape(-1, 4), outputs[1].reshape(-1, outputs[1].shape[-1])]
    if not outputs:
        raise ConverterError("its file gives nothing")
    return [outputs[-1].ravel()]


def detection_error(boxes_xyxy: np.ndarray, scores_NK: np.ndarray, truth: dict) -> float:
    """Return the largest error of a detection above the threshold; see the top of this file."""
    threshold, worst = truth["threshold"], 0.0
    expected = np.array(truth["before_nms"], dtype=float).reshape(-1, 6)
    boxes = np.concatenate([(boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2, boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], 1)
    for label in range(scores_NK.shape[1]):
        theirs = expected[expected[:, 0] == label]
        near = scores_NK[:, label] > threshold / 2
        candidates = np.concatenate([scores_NK[near, label, None], boxes[near]], 1)
        for these, those in ((theirs[:, 1:], candidates), (candidates, theirs[:, 1:])):
            these = these[these[:, 0] > threshold]
            if not len(these):
                continue
            errors = these[:, 0] - threshold
            if len(those):
                apart = np.abs(these[:, None] - those)  # [these, those, 5]
                apart[..., 1:] /= np.maximum(1, np.abs(these[:, None, 1:]).max(2, keepdims=True))
                errors = np.minimum(errors, apart.max(2).min(1))
            worst = max(worst, float(errors.max()))
    return worst


def error_of(folder: Path, outputs: Outputs) -> float:
    detections = folder / "detections.json"
    if not all(np.isfinite(output).all() for output in outputs):
        raise ConverterError("its file gives numbers that are not finite")
    if detections.exists():
        truth = json.loads(detections.read_text())
        labels = 1 + max(int(row[0]) for row in truth["before_nms"])
        if outputs[1].shape[1] < labels:
            raise ConverterError(f"its file gives {outputs[1].shape[1]} classes")
        return detection_error(outputs[0], outputs[1], truth)
    with np.load(folder / "outputs.npz") as arrays:
        probabilities = next(arrays[key] for key in arrays if key.endswith("softmax")).ravel()
    if outputs[0].shape != probabilities.shape:
        raise ConverterError(f"its file gives {outputs[0].size} values")
    return float(np.abs(outputs[0] - probabilities).max())


def verdict(folder: Path, tolerance: float, converter: str, install: str | None) -> dict:
    """Return {"verdict": "right", "wrong" or "fails", "error", None where it fails, and then "message"}."""
    with tempfile.TemporaryDirectory() as name:
        try:
            if converter == "convzoo":
                outputs = ours(folder, Path(name))
            else:
                assert install
                outputs = darknet2any(folder, Path(name), install)
            error = error_of(folder, outputs)
        except ConverterError as failure:
            return {"verdict": "fails", "error": None, "message": str(failure)}
    return {"verdict": "right" if error <= tolerance else "wrong", "error": error}


def shown(row: dict) -> str:
    match row["verdict"]:
        case "right":
            return f"right ({row['error']:.0e})"
        case "wrong":
            return f"wrong by {row['error']:.2f}"
        case _:
            return f"fails: {row['message'][:70]}".replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--darknet2any", metavar="FOLDER", default=os.environ.get("CONVZOO_DARKNET2ANY"))
    parser.add_argument("--json", action="store_true", help="one object at the end: network, what is right, verdicts")
    arguments = parser.parse_intermixed_args()
    converters = ["convzoo", *(["darknet2any"] if arguments.darknet2any else [])]
    costs, rows = float32_costs(arguments.zoo), {}
    if not arguments.json:
        print(f"| network | {' | '.join(converters)} |\n|{'---|' * (1 + len(converters))}", flush=True)
    for name in arguments.networks or costs:
        tolerance = max(1e-3, 4 * costs[name])
        rows[name] = {
            converter: verdict(arguments.zoo / name, tolerance, converter, arguments.darknet2any)
            for converter in converters
        }
        if not arguments.json:
            print(f"| {name} | {' | '.join(map(shown, rows[name].values()))} |", flush=True)
    verdicts = {
        converter: {
            key: sum(row[converter]["verdict"] == key for row in rows.values()) for key in ("right", "wrong", "fails")
        }
        for converter in converters
    }
    if arguments.json:
        networks = {name: {"right": max(1e-3, 4 * costs[name]), **row} for name, row in rows.items()}
        print(json.dumps({"networks": networks, "verdicts": verdicts}))
    else:
        counts = (", ".join(f"{count} {key}" for key, count in row.items()) for row in verdicts.values())
        print(f"| all {len(rows)} | {' | '.join(counts)} |")


if __name__ == "__main__":
    main()
