"""Timing that compares: one variant after the other in every round."""

import time
from collections.abc import Callable, Mapping


def alternate(
    variants: Mapping[str, Callable[[], object]], rounds: int, seconds: float
) -> dict[str, list[list[float]]]:
    """Time variants in turn, round after round: what else the machine does then falls on all of them.

    Returns:
        for each variant and round, the seconds that each call took; at least 3 calls, after 2 that do not count.
    """
    times: dict[str, list[list[float]]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            call()
            call()
            durations: list[float] = []
            end = time.perf_counter() + seconds
            while len(durations) < 3 or time.perf_counter() < end:
                started = time.perf_counter()
                call()
                durations.append(time.perf_counter() - started)
            times[name].append(durations)
    return times
