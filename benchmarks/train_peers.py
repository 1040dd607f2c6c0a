"""A training step of batch 8 on a CPU: ours beside timm's default for the same network, images a second.

    python benchmarks/train_peers.py [--threads 2] [--rounds 5] [--steps 3] [--size PX] [--json] [NETWORK ...]

Every way is a process of its own, the ways in turn. Ours is what `convzoo train` does: channels_last, bfloat16 where
the CPU computes in it, glibc told to keep memory. timm's is what its training script does without flags: float32,
contiguous, its own SGD with Nesterov momentum; once as it comes (that ratio counts), once with glibc told the same.
"""

import argparse
import json
import statistics
import sys
import time

from processes import KEPT, environment, run

NETWORKS = {  # ours: (recipe, network), timm's name, size
    "vgg16_bn": ("vgg16-imagenet", {"batch_norm": True}, "vgg16_bn", 224),
    "densenet121": ("densenet121-imagenet", {}, "densenet121", 224),
    "darknet53": ("darknet53-imagenet", {}, "darknet53", 256),
}
BATCH = 8
WAYS = {"convzoo": {}, "timm": {}, "timm, memory kept": KEPT}


def our_step(name: str, size: int):
    import torch
    from torch.nn import functional as F

    from convzoo import distributed
    from convzoo.config import recipe as recipes
    from convzoo.config import registry
    from convzoo.training.optim import build_optimizer

    recipe_name, keys, _, _ = NETWORKS[name]
    recipe = recipes.load(recipe_name)
    model = registry.bind("model", {**recipe.model, **keys})().train().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, recipe.optim)
    images = torch.randn(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(0, 1000, (BATCH,))
    low = distributed.computes_bfloat16(torch.device("cpu"))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            outputs = model(images)
        F.cross_entropy(outputs.float(), targets).backward()
        optimizer.step()

    return step


def timm_step(name: str, size: int):
    import timm
    import torch
    from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
    from torch.nn import functional as F

    model = timm.create_model(NETWORKS[name][2]).train()
    optimizer = create_optimizer_v2(model, "sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)
    images, targets = torch.randn(BATCH, 3, size, size), torch.randint(0, 1000, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()

    return step


def measure(way: str, name: str, steps: int, size: int) -> float:
    """Return the images a second of the median step, after one that pays for what happens once."""
    from convzoo.environment import keep_memory

    if way == "convzoo":
        keep_memory()
    step = our_step(name, size) if way == "convzoo" else timm_step(name, size)
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return BATCH / statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--size", type=int, help="side of the pictures; the network's by default")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=list(WAYS), help="measure this way alone, in this process")
    arguments = parser.parse_args()
    if arguments.way:
        name = arguments.networks[0]
        print(measure(arguments.way, name, arguments.steps, arguments.size or NETWORKS[name][3]))
        return
    result, side = {}, ["--size", str(arguments.size)] if arguments.size else []
    for name in arguments.networks:
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(arguments.rounds):
            for way, variables in WAYS.items():
                command = [sys.executable, __file__, name, "--way", way, "--steps", str(arguments.steps), *side]
                rates[way].append(float(run(command, environment(arguments.threads, **variables))[3]))
        medians = {way: statistics.median(values) for way, values in rates.items()}
        result[name] = {"images_per_s": medians, "times": medians["convzoo"] / medians["timm"]}
        if not arguments.json:
            shown = ", ".join(f"{way} {value:.2f} img/s" for way, value in medians.items())
            print(f"{name}: {shown}; {result[name]['times']:.2f} times timm", flush=True)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
