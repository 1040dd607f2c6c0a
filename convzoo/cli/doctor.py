"""The verb `doctor`: what this machine has, what will be in the way, and whether it works."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convzoo import logs
from convzoo.cli.options import Data, Device, Json
from convzoo.errors import ConvzooError, UsageError
from convzoo.plain import JsonObject

if TYPE_CHECKING:
    import torch

    from convzoo.machine import Obstacle

SECONDS = 5.0


def doctor(
    test: Annotated[
        bool, typer.Option("--test", help="Compute, exchange between ranks (under torchrun) and read --data, 5 s each.")
    ] = False,
    data: Data = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Say what this machine has, what will be in the way and what to do about it.

    Several ranks: torchrun --nproc-per-node N -m convzoo doctor --test. Exit 1 where a test fails.
    """
    if data and not test:
        raise UsageError("--data is for --test")
    from convzoo import distributed, machine

    resolved = distributed.resolve_device(device)
    joined = test and distributed.start(resolved)
    logs.setup(distributed.rank())
    try:
        results = _results(resolved, data) if test else {}
    finally:
        if joined:
            distributed.stop()
    if distributed.rank() == 0:
        facts = machine.facts()
        warnings = machine.obstacles(facts)
        plain = {**facts, "warnings": [warning._asdict() for warning in warnings], "tests": results}
        lines = [text(facts, warnings), *([""] if test else []), *map(_line, results.items())]
        print(json.dumps(plain) if json_ else "\n".join(lines))
    failed = [name for name, result in results.items() if not result["ok"]]
    if failed:
        raise ConvzooError(f"tests that failed: {', '.join(failed)}")


def text(facts: JsonObject, warnings: "list[Obstacle]") -> str:
    """Return the facts, and what is in the way, as one screen."""
    versions = f"Python {facts['python']}, torch {facts['torch']}, torchvision {facts['torchvision']}"
    ours = f"{facts['convzoo']} {'at ' + facts['commit'] if facts['commit'] else '(no checkout)'}; {versions}"
    rows = [("convzoo", ours), *_hardware(facts), *_software(facts)]
    lines = [f"{name:11} {value}" for name, value in rows]
    lines += ["", f"{len(warnings)} in the way:" if warnings else "nothing here will be in the way"]
    return "\n".join(lines + [f"! {warning.problem}: {warning.remedy}" for warning in warnings])


def _hardware(facts: JsonObject) -> list[tuple[str, str]]:
    from convzoo.machine import size

    memory, shm, (files, most) = facts["memory"], facts["shm"], facts["limits"]["NOFILE"]
    threads = "OMP_NUM_THREADS" if facts["omp_num_threads"] else "PyTorch's choice"
    cpus = "" if facts["cgroup_cpus"] is None else f", of which this container may use {facts['cgroup_cpus']:g}"
    native = "faster than float32: train.precision=auto takes it"
    slower = "no faster than float32 here: train.precision=auto is fp32"
    gpus = [f"{gpu['name']}, {size(gpu['memory'])}" for gpu in facts["devices"]]
    free = ", ".join(f"{size(disk['free'])} in {disk['path']}" for disk in facts["disks"].values())
    limit = size(memory["cgroup_limit"])
    return [
        ("processor", f"{facts['cpu_name'] or facts['device_name']}; {', '.join(facts['instructions']) or 'plain'}"),
        ("", f"{facts['cpu_cores']} cores{cpus}; {facts['threads']} threads ({threads})"),
        ("devices", "; ".join(gpus) or "none but the processor"),
        ("bfloat16", native if facts["computes_bfloat16"] else slower),
        ("memory", f"{size(memory['total'])}, available {size(memory['available'])}, limit of the container {limit}"),
        ("/dev/shm", "none" if shm is None else f"{size(shm['total'])}, free {size(shm['free'])}"),
        ("disks", f"free {free}; the cache may take {size(facts['cache_limit'])}"),
        ("limits", f"{files or 'any number of'} open files, {most or 'any number'} if asked for (ulimit -n)"),
    ]


def _software(facts: JsonObject) -> list[tuple[str, str]]:
    from convzoo.machine import TOOLS

    rows = []
    for name, extra in facts["extras"].items():
        missing = [package for package, version in extra["packages"].items() if version is None]
        remedy = f"missing {', '.join(missing)}: pip install 'convzoo[{name}]'" if missing else "installed"
        rows.append((f"[{name}]", f"{extra['gives']}; {remedy}"))
    tools = [f"{tool} ({gives}) {'is there' if facts['tools'][tool] else 'missing'}" for tool, gives in TOOLS.items()]
    return [*rows, ("tools", ", ".join(tools))]


def _results(device: "torch.device", data: Path | None) -> dict[str, JsonObject]:
    from convzoo import distributed, machine

    tests: dict[str, Callable[[], JsonObject]] = {"computing": lambda: machine.check_computing(device)}
    if distributed.world_size() > 1:
        tests["all-reduce"] = lambda: machine.check_exchange(device, SECONDS)
    if data:
        tests["reading"] = lambda: machine.check_reading(data, SECONDS)
    results = {}
    for name, test in tests.items():
        try:
            results[name] = test()
        except (ConvzooError, RuntimeError, OSError) as error:
            results[name] = {"ok": False, "problem": " ".join(str(error).split())[:300]}
    return results


def _line(item: tuple[str, JsonObject]) -> str:
    name, result = item
    state = "ok" if result["ok"] else "FAILED"
    if "problem" in result:
        said = result["problem"]
    elif name == "computing":
        said = f"{result['device']}, {result['relative_difference']:.1e} from float64"
    elif name == "all-reduce":
        wrong = f"; wrong sums on ranks {result['wrong_ranks']}" if result["wrong_ranks"] else "; all ranks agree"
        ranks = f"{result['ranks']} ranks on {result['machines']} machines"
        said = f"{ranks}, {result['mb_per_s']:,.0f} MB/s of 16 MiB{wrong}"
    else:
        what = f"{result['files']:,} files or parts, {result['bytes'] / 1e6:,.0f} MB in {result['seconds']:.1f} s"
        said = f"{result['mb_per_s']:,.0f} MB/s, {result['files_per_s']:,.0f} a second ({what})"
    return f"{name:11} {state}: {said}"
