"""What several tests share that is no fixture: where things lie, short settings, what is read from a run."""

import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from convzoo.inference.evaluate import Evaluation
from convzoo.model_file import load_model
from convzoo.tasks.classify import ClassifyMetric
from convzoo.training.checkpoints import load_state

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("CONVZOO_SHARED", REPO.parent / "shared"))
THREADS = int(os.environ.get("CONVZOO_TEST_THREADS", "1"))  # one: as fast for small networks, much faster beside others
# A run of seconds: 8x8 digits straight into the network.
QUICK = [
    "transform.train=[]",
    "transform.eval=[]",
    "data.max_train_images=256",
    "train.epochs=2",
    "train.precision=fp32",
]
# Batch norm held still, and no max pool, whose ties on flat backgrounds are broken by rounding: what is left of a
# difference between ranks or micro-batches is the order of float additions.
STILL = [
    "transform.train=[]",
    "transform.eval=[]",
    "train.precision=fp32",
    "train.freeze=['*norm*']",
    "optim.lr=1.0e-7",
    "data.max_train_images=32",
    "train.batch_size=16",
    "train.epochs=2",
]


@functools.cache
def openvino_runs() -> bool:
    """Tell whether OpenVINO runs a pool and an upsampling here; held to SSE4.1 it has no kernels for them."""
    from convzoo.deploy import library

    openvino = library("openvino", "this test")
    net = torch.nn.Sequential(torch.nn.MaxPool2d(2), torch.nn.Upsample(scale_factor=2.0, mode="nearest"))
    model = openvino.convert_model(net, example_input=torch.rand(2, 3, 4, 4))
    try:
        compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        outputs = compiled(torch.rand(2, 3, 4, 4).numpy())
    except RuntimeError as error:
        assert "Exception from src/" in str(error)  # its own words
        return False
    return outputs[0].shape == (2, 3, 4, 4)


def skip_without_openvino(format: str = "openvino") -> None:
    """Skip a test of that format where OpenVINO itself runs nothing."""
    if format == "openvino" and not openvino_runs():
        pytest.skip("OpenVINO has no kernels for the instructions that it is held to")


def one_line(stderr: str) -> str:
    """Return the error message, which must be the only line that convzoo printed as one."""
    lines = [line for line in stderr.splitlines() if line.startswith("convzoo: ")]
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    return lines[0]


def rows(run: Path, kind: str) -> list[dict]:
    """Return the rows of that kind in a run's metrics.jsonl."""
    return [
        row for line in (run / "metrics.jsonl").read_text().splitlines() if (row := json.loads(line))["kind"] == kind
    ]


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    """Return the tensors of a run's model file."""
    return load_model(run / f"checkpoints/{name}.safetensors")[0]


def momenta(run: Path) -> dict[str, torch.Tensor]:
    """Return the sums of gradients that a run ended with: more sensitive than its weights."""
    state = load_state(run / "checkpoints/last.state.pt")["optimizer"]["state"]
    return {str(name): entry["momentum_buffer"] for name, entry in state.items()}


def confusion(evaluation: Evaluation) -> np.ndarray:
    """Return a classifier's confusion matrix [K, K]."""
    assert isinstance(evaluation.metric, ClassifyMetric)
    return evaluation.metric.confusion


def same(a: dict, b: dict) -> bool:
    """Tell whether two sets of tensors are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the largest relative difference max|a-b| / max|b| of any tensor."""
    assert a.keys() == b.keys()
    pairs = ((a[name].double(), b[name].double()) for name in a)
    return max(float((x - y).abs().max() / y.abs().max().clamp(min=1e-12)) for x, y in pairs)
