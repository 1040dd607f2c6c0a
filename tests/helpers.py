"""What several tests share that is no fixture: where things lie, short settings, what is read from a run."""

import contextlib
import functools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from convzoo.inference.evaluate import Evaluation
from convzoo.model_file import load_model
from convzoo.tasks.classify import ClassifyMetric
from convzoo.training import loop as train_module
from convzoo.training.checkpoints import load_state

REPO = Path(__file__).resolve().parents[1]
FIXTURES = REPO / "tests/fixtures"
SHARED = Path(os.environ.get("CONVZOO_SHARED", REPO.parent / "shared"))
THREADS = int(os.environ.get("CONVZOO_TEST_THREADS", "1"))  # one: as fast for small networks, much faster beside others
DARKNET = SHARED / "fixtures/darknet"
# Of each slim Darknet network the largest difference of any layer between the original's float32 and a float64
# computation, over the layer's largest value; ours is as large.
DIFFERENCES = {
    "yolov2-tiny-voc": 1.8e-06,
    "yolov2-voc": 3.7e-06,
    "yolov3-tiny": 3.0e-06,
    "yolov3-spp": 2.8e-05,
    "yolov4-tiny": 5.0e-06,
    "yolov4": 2.9e-04,
    "yolov4-csp-swish": 1.1e-05,
    "yolov4-p5": 2.1e-04,
    "yolov7-tiny": 5.1e-05,
    "enet-coco": 5.4e-06,
    "csresnext50-panet-spp": 2.1e-03,
    "darknet19": 1.3e-05,
    "resnet50": 2.6e-05,
    "resnext50": 4.0e-05,
    "densenet201": 4.0e-05,
    "efficientnet_b0": 4.7e-06,
    "alexnet": 1.0e-06,
    "parts-crop": 2.7e-06,
    "parts-attention": 9.2e-07,
}
CLASSIFIERS = ["darknet19", "resnet50", "resnext50", "densenet201", "efficientnet_b0", "alexnet", "parts-crop"]
DETECTORS = [name for name in DIFFERENCES if name not in CLASSIFIERS]
# A small detector of one head, as a Darknet .cfg.
SMALL_CFG = """[net]
width=64
height=96
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=4
pad=1
activation=leaky

[convolutional]
filters=14
size=1
activation=linear

[yolo]
mask=0,1
anchors=10,14, 23,27
classes=2
num=2
"""
# A section of `cfg_text` without its filters and stride.
CONV = "convolutional batch_normalize=1 size=3 pad=1 activation=leaky"
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


# The program of torchrun, computing in float64: see the fixture in_float64.
IN_FLOAT64 = (
    "--no-python",
    sys.executable,
    "-c",
    "import torch; torch.set_default_dtype(torch.float64); from convzoo.cli import run; run()",
)


def cfg_text(*sections: str) -> str:
    """Return a Darknet network's text from its sections, one a line: `convolutional filters=8 size=1`."""
    parts = (section.split() for section in sections)
    return "".join(f"[{name}]\n" + "".join(f"{option}\n" for option in options) for name, *options in parts)


def torchrun_command(*argv: object, ranks: int = 2, restarts: int = 0, program: tuple[str, ...] = ("-m", "convzoo")):
    """Return the command line of convzoo under torchrun on this machine."""
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        f"--max-restarts={restarts}",
    ]
    return [sys.executable, *launcher, *program, *map(str, argv)]


def torchrun(*argv: object, **options) -> subprocess.CompletedProcess:
    """Run a command line under torchrun to its end; options as torchrun_command's."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(torchrun_command(*argv, **options), capture_output=True, text=True, env=env, timeout=300)


def children(process: int) -> list[int]:
    """Return the processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def rank_pids(launcher: int) -> dict[int, int]:
    """Return the process of each rank that a torchrun has started."""
    pids = {}
    for child in children(launcher):
        try:
            environ = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:  # it ended
            continue
        pids |= {int(entry[5:]): child for entry in environ if entry.startswith(b"RANK=")}
    return pids


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


def on_its_grid(picture: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """Return every n-th pixel [..., H, W] both ways of a picture that is stored whole or like that."""
    step = -(-picture.shape[-1] // stored.shape[-1])
    return picture[..., ::step, ::step]


def one_line(stderr: str) -> str:
    """Return the error message, which must be the only line that convzoo printed as one."""
    assert "Traceback" not in stderr
    return first_line(stderr)


def first_line(stderr: str) -> str:
    """The same of several ranks, beside torchrun's own words."""
    lines = [line for line in stderr.splitlines() if line.startswith("convzoo: ")]
    assert len(lines) == 1, stderr
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


@contextlib.contextmanager
def file_limit(size: int):
    """Let no file grow beyond size bytes, which ends a write as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def before_step(monkeypatch, number: int, action) -> None:
    """Do something as a step begins."""
    inner = train_module.forward_backward

    def forward_backward(state, batches):
        if state.progress.step == number:
            action()
        return inner(state, batches)

    monkeypatch.setattr(train_module, "forward_backward", forward_backward)
