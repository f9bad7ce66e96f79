"""Interleaved timing: a round runs each contender once, so that a slow minute of the machine affects all alike."""

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeAlias

import torch

Times: TypeAlias = dict[str, list[float]]  # contender -> seconds of each round


@dataclass(frozen=True)
class Effort:
    """Limit a measurement: it ends after ``seconds``, but has between ``least`` and ``most`` rounds.

    Attributes:
        warmup: Rounds before the first that is timed.
        repeats: Calls that are timed together; several on a GPU, since training does not wait after each step.
    """

    seconds: float
    least: int = 9
    most: int = 60
    warmup: int = 2
    repeats: int = 1


def interleave(calls: Mapping[str, Callable[[], object]], effort: Effort, device: torch.device) -> Times:
    """Time calls, round by round, with the garbage collector at work between rounds only.

    Returns:
        Seconds of a call of each contender, a number for each round.
    """
    for _ in range(effort.warmup):
        for call in calls.values():
            call()
    times: Times = {name: [] for name in calls}
    start = time.perf_counter()
    gc.freeze()  # objects that exist already need not be searched after each round
    gc.disable()
    try:
        for done in range(effort.most):
            if done >= effort.least and time.perf_counter() - start > effort.seconds:
                break
            gc.collect()
            for name, call in calls.items():
                times[name].append(_seconds(call, effort.repeats, device))
    finally:
        gc.enable()
        gc.unfreeze()
    return times


def _seconds(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait(device)
    return (time.perf_counter() - start) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def single_thread() -> Iterator[None]:
    """Let torch work with one thread until the block ends."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def single_core() -> Iterator[None]:
    """Keep this process on one core until the block ends: torch with one thread, and all other threads beside it."""
    cores = os.sched_getaffinity(0)
    with single_thread():
        os.sched_setaffinity(0, {max(cores)})
        try:
            yield
        finally:
            os.sched_setaffinity(0, cores)


def quartiles(values: list[float]) -> list[float]:
    """Return lower quartile, median and upper quartile."""
    if len(values) == 1:
        return values * 3
    low, _, high = quantiles(values, n=4, method="inclusive")
    return [low, median(values), high]


def ratios(times: Times, name: str, baseline: str) -> list[float]:
    """Return the quartiles of the contender's time as a fraction of the baseline's in the same round."""
    return quartiles([own / reference for own, reference in zip(times[name], times[baseline], strict=True)])
