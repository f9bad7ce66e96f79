"""Interleaved timing: a round runs each contender once, so that a slow minute of the machine hits all alike."""

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
    """How long to measure: until ``seconds`` are over, but between ``least`` and ``most`` rounds after the warm-up.

    Attributes:
        repeats: Steps a measurement; on a GPU several, since in training nobody waits after each.
    """

    seconds: float
    least: int = 9
    most: int = 60
    warmup: int = 2
    repeats: int = 1


def interleave(calls: Mapping[str, Callable[[], object]], effort: Effort, device: torch.device) -> Times:
    """Seconds of one call of each contender, round by round, with the garbage collector at work between rounds only."""
    for _ in range(effort.warmup):
        for call in calls.values():
            call()
    times: Times = {name: [] for name in calls}
    start = time.perf_counter()
    gc.freeze()  # what is there already need not be looked through each time
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
def one_thread() -> Iterator[None]:
    """Have torch work with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def one_core() -> Iterator[None]:
    """Work on one core: torch with one thread, and whatever other threads there are beside it on the same core."""
    cores = os.sched_getaffinity(0)
    with one_thread():
        os.sched_setaffinity(0, {max(cores)})
        try:
            yield
        finally:
            os.sched_setaffinity(0, cores)


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values * 3
    low, _, high = quantiles(values, n=4, method="inclusive")
    return [low, median(values), high]


def ratios(times: Times, name: str, baseline: str) -> list[float]:
    """Quartiles of the contender's time as a fraction of the baseline's in the same round."""
    return quartiles([a / b for a, b in zip(times[name], times[baseline], strict=True)])
