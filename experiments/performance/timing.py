"""Times of sides that are compared: they take turns, after a call that warms up; medians."""

import os
from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter

import torch
from rich.console import Console

Side = Callable[[], object]
CONSOLE = Console(width=None if os.isatty(1) else 120)


def timed(work: Side, device: str = "cpu", clock: Callable[[], float] = perf_counter) -> float:
    """Return the seconds of one call by a clock, with the device idle before and after it."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def medians(
    sides: Mapping[str, Side],
    repeats: int | Mapping[str, int],
    device: str = "cpu",
    clock: Callable[[], float] = perf_counter,
) -> dict[str, float]:
    """Return the median seconds of each side over its repeats, without its first call."""
    counts = {name: repeats if isinstance(repeats, int) else repeats[name] for name in sides}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(1 + max(counts.values())):
        for name, work in sides.items():
            if turn <= counts[name]:
                times[name].append(timed(work, device, clock))
    return {name: median(taken[1:]) for name, taken in times.items()}
