"""The training loop: epoch by epoch, from the beginning or from wherever a snapshot left it."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal, TypeAlias, TypedDict

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from fishexp.data.datasets import Metrics
from fishexp.errors import RunFailed
from fishexp.fisher.batches import Batches, Inputs
from fishexp.training.evaluate import evaluate
from fishexp.training.logger import Logger, ProgressBar
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshot, Snapshots
from fishexp.training.trainable import Trainable

OptimizerName: TypeAlias = Literal["sgd", "adamw"]
CHECK_STEPS = 20  # optimiser steps between looks at the loss: each look waits for the device


def make_optimizer(
    name: OptimizerName, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
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
class Progress:
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
    place: Progress,
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


STATE = "optimiser."
COUNTS = ("epoch", "steps", "batches", "examples")  # of a Progress


class Recipe(TypedDict):
    """How to train, whatever the regime; conf/recipes.yaml has a value for each data set.

    Attributes:
        epochs: Passes over the training examples; 0 evaluates only.
        batch_size: Examples a pass through the model.
        accumulate: Batches an optimiser step.
        lr: Peak learning rate.
        warmup: Epochs over which the learning rate rises, at most a quarter of all.
        clip: Largest norm of the kept entries' gradient; None for no limit.
        drop_last: Leave out a smaller last batch, unless it is the only one.
        evaluation_batch_size: Examples a pass in evaluation; changes speed only.
    """

    epochs: Annotated[int, Ge(0)]
    batch_size: Annotated[int, Ge(1)]
    accumulate: Annotated[int, Ge(1)]
    lr: Annotated[float, Gt(0)]
    optimiser: OptimizerName
    weight_decay: Annotated[float, Ge(0)]
    warmup: Annotated[float, Ge(0)]
    clip: Annotated[float, Gt(0)] | None
    drop_last: bool
    evaluation_batch_size: Annotated[int, Ge(1)]


class Trainer:
    """The epochs of one run.

    Args:
        quiet: Another worker's course in this process says what there is to say.

    Attributes:
        place: How far it is.
        metrics: After the last epoch.
        optimiser: Of the weights that move now; made by :meth:`optimise`.
        epoch_steps: Optimiser steps an epoch.
    """

    optimiser: Optimizer

    def __init__(
        self, problem: Problem, log: Logger, snapshots: Snapshots, recipe: Recipe, *, quiet: bool = False
    ) -> None:
        self._problem, self._log, self._snapshots, self._recipe = problem, log, snapshots, recipe
        self.metrics: Metrics = {}
        self._bar: ProgressBar | None = None
        self.place = self._beginning(1, 0)
        self._order: Tensor | None = None  # where the order's stream goes on in an epoch that a snapshot cut
        self._examples = problem.epoch_size(recipe["batch_size"], drop_last=recipe["drop_last"])
        self.epoch_steps = math.ceil(math.ceil(self._examples / recipe["batch_size"]) / recipe["accumulate"])
        self._warmup, epochs = recipe["warmup"], recipe["epochs"]
        if self._warmup > epochs / 4:
            self._warmup = epochs / 4
            rises = f"the learning rate rises for {epochs / 4}"
            if not quiet:
                log.say(f"regime.warmup={recipe['warmup']} is over a quarter of {epochs} epochs: {rises}")

    def _beginning(self, epoch: int, steps: int) -> Progress:
        return Progress(torch.zeros((), device=self._problem.device), self._problem.order.get_state(), epoch, steps)

    def optimise(self, parameters: list[nn.Parameter]) -> None:
        """Train these from now on, with no momentum yet."""
        recipe = self._recipe
        self.optimiser = make_optimizer(recipe["optimiser"], parameters, recipe["lr"], recipe["weight_decay"])
        steps = self.epoch_steps * recipe["epochs"], int(self.epoch_steps * self._warmup)
        self._schedule = linear_schedule(self.optimiser, *steps, done=self.place.steps)

    @contextmanager
    def bar(self) -> Iterator[None]:
        """Progress over all epochs."""
        with self._log.bar(self._examples * self._recipe["epochs"]) as self._bar:
            self._bar.skip(self._examples * (self.place.epoch - 1) + self.place.examples)
            yield

    def steps(self) -> Iterator[Tensor]:
        """The present epoch, or what is left of it: the loss of each step after it, on the device."""
        recipe, place = self._recipe, self.place
        if self._bar is not None:
            self._bar.describe(f"epoch {place.epoch}/{recipe['epochs']}")
        batches = self._problem.epoch(
            recipe["batch_size"], drop_last=recipe["drop_last"], done=place.batches, order=self._order
        )
        self._order = None
        options = {"accumulate": recipe["accumulate"], "clip": recipe["clip"]}
        for loss, examples in train_epoch(self._problem, self.optimiser, self._schedule, batches, place, **options):
            yield loss
            if self._bar is not None:
                self._bar.advance(loss, examples)

    def again(self) -> None:
        """Have the next :meth:`steps` go on where the last has come to, with what :meth:`optimise` says then."""
        self._order = self._problem.order.get_state()
        self._problem.order.set_state(self.place.order)

    def epoch(self, moving: Trainable) -> None:
        """The present epoch, or what is left of it; then evaluation."""
        with self._log.clock("train"):
            for loss in self.steps():
                if self._snapshots.due() and loss.isfinite():
                    tensors, about = self.state()
                    about["mask_seed"] = moving.seed
                    self._snapshots.save(self.place.steps, Snapshot(moving.delta(), tensors | moving.tensors(), about))
        with self._log.clock("evaluate"):
            metrics = evaluate(self._problem, self._recipe["evaluation_batch_size"])
        self.end_epoch(metrics)

    def end_epoch(self, metrics: Metrics) -> None:
        """Report the epoch that :meth:`steps` has come to the end of; the next one is the present one then."""
        mean = self.place.loss.item() / self.place.examples
        self.metrics = metrics
        self._log.epoch(self.place.epoch, {"train_loss": mean, **metrics})
        self.next_epoch()

    def next_epoch(self) -> None:
        """As :meth:`end_epoch`, with no word."""
        self.place = self._beginning(self.place.epoch + 1, self.place.steps)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a snapshot has to hold beside the weights, for :meth:`resume`: tensors, and what JSON can hold."""
        place, problem = self.place, self._problem
        tensors = {
            "order.begun": place.order,
            "order.now": problem.order.get_state() if self._order is None else self._order,
            "generator": problem.generator.get_state(),
            **problem.random_streams(),
        }
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"{STATE}{index}.{name}": t.contiguous().cpu() for name, t in state.items() if t is not None}
        return tensors, {"loss": place.loss.item(), **{name: getattr(place, name) for name in COUNTS}}

    def take_up(self, moving: Trainable) -> None:
        """Go on from the latest snapshot, with what moves in it; the snapshot is let go."""
        snapshot = self._snapshots.latest
        assert snapshot is not None  # or there is no mask of it for `moving`
        snapshot.delta.apply_(self._problem.model)
        self.resume(snapshot, moving.parameters)
        self._snapshots.latest = None

    def resume(self, snapshot: Snapshot, parameters: list[nn.Parameter]) -> None:
        """Restore progress, random streams and optimiser of a snapshot; the weights are there."""
        tensors, about, problem = snapshot.tensors, snapshot.about, self._problem
        loss = torch.tensor(about["loss"], device=problem.device)
        counts = {name: about[name] for name in COUNTS}
        self.place = Progress(loss, tensors["order.begun"], **counts)
        self._order = tensors["order.now"] if self.place.batches else None
        problem.order.set_state(self.place.order)
        problem.generator.set_state(tensors["generator"])
        problem.set_random_streams(tensors)
        self.optimise(parameters)
        self._restore_optimiser(snapshot)

    def _restore_optimiser(self, snapshot: Snapshot) -> None:
        """The state of each parameter, in its own memory layout: fused steps read both as they lie."""
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        for name, saved in snapshot.tensors.items():
            if name.startswith(STATE):
                index, _, key = name.removeprefix(STATE).partition(".")
                p: Any = parameters[int(index)]
                own = torch.empty_like(p, dtype=saved.dtype) if saved.shape == p.shape else torch.empty_like(saved)
                self.optimiser.state[p][key] = own.copy_(saved)
