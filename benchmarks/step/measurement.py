"""Measurement of training steps: time of all contenders in turn, and the memory of each."""

import gc
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks import memory
from benchmarks.models import Batch, batches, build
from benchmarks.packages import installed
from benchmarks.relative import RelativeTime, summary
from benchmarks.step import contenders
from benchmarks.step.case import StepCase, choose_mask
from benchmarks.step.check import check_frozen, check_step
from benchmarks.step.contenders import Contender
from benchmarks.timing import Effort, interleave
from fishexp.masks.topk import Mask
from fishexp.system import hardware

PRECISIONS = ("fp32", "bf16")
# times as long as in fp32 that a product may take in bf16; a processor that needs longer emulates it
MAX_SLOWDOWN = 4.0
BASELINE = "dense"


@dataclass(frozen=True)
class StepResult(RelativeTime):
    """Hold the time of a training step and the memory it needs.

    Attributes:
        trained: Number of weights that may change.
        state_bytes: Memory that training adds, see :func:`benchmarks.memory.training_state`.
        peak_bytes: Peak of a GPU's memory, see :func:`benchmarks.memory.peak`; None on a CPU, and where a graph has
            memory of its own.
    """

    trained: int
    state_bytes: int
    peak_bytes: int | None


@dataclass(frozen=True)
class _Prepared:
    """Hold a contender after its first step, the bytes of its state, and all bytes it has on a GPU."""

    contender: Contender
    state_bytes: int
    resident: int


def measure(case: StepCase, device: torch.device, effort: Effort) -> Iterator[StepResult]:
    """Check, then time the contenders whose packages are installed, in both precisions.

    Raises:
        FishexpError: If a result is wrong.
    """
    model, head = build(case.model)
    model = model.to(device).train()
    mask = choose_mask(case, model, head)
    check_step(case, model, mask)
    (batch,) = batches(case.batch, case.batch, case.length, device)
    precisions = _precisions(device)
    for precision in precisions:  # so that memory which the libraries allocate only once is no contender's
        contenders.backward(model, batch, precision)
        model.zero_grad()
    prepared = {name: _prepare(name, model, mask, head, batch) for name in installed(case.contenders)}
    check_frozen(case, prepared["ours"].contender.model, dict(model.named_parameters()), mask)
    for precision in precisions:
        calls = {name: contenders.stepper(p.contender, batch, precision) for name, p in prepared.items()}
        times = interleave(calls, effort, device)
        for name, own in prepared.items():
            yield StepResult(
                **summary(times, name, BASELINE),
                precision=precision,
                total=sum(p.numel() for p in model.parameters()),
                trained=own.contender.trained,
                state_bytes=own.state_bytes,
                peak_bytes=None if own.contender.graphs else memory.peak(calls[name], own.resident, device),
            )
    check_frozen(case, prepared["ours"].contender.model, dict(model.named_parameters()), mask)


def _precisions(device: torch.device) -> tuple[str, ...]:
    """Return the precisions that are worth measuring, and say so if bf16 is not."""
    if device.type == "cpu" and (slowdown := hardware.bf16_slowdown()) > MAX_SLOWDOWN:
        print(f"  bf16 is left out: this CPU emulates it, a product takes {slowdown:.0f} times as long as in fp32")
        return PRECISIONS[:1]
    return PRECISIONS


def _prepare(name: str, model: nn.Module, mask: Mask, head: tuple[str, ...], batch: Batch) -> _Prepared:
    device = next(model.parameters()).device
    gc.collect()  # present garbage would otherwise be freed halfway, and be counted
    allocated = memory.allocated(device)
    model = deepcopy(model)
    before = memory.storages()
    contender = contenders.make(name, model, mask, head)
    contenders.backward(contender.model, batch, "fp32")
    contender.optimizer.step()
    state = memory.training_state(before, contender.optimizer)
    contender.optimizer.zero_grad()
    return _Prepared(contender, state, memory.allocated(device) - allocated)
