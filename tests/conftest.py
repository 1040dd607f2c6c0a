"""What several tests share: where the reference data lies, and the command line run in-process."""

import functools
import os
from pathlib import Path

import pytest
import torch

from convzoo import cli
from convzoo.training.checkpoints import load_state

SHARED = Path(os.environ.get("CONVZOO_SHARED", Path(__file__).resolve().parents[2] / "shared"))
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


@pytest.fixture(autouse=True, scope="session")
def _threads():
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"reference data not found at {SHARED} (set CONVZOO_SHARED)")
    return SHARED


@pytest.fixture
def run(capsys):
    """Run a command line; return its exit code, stdout and stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(part) for part in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """A finished run of tinydarknet on small digits, good enough to be right about most of them."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert (
        cli.main(
            ["train", "tinydarknet-digits", *QUICK, "data.max_train_images=null", "train.epochs=3", "--out", str(out)]
        )
        == 0
    )
    return out


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


@pytest.fixture
def in_float64():
    """Compute in float64, where rounding is too small to move a ReLU or a maximum to the other side."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def one_line(stderr: str) -> str:
    """Return the error message, which must be the only line that convzoo printed as one."""
    lines = [line for line in stderr.splitlines() if line.startswith("convzoo: ")]
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    return lines[0]


def momenta(run: Path) -> dict[str, torch.Tensor]:
    """Return the sums of gradients that a run ended with: more sensitive than its weights."""
    state = load_state(run / "checkpoints/last.state.pt")["optimizer"]["state"]
    return {str(name): entry["momentum_buffer"] for name, entry in state.items()}


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the largest relative difference max|a-b| / max|b| of any tensor."""
    assert a.keys() == b.keys()
    pairs = ((a[name].double(), b[name].double()) for name in a)
    return max(float((x - y).abs().max() / y.abs().max().clamp(min=1e-12)) for x, y in pairs)
