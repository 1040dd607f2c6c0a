"""Devices and ranks. One process is the one-rank case of the same code; torchrun sets the environment for more."""

import contextlib
import importlib
import itertools
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as td
from torch.distributed.rendezvous import rendezvous

from convzoo.errors import MissingPackageError, UsageError

T = TypeVar("T")
CPUINFO = Path("/proc/cpuinfo")


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def restarts() -> int:
    """Return how often torchrun has started this job's ranks again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def resolve_device(name: str) -> torch.device:
    """Return the device of that name, this rank's own one where there are several.

    Raises:
        UsageError: no such device here.
        MissingPackageError: `npu` without torch_npu.
    """
    if name == "npu" or name.startswith("npu:"):
        try:
            importlib.import_module("torch_npu")
        except ImportError as error:
            raise MissingPackageError(
                f"device {name} needs Ascend's torch_npu: pip install torch_npu ({error})", ("device",)
            ) from None
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        name = accelerator.type if accelerator else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name}: unknown; use auto, cpu, cuda, cuda:1, mps, xpu or npu", ("device",)) from None
    if device.type == "cpu":
        return torch.device("cpu")
    if accelerator is None or device.type != accelerator.type:
        raise UsageError(
            f"device {name}: not available here; there is {accelerator.type if accelerator else 'only cpu'}",
            ("device",),
        )
    index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.accelerator.device_count():
        raise UsageError(
            f"device {name}: index {index}, but there are {torch.accelerator.device_count()} devices", ("device",)
        )
    torch.accelerator.set_device_index(index)
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32, so that numbers are comparable
        torch.backends.cudnn.benchmark = True
    return torch.device(device.type, index)


def start(device: torch.device) -> bool:
    """Join the process group that torchrun announced, if any; returns whether this call did."""
    if world_size() == 1 or td.is_initialized():
        return False
    with _stdout_as_stderr():
        store, _, _ = next(rendezvous("env://"))
        store = td.PrefixStore(_group_name(store), store)  # pyright: ignore[reportPrivateImportUsage]
        backend = td.get_default_backend_for_device(device)
        td.init_process_group(backend, store=store, rank=rank(), world_size=world_size())
    return True


def _group_name(store: td.Store) -> str:  # pyright: ignore[reportPrivateImportUsage]
    """Agree with the other ranks on a name that no earlier start of this job has used.

    torchrun has one store for all its restarts, in which ranks would find the addresses of the dead
    (pytorch/pytorch#167288). A rank greets again and again; a greeting that no longer changes is a dead one's.
    """
    if rank() > 0:
        mine = uuid.uuid4().hex
        for beat in itertools.count():
            store.set(f"greeting/{rank()}", f"{mine} {beat}")
            if store.check([f"answer/{mine}"]):
                return store.get(f"answer/{mine}").decode()
            time.sleep(0.05)
    name = uuid.uuid4().hex
    for other in range(1, world_size()):
        first = store.get(f"greeting/{other}")
        while (greeting := store.get(f"greeting/{other}")) == first:
            time.sleep(0.02)
        store.set(f"answer/{greeting.split()[0].decode()}", name)
    return name


@contextlib.contextmanager
def _stdout_as_stderr() -> Iterator[None]:
    """Send what libraries print to stdout to stderr: PyTorch 2.10's Gloo tells of its connections before the result."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def stop() -> None:
    if td.is_initialized():
        # Gloo's threads need the interpreter's lock to let go of the last tensors. PyTorch 2.10's destructor waits for
        # them with that lock held, and one run in ten never ended; asleep, this thread does not hold it.
        time.sleep(0.2)
        td.destroy_process_group()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Add a small tensor over all ranks, in place."""
    if td.is_initialized():
        td.all_reduce(values)
    return values


def gather_objects(item: T) -> list[T]:
    """Return every rank's item on every rank, in rank order."""
    if not td.is_initialized():
        return [item]
    items = [item] * world_size()
    td.all_gather_object(items, item)
    return items


def first_here() -> int:
    """Return, after all ranks have asked, the process number of the first rank on this machine."""
    machine = os.environ.get("GROUP_RANK", "0")
    processes = gather_objects((machine, int(os.environ.get("LOCAL_RANK", "0")), os.getpid()))
    return min((local, process) for other, local, process in processes if other == machine)[1]


def any_rank(answer: bool) -> bool:
    """Tell whether the answer is true on any rank."""
    return any(gather_objects(answer))


def from_rank_0(item: T) -> T:
    """Return rank 0's item on every rank."""
    if not td.is_initialized():
        return item
    items = [item]
    td.broadcast_object_list(items, src=0)
    return items[0]


def broadcast_buffers(model: torch.nn.Module) -> None:
    """Give every rank the running statistics of rank 0, so that all evaluate the same network."""
    if td.is_initialized():
        for buffer in model.buffers():
            td.broadcast(buffer, src=0)


def computes_bfloat16(device: torch.device) -> bool:
    """Tell whether the hardware itself computes in bfloat16, and faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        try:
            words = set(CPUINFO.read_text().split())
        except OSError:
            return False
        # An Intel core without AMX takes four times as long for a product in bfloat16 as for one in float32.
        vectors = "avx512_bf16" in words and "GenuineIntel" not in words
        return vectors or bool(words & {"amx_bf16", "bf16"})
    return device.type in ("npu", "xpu")
