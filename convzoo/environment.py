"""What a number is judged by: versions, hardware, commit and command. PyTorch is imported only where it is asked."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convzoo.logs import redacted
from convzoo.version import __version__

if TYPE_CHECKING:
    import torch


OPTIONAL = ("timm", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "mindspore", "torch_npu")
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "safetensors", "pydantic")


def environment(device: "torch.device") -> dict[str, Any]:
    """Return versions, hardware and commit, to judge a number by."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "convzoo": __version__,
        "commit": _git_commit(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "cpu_cores": cores,
        "threads": torch.get_num_threads(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }


def optional_packages() -> dict[str, str | None]:
    """Return the versions of what the extras need, None where it is not installed."""
    versions: dict[str, str | None] = {}
    for name in OPTIONAL:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def command_line(argv: list[str]) -> str:
    """Return the command as typed, without the passwords of URLs."""
    return shlex.join(["convzoo", *map(redacted, argv)])


def _git_commit() -> str | None:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
