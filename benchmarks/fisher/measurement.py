"""Measurement of Fisher scores: a check in float64, then the time of all contenders in turn."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from benchmarks.check import check_close, float64_batches
from benchmarks.fisher import contenders
from benchmarks.fisher.case import FisherCase
from benchmarks.models import batches, build
from benchmarks.packages import installed
from benchmarks.relative import RelativeTime, summary
from benchmarks.timing import Effort, interleave

BASELINE = "loop"
CHECK = "check"


def measure(case: FisherCase, device: torch.device, effort: Effort) -> Iterator[RelativeTime]:
    """Check, then time the contenders whose packages are installed, in fp32.

    Raises:
        FishexpError: If the scores of a contender are wrong.
    """
    model, _ = build(case.model)
    model = model.to(device).eval()
    names = installed(case.contenders)
    check_scores(case, model, [name for name in names if name not in (BASELINE, "batched", CHECK)])
    data = batches(case.examples, case.batch, case.length, device)
    calls = {name: partial(contenders.make(name, model), data) for name in names}
    times = interleave(calls, replace(effort, repeats=1, warmup=1), device)
    if CHECK in times:  # which a run makes once, however many batches it scores
        times["ours"] = [whole - check for whole, check in zip(times["ours"], times[CHECK], strict=True)]
    total = sum(p.numel() for p in model.parameters())
    for name in names:
        yield RelativeTime(**summary(times, name, BASELINE), precision="fp32", total=total)


def check_scores(case: FisherCase, model: nn.Module, names: Sequence[str]) -> None:
    """Check that the scores of each contender in ``names`` are those of the loop, in float64 on a few examples.

    Raises:
        FishexpError: If they are not; names the contender and the first parameter that differs.
    """
    model = deepcopy(model).double().eval()
    few = float64_batches(4, 3, case.length, next(model.parameters()).device)
    expected = contenders.make(BASELINE, model)(few)
    for name in names:
        check_close(f"{case.model}: the scores of {name}", contenders.make(name, model)(few), expected)
