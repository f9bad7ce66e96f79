"""The one training loop, and evaluation."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from fishexp.errors import RunFailed
from fishexp.examples import Examples, Metrics
from fishexp.inputs import Batches, Inputs
from fishexp.problem import Problem

OptimiserName: TypeAlias = Literal["sgd", "adamw"]
CHECK_STEPS = 20  # optimiser steps between looks at the loss: each look waits for the device


def make_optimiser(
    name: OptimiserName, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> Optimizer:
    """SGD with Nesterov momentum 0.9, or AdamW with betas 0.9 and 0.999: the two the paper trains with."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True, weight_decay=weight_decay, fused=True)
    return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=True)


def linear_schedule(optimiser: Optimizer, steps: int, warmup: int, done: int = 0) -> LRScheduler:
    """Learning rate up in a straight line over ``warmup`` steps, then down to 0 after ``steps``.

    Args:
        done: Steps that were taken before.
    """
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]

    def factor(step: int) -> float:
        return min((step + 1) / warmup if warmup else 1.0, (steps - step) / max(steps - warmup, 1))

    return LambdaLR(optimiser, factor, last_epoch=done - 1)


@dataclass
class Place:
    """How far training is.

    Attributes:
        epoch: The present one, from 1.
        steps: Optimiser steps since the beginning.
        batches: Of this epoch, done.
        examples: Of this epoch, done.
        loss: Sum over these examples, on the device: nothing waits for it.
        order: State of the generator of the data's order as the epoch began.
    """

    loss: Tensor
    order: Tensor
    epoch: int = 1
    steps: int = 0
    batches: int = 0
    examples: int = 0


def train_epoch(
    problem: Problem,
    optimiser: Optimizer,
    schedule: LRScheduler,
    batches: Batches,
    place: Place,
    *,
    accumulate: int,
    clip: float | None,
) -> Iterator[tuple[Tensor, int]]:
    """One pass over ``batches``, a step at a time; ``place`` moves on with it.

    Args:
        accumulate: Batches an optimiser step; the gradient is that of the mean loss over all their examples.
        clip: Largest norm of the kept entries' gradient; None for no limit.

    Yields:
        After each step its mean loss (a tensor, on the device; in nats for classes) and its number of examples.

    Raises:
        RunFailed: If the loss stops being finite; says at which step of the epoch.
    """
    problem.model.train()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    first_bad = torch.tensor(math.inf, device=problem.device)
    begun = place.batches // accumulate
    for step, group in enumerate(_grouped(batches, accumulate), begun + 1):
        examples = sum(len(labels) for _, labels in group)
        step_loss = torch.zeros((), device=problem.device)
        for inputs, labels in group:
            loss = problem.loss(problem.logits(inputs), labels) * (len(labels) / examples)
            loss.backward()  # gradients of the kept entries, and of nothing else
            step_loss += loss.detach()
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()

        place.steps += 1
        place.batches += len(group)
        place.examples += examples
        place.loss += step_loss * examples  # stays on the device: no wait per step
        first_bad = torch.where(step_loss.isfinite(), first_bad, first_bad.clamp(max=step))
        if step % CHECK_STEPS == 0:
            _check(first_bad, place.epoch)
        yield step_loss, examples
    _check(first_bad, place.epoch)


def _grouped(batches: Batches, size: int) -> Iterator[list[tuple[Inputs, Tensor]]]:
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


def _check(first_bad: Tensor, epoch: int) -> None:
    if math.isfinite(step := first_bad.item()):
        raise RunFailed(f"epoch {epoch}: the loss is not finite at step {step:.0f}; lower regime.lr")


@torch.no_grad()
def evaluate(problem: Problem, size: int) -> Metrics:
    """The data set's metrics and the loss over its reported examples, in evaluation mode.

    Workers in several processes, which have to hold the same weights, share the work.

    Args:
        size: Examples a batch; changes speed only.

    Raises:
        RunFailed: If the loss is not finite.
    """
    problem.model.eval()
    metrics: Metrics = {}
    for name, examples in problem.data.valid.items():
        logits, labels = _outputs(problem, examples, size)
        loss = problem.loss(logits, labels).item()
        if not math.isfinite(loss):
            raise RunFailed(f"the loss over the {len(labels)} reported examples is not finite; lower regime.lr")
        found = problem.data.metrics(logits, labels) | {"loss": loss}
        metrics |= {f"{metric}_{name}" if name else metric: value for metric, value in found.items()}
    return metrics


def _outputs(problem: Problem, examples: Examples, size: int) -> tuple[Tensor, Tensor]:
    """Logits and labels of all examples, on the CPU. A batch has the same bits whichever worker computes it."""
    crew = problem.crew
    shared = len(crew.local) < crew.size
    share = slice(crew.local[0], None, crew.size) if shared else slice(None)
    outputs = [problem.logits(inputs).cpu() for inputs, _ in problem.evaluation(examples, size, share)]
    logits = torch.cat([torch.zeros(0, problem.data.classes), *outputs])
    labels = examples.labels[problem.evaluation_order(examples)].cpu()
    if not shared:
        return logits, labels
    batches = torch.arange(len(examples)).split(size)
    shares = [torch.cat([torch.arange(0), *batches[rank :: crew.size]]) for rank in range(crew.size)]
    padded = logits.new_zeros(len(shares[0]), logits.shape[1])
    padded[: len(logits)] = logits
    sent = crew.sent
    rows = crew.gather([padded.flatten()]).view(crew.size, *padded.shape)
    crew.sent = sent  # what training sends is counted, not what looking at it does
    whole = logits.new_empty(len(examples), logits.shape[1])
    for row, index in zip(rows, shares, strict=True):
        whole[index] = row[: len(index)]
    return whole, labels
