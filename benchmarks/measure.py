"""One case from its model to what its records say."""

import gc
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from benchmarks import contenders, fishers, memory
from benchmarks.cases import Batch, Case, batches, build, choose_mask
from benchmarks.check import check_fisher, check_frozen, check_step
from benchmarks.contenders import Contender
from benchmarks.timing import Effort, Times, interleave, quartiles, ratios
from fishexp.masks.topk import Mask

PRECISIONS = ("fp32", "bf16")
PACKAGES = {"SHiRA": "peft", "Super-Tuning": "peft", "BackPACK": "backpack"}


@dataclass(frozen=True)
class Measured:
    """One contender in one case.

    Attributes:
        seconds: Of a step, or of scoring all examples: lower quartile, median, upper quartile.
        ratio: The same, of the time as a fraction of the baseline's in the same round.
        total: Weights of the model.
        trained: Those that may move.
        state_bytes: Of :func:`benchmarks.memory.training_state`.
        peak_bytes: Of :func:`benchmarks.memory.peak`.
    """

    contender: str
    baseline: str
    precision: str
    seconds: list[float]
    ratio: list[float]
    rounds: int
    total: int
    trained: int | None = None
    state_bytes: int | None = None
    peak_bytes: int | None = None

    def __str__(self) -> str:
        low, middle, high = self.ratio
        return (
            f"{self.contender:12} {self.seconds[1]:9.4f} s, "
            f"{middle:.3f} ({low:.3f} to {high:.3f}) of {self.baseline}, {self.rounds} rounds"
        )


@dataclass(frozen=True)
class _Ready:
    """A contender after its first step. ``resident``: bytes it holds on a GPU."""

    contender: Contender
    state_bytes: int
    resident: int


def measure(case: Case, device: torch.device, effort: Effort) -> Iterator[Measured]:
    """Check, then time the contenders whose packages are installed.

    Raises:
        FishexpError: If a result is wrong.
    """
    model, head = build(case.model)
    names = tuple(name for name in case.contenders if name not in PACKAGES or find_spec(PACKAGES[name]))
    if case.benchmark == "fisher":
        yield from _fisher(case, names, model.to(device).eval(), effort)
    else:
        yield from _step(case, names, model.to(device).train(), head, effort)


def _step(
    case: Case, names: tuple[str, ...], model: nn.Module, head: tuple[str, ...], effort: Effort
) -> Iterator[Measured]:
    mask = choose_mask(case, model, head)
    check_step(case, model, mask)
    device = next(model.parameters()).device
    (batch,) = batches(case.batch, case.batch, case.length, device)
    for precision in PRECISIONS:  # what the libraries allocate once is no contender's
        contenders.backward(model, batch, precision)
        model.zero_grad()
    ready = {name: _prepare(name, model, mask, head, batch) for name in names}
    check_frozen(case, ready["ours"].contender.model, dict(model.named_parameters()), mask)
    for precision in PRECISIONS:
        calls = {name: partial(contenders.step, one.contender, batch, precision) for name, one in ready.items()}
        times = interleave(calls, effort, device)
        for name, one in ready.items():
            yield Measured(
                **_times(times, name, "dense"),
                precision=precision,
                total=sum(p.numel() for p in model.parameters()),
                trained=one.contender.trained,
                state_bytes=one.state_bytes,
                peak_bytes=memory.peak(calls[name], one.resident, device),
            )
    check_frozen(case, ready["ours"].contender.model, dict(model.named_parameters()), mask)


def _prepare(name: str, model: nn.Module, mask: Mask, head: tuple[str, ...], batch: Batch) -> _Ready:
    device = next(model.parameters()).device
    gc.collect()  # what is garbage by now is not to be freed halfway, and counted
    allocated = memory.allocated(device)
    model = deepcopy(model)
    before = memory.storages()
    contender = contenders.make(name, model, mask, head)
    contenders.backward(contender.model, batch, "fp32")
    contender.optimiser.step()
    state = memory.training_state(before, contender.optimiser)
    contender.optimiser.zero_grad()
    return _Ready(contender, state, memory.allocated(device) - allocated)


def _fisher(case: Case, names: tuple[str, ...], model: nn.Module, effort: Effort) -> Iterator[Measured]:
    check_fisher(case, model, tuple(name for name in names if name not in ("loop", "batched")))
    assert case.examples is not None
    device = next(model.parameters()).device
    data = batches(case.examples, case.batch, case.length, device)
    calls = {name: partial(fishers.make(name, model), data) for name in names}
    times = interleave(calls, replace(effort, repeats=1, warmup=1), device)
    for name in names:
        total = sum(p.numel() for p in model.parameters())
        yield Measured(**_times(times, name, "loop"), precision="fp32", total=total)


def _times(times: Times, name: str, baseline: str) -> dict[str, Any]:
    return {
        "contender": name,
        "baseline": baseline,
        "seconds": quartiles(times[name]),
        "ratio": ratios(times, name, baseline),
        "rounds": len(times[name]),
    }
