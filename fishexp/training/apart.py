"""Training of another model than the run's, by methods that learn which weights are to move."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fishexp.training.last_batch import check_last_batch
from fishexp.training.problem import Problem
from fishexp.training.streams import seed_torch, stream
from fishexp.training.trainer import Progress, count_steps, train_steps


class Passes(NamedTuple):
    """Say how often, and in which batches, a model sees the training examples; as in a Recipe."""

    epochs: int
    batch_size: int
    accumulate: int
    drop_last: bool

    def examples(self, problem: Problem) -> int:
        """Count the examples of an epoch."""
        return problem.epoch_size(self.batch_size, drop_last=self.drop_last)

    def epoch_steps(self, problem: Problem) -> int:
        """Count the optimiser steps of an epoch."""
        return count_steps(self.examples(problem), self.batch_size, self.accumulate)


def train_apart(
    problem: Problem,
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    passes: Passes,
    *,
    clip: float | None,
    seed: int,
    prefix: str,
    what: str,
) -> None:
    """Train ``model`` on the examples of a run, as the run does, and leave the run's random streams as they are.

    Processes that train the run's model together train this one together too.

    Args:
        problem: The run's.
        model: What trains, in the place of the run's model.
        clip: Largest norm of the gradient; None for no limit.
        seed: The order of the examples, their augmentation and dropout follow from it.
        prefix: What comes before ``lr`` and ``batch_size`` in the keys of these options, for errors.
        what: Is going on, for the progress.

    Raises:
        FishexpError: If an epoch has a last batch that the model cannot take.
        RunFailed: If the loss stops being finite.
    """
    apart, examples = replace(problem, model=model, order=stream(seed, "order")), passes.examples(problem)
    check_last_batch(apart, examples, passes.batch_size, prefix)
    streams = problem.random_streams()
    seed_torch(seed, "dropout", problem.rank)
    try:
        with problem.progress(passes.epochs * examples, what) as advance:
            for epoch in range(1, passes.epochs + 1):
                progress = Progress(torch.zeros((), device=problem.device), apart.order.get_state(), epoch)
                batches = apart.epoch(passes.batch_size, drop_last=passes.drop_last)
                options = {"accumulate": passes.accumulate, "clip": clip, "prefix": prefix}
                for _, done in train_steps(apart, optimizer, schedule, batches, progress, **options):
                    advance(done)
    finally:
        problem.set_random_streams(streams)


def draw_seed(problem: Problem) -> int:
    """Draw the seed of a training apart from the stream of the method."""
    return int(torch.randint(2**62, (), generator=problem.generator))
