"""The training loop: epoch by epoch, from the beginning or from wherever a snapshot left it."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated, Any, Literal, TypeAlias, TypedDict

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from fishexp.data.datasets import Metrics
from fishexp.errors import RunFailed
from fishexp.fisher.batches import Batches, Inputs
from fishexp.training.adapted import Adapted
from fishexp.training.data_parallel import (
    add_up_gradients,
    all_random_streams,
    any_process,
    check_same_weights,
    resume_random_streams,
    shares,
    take_running_statistics,
)
from fishexp.training.epoch_choice import EpochChoice, MetricName
from fishexp.training.evaluate import Evaluation, evaluate
from fishexp.training.last_batch import check_last_batch
from fishexp.training.logger import Logger, ProgressBar
from fishexp.training.passes import StepPasses, graphed_passes, run_passes
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshot, Snapshots
from fishexp.training.trainable import Trainable

OptimizerName: TypeAlias = Literal["sgd", "adamw"]
CHECK_STEPS = 20  # optimiser steps between looks at the loss: each look waits for the device
STATE = "optimiser."  # prefix of the optimiser's tensors in a snapshot
GROUP = "regime."  # prefix of the keys of a recipe on the command line
COUNTS = ("epoch", "steps", "batches", "examples")  # fields of Progress in a snapshot


class Recipe(TypedDict):
    """Say how to train, whatever the regime; conf/recipes.yaml has a value for each data set.

    Attributes:
        epochs: Passes over the training examples; 0 evaluates only.
        batch_size: Examples in a pass through the model.
        accumulate: Batches in an optimiser step.
        lr: Peak learning rate.
        warmup: Epochs over which the learning rate rises, at most a quarter of all.
        clip: Largest norm of the kept entries' gradient; None for no limit.
        drop_last: Leave out a smaller last batch, unless it is the only batch.
        patience: Epochs without a better one after which training stops; None trains all epochs.
        best: Ends with the weights of the best epoch instead of those of the last.
        metric: By which an epoch is better; None for the data set's headline metric.
        validation_fraction: Share of the training examples that is held out for that, before the regime begins.
        evaluation_batch_size: Examples in a pass of evaluation; changes speed only.
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
    patience: Annotated[int, Ge(1)] | None
    best: bool
    metric: MetricName | None
    validation_fraction: Annotated[float, Gt(0), Lt(1)]
    evaluation_batch_size: Annotated[int, Ge(1)]


@dataclass
class Progress:
    """Count how far training is.

    Attributes:
        loss: Sum of the losses of this epoch's examples so far, on the device: nothing waits for it.
        order: State of the generator of the data's order as the epoch began.
        epoch: The present epoch, from 1.
        steps: Optimiser steps since the beginning.
        batches: Batches of this epoch that are done.
        examples: Examples of this epoch that are done.
    """

    loss: Tensor
    order: Tensor
    epoch: int = 1
    steps: int = 0
    batches: int = 0
    examples: int = 0


class Trainer:
    """Train a model for the epochs of a run, take snapshots on the way, and resume from one.

    Args:
        quiet: Say nothing, as another worker's trainer in this process says it.
        choice: Chooses the epoch, by examples that are held out for it; None where the last is taken.

    Attributes:
        progress: How far training is.
        evaluation: Metrics and predictions on the reported examples after the last epoch, made by :meth:`run_epoch`;
            where an epoch is chosen, of the weights that are taken, made by :meth:`finish`.
        optimizer: Optimiser of the weights that train now; made by :meth:`start_optimizer`.
        epoch_steps: Optimiser steps in an epoch.
    """

    evaluation: Evaluation
    optimizer: Optimizer

    def __init__(
        self,
        problem: Problem,
        logger: Logger,
        snapshots: Snapshots,
        recipe: Recipe,
        *,
        quiet: bool = False,
        choice: EpochChoice | None = None,
    ) -> None:
        self._problem, self._logger, self._snapshots, self._recipe = problem, logger, snapshots, recipe
        self._choice = choice
        self._bar: ProgressBar | None = None
        self._passes: StepPasses | None = None
        self._said: set[str] = set()
        self.progress = self._epoch_start(1, 0)
        self._order: Tensor | None = None  # where the order's stream resumes in an epoch that a snapshot cut
        self._examples = problem.epoch_size(recipe["batch_size"], drop_last=recipe["drop_last"])
        check_last_batch(problem, self._examples, recipe["batch_size"], GROUP)
        self.epoch_steps = count_steps(self._examples, recipe["batch_size"], recipe["accumulate"])
        epochs = recipe["epochs"]
        self._warmup = limit_warmup(recipe["warmup"], epochs)
        if self._warmup < recipe["warmup"] and not quiet:
            quarter = f"a quarter of {epochs} epoch{'s' * (epochs > 1)}"
            rises = f"the learning rate rises for {self._warmup}"
            logger.say(f"regime.warmup={recipe['warmup']} is over {quarter}: {rises}")
        patience = (recipe["patience"] or 0) if choice else 0
        if 0 < patience >= epochs - 1:  # the first epoch is the best so far
            more = patience + 1
            logger.say(f"regime.patience={patience} stops nothing in {epochs} epochs; it is for more than {more}")

    def _epoch_start(self, epoch: int, steps: int) -> Progress:
        return Progress(torch.zeros((), device=self._problem.device), self._problem.order.get_state(), epoch, steps)

    def start_optimizer(self, parameters: list[nn.Parameter]) -> None:
        """Make a new optimiser, without momentum yet, for the parameters that train from now on."""
        recipe = self._recipe
        self.optimizer = make_optimizer(recipe["optimiser"], parameters, recipe["lr"], recipe["weight_decay"])
        if self._problem.cuda_graphs:
            self._passes = graphed_passes(self._problem, parameters, self._say_once)
        steps = self.epoch_steps * recipe["epochs"], int(self.epoch_steps * self._warmup)
        self._schedule = linear_schedule(self.optimizer, *steps, done=self.progress.steps)

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._logger.say(line)

    @contextmanager
    def bar(self) -> Iterator[None]:
        """Show progress over all epochs."""
        with self._logger.bar(self._examples * self._recipe["epochs"]) as self._bar:
            self._bar.skip(self._examples * (self.progress.epoch - 1) + self.progress.examples)
            yield

    @property
    def ended(self) -> bool:
        """Tell whether there is no epoch left to train."""
        stopped = self._choice is not None and self._choice.stopped
        return stopped or self.progress.epoch > self._recipe["epochs"]

    def run_epoch(self, trainable: Trainable | Adapted) -> None:
        """Train for the present epoch, or what is left of it, with snapshots where they are due; then evaluate."""
        with self._logger.clock("train"):
            for loss in self.steps():
                if any_process(self._problem, self._snapshots.due()) and loss.isfinite():
                    self._save(trainable)
        check_same_weights(self._problem, trainable, f"after epoch {self.progress.epoch}")
        with self._logger.clock("evaluate"):
            take_running_statistics(self._problem)
            sets = self._choice.sets if self._choice is not None else None
            evaluation = evaluate(self._problem, self._recipe["evaluation_batch_size"], sets)
            if self._choice is None:
                self.evaluation = evaluation
            else:
                self._choice.note(self.progress.epoch, evaluation.metrics, trainable.parameters)
        self.end_epoch(evaluation.metrics)

    def finish(self, trainable: Trainable | Adapted) -> dict[str, Any]:
        """Take the weights of the epoch that is chosen, and report on them, once.

        Returns:
            What the record says of the choice; nothing where the last epoch is taken without one.
        """
        if self._choice is None:
            return {}
        for line in self._choice.take(trainable.parameters):
            self._logger.say(line)
        with self._logger.clock("evaluate"):
            self.evaluation = evaluate(self._problem, self._recipe["evaluation_batch_size"])
        about = self._choice.about()
        self._logger.result(about["taken"], self.evaluation.metrics, trained=about["trained"])
        return about

    def _save(self, trainable: Trainable | Adapted) -> None:
        """Take a snapshot; of several processes that train one model together the first writes it for all."""
        tensors, about = self.state()
        if self._problem.rank == 0:
            about["mask_seed"] = trainable.seed
            snapshot = Snapshot(trainable.delta(), tensors | trainable.tensors(), about)
            self._snapshots.save(self.progress.steps, snapshot)

    def steps(self) -> Iterator[Tensor]:
        """Take the optimiser steps that are left of the present epoch; yields the loss of each, on the device."""
        recipe, progress = self._recipe, self.progress
        if self._bar is not None:
            self._bar.describe(f"epoch {progress.epoch}/{recipe['epochs']}")
        batches = self._problem.epoch(
            recipe["batch_size"], drop_last=recipe["drop_last"], done=progress.batches, order=self._order
        )
        self._order = None
        options = {"accumulate": recipe["accumulate"], "clip": recipe["clip"], "prefix": GROUP, "passes": self._passes}
        for loss, examples in train_steps(self._problem, self.optimizer, self._schedule, batches, progress, **options):
            yield loss
            if self._bar is not None:
                self._bar.advance(loss, examples)

    def resume_epoch(self) -> None:
        """Let the next call of :meth:`steps` resume the present epoch, with the optimiser that is there by then."""
        self._order = self._problem.order.get_state()
        self._problem.order.set_state(self.progress.order)

    def end_epoch(self, metrics: Metrics) -> None:
        """Report the epoch whose :meth:`steps` are done, and begin the next."""
        mean = self.progress.loss.item() / self.progress.examples
        self._logger.epoch(self.progress.epoch, {"train_loss": mean, **metrics})
        self.begin_next_epoch()

    def begin_next_epoch(self) -> None:
        """Begin the next epoch without a report of the last."""
        self.progress = self._epoch_start(self.progress.epoch + 1, self.progress.steps)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what :meth:`restore` needs beside the weights: tensors, and values for JSON."""
        progress, problem = self.progress, self._problem
        tensors = {
            "order.begun": progress.order,
            "order.now": problem.order.get_state() if self._order is None else self._order,
            "generator": problem.generator.get_state(),
            **all_random_streams(problem),
        }
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{STATE}{index}.{name}": t.contiguous().cpu() for name, t in state.items() if t is not None}
        about = {"loss": progress.loss.item(), "gradient_costs": problem.costs.to_json()}
        if self._choice is not None:
            tensors |= self._choice.tensors()
            about["epoch_choice"] = self._choice.state()
        return tensors, about | {name: getattr(progress, name) for name in COUNTS}

    def resume(self, snapshot: Snapshot, trainable: Trainable | Adapted) -> None:
        """Resume from a snapshot, whose mask or adapters ``trainable`` has."""
        snapshot.delta.apply_(self._problem.model)
        self.restore(snapshot, trainable.parameters)

    def restore(self, snapshot: Snapshot, parameters: list[nn.Parameter]) -> None:
        """Restore progress, random streams and optimiser from a snapshot whose weights are in the model already."""
        tensors, about, problem = snapshot.tensors, snapshot.about, self._problem
        loss = torch.tensor(about["loss"], device=problem.device)
        self.progress = Progress(loss, tensors["order.begun"], **{name: about[name] for name in COUNTS})
        self._order = tensors["order.now"] if self.progress.batches else None
        problem.order.set_state(self.progress.order)
        problem.generator.set_state(tensors["generator"])
        resume_random_streams(problem, tensors)
        if self._choice is not None:
            self._choice.restore(about["epoch_choice"], tensors)
        self.start_optimizer(parameters)
        self._restore_optimizer(snapshot)

    def _restore_optimizer(self, snapshot: Snapshot) -> None:
        """Restore the state of each parameter in its own memory layout: fused steps read both as they lie."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, saved in snapshot.tensors.items():
            if name.startswith(STATE):
                index, _, key = name.removeprefix(STATE).partition(".")
                p: Any = parameters[int(index)]
                own = torch.empty_like(p, dtype=saved.dtype) if saved.shape == p.shape else torch.empty_like(saved)
                self.optimizer.state[p][key] = own.copy_(saved)


def train_steps(
    problem: Problem,
    optimizer: Optimizer,
    schedule: LRScheduler,
    batches: Batches,
    progress: Progress,
    *,
    accumulate: int,
    clip: float | None,
    prefix: str,
    passes: StepPasses | None = None,
) -> Iterator[tuple[Tensor, int]]:
    """Train on ``batches``, an optimiser step at a time, and count the steps in ``progress``.

    Args:
        accumulate: Batches in an optimiser step; the gradient is that of the mean loss over all their examples.
        clip: Largest norm of the kept entries' gradient; None for no limit.
        prefix: What comes before ``lr`` in the key of the learning rate, for errors: ``regime.``.
        passes: Runs the forward and the backward pass of a batch; None for :func:`run_passes`.

    Yields:
        After each step its mean loss (a tensor, on the device; in nats for classes) and its number of examples.

    Raises:
        RunFailed: If the loss stops being finite; says at which step of the epoch.
    """
    passes = passes or partial(run_passes, problem)
    problem.model.train()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    first_bad = torch.tensor(math.inf, device=problem.device)
    done = progress.batches // accumulate
    for step, group in enumerate(_grouped(batches, accumulate), done + 1):
        examples = sum(len(labels) for _, labels in group)
        step_loss = torch.zeros((), device=problem.device)
        for inputs, labels in shares(problem, group):
            step_loss += passes(inputs, labels, len(labels) / examples)
        step_loss = add_up_gradients(problem, parameters, step_loss)
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

        progress.steps += 1
        progress.batches += len(group)
        progress.examples += examples
        progress.loss += step_loss * examples  # stays on the device: no wait per step
        first_bad = torch.where(step_loss.isfinite(), first_bad, first_bad.clamp(max=step))
        if step % CHECK_STEPS == 0:
            _check_finite(first_bad, progress.epoch, prefix)
        yield step_loss, examples
    _check_finite(first_bad, progress.epoch, prefix)


def _grouped(batches: Batches, size: int) -> Iterator[list[tuple[Inputs, Tensor]]]:
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


def _check_finite(first_bad: Tensor, epoch: int, prefix: str) -> None:
    if math.isfinite(step := first_bad.item()):
        raise RunFailed(f"epoch {epoch}: the loss is not finite at step {step:.0f}; lower {prefix}lr")


def count_steps(examples: int, batch_size: int, accumulate: int) -> int:
    """Count the optimiser steps of an epoch."""
    return math.ceil(math.ceil(examples / batch_size) / accumulate)


def limit_warmup(warmup: float, epochs: int) -> float:
    """Return over how many epochs the learning rate rises: at most a quarter of all."""
    return min(warmup, epochs / 4)


def make_optimizer(
    name: OptimizerName, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> Optimizer:
    """Make SGD with Nesterov momentum 0.9, or AdamW with betas 0.9 and 0.999: the two the paper trains with."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True, weight_decay=weight_decay, fused=True)
    return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=True)


def linear_schedule(optimizer: Optimizer, steps: int, warmup: int, done: int = 0) -> LRScheduler:
    """Raise the learning rate in a straight line over ``warmup`` steps, then lower it to 0 after ``steps``.

    Args:
        done: Steps that were taken before.
    """
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return LambdaLR(optimizer, linear_factor(steps, warmup), last_epoch=done - 1)


def linear_factor(steps: int, warmup: int) -> Callable[[int], float]:
    """Return the function that :func:`linear_schedule` multiplies a learning rate by: of the steps that were taken."""

    def factor(step: int) -> float:
        return min((step + 1) / warmup if warmup else 1.0, (steps - step) / max(steps - warmup, 1))

    return factor
