"""A worker among several: its model, its part of the data, its optimiser and its random streams."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fishexp.distributed.base_values import BaseValues
from fishexp.errors import RunFailed
from fishexp.masks.positions import mask_to_positions
from fishexp.masks.topk import Mask
from fishexp.sparse.parameter import weights
from fishexp.training.logger import Logger
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshot, Snapshots
from fishexp.training.streams import seed_torch, stream
from fishexp.training.trainable import Decay, Trainable, transfer_optimizer_state
from fishexp.training.trainer import Recipe, Trainer


class Worker:
    """Train one worker's model, some steps at a time.

    Args:
        problem: The worker's own, from :func:`worker_problem`.
        snapshots: The worker's own.
        quiet: Leave it to another worker in this process to write what there is to write.

    Attributes:
        failure: Why the worker cannot go on; empty if it can.
        base_values: What its model was before training.
    """

    def __init__(
        self, rank: int, problem: Problem, logger: Logger, snapshots: Snapshots, recipe: Recipe, *, quiet: bool
    ) -> None:
        self.rank, self.problem, self.failure = rank, problem, ""
        self.trainer = Trainer(problem, logger, snapshots, recipe, quiet=quiet)
        self.base_values = BaseValues(problem.model)
        self._snapshots = snapshots
        self._trainable: Trainable | None = None
        self._steps: Iterator[Tensor] | None = None  # of the present epoch
        self._streams = problem.random_streams()
        with self._own_random_streams():
            seed_torch(problem.seed, "dropout", rank)

    def set_mask(self, mask: Mask | None, decay: Decay) -> None:
        """Train the entries of this mask from now on (None: all); those that stay keep their momentum."""
        if self._steps is not None:
            self.trainer.resume_epoch()
            self._steps = None
        before = self._trainable
        old = self.trainer.optimizer if before else None
        self._trainable = Trainable(self.problem.model, mask, decay, self.problem.costs)
        self.trainer.start_optimizer(self._trainable.parameters)
        if before and old:
            transfer_optimizer_state(old, before, self.trainer.optimizer, self._trainable)

    def train(self, steps: int, *, ends_epoch: bool) -> None:
        """Take so many optimiser steps, unless the worker has failed.

        Args:
            ends_epoch: Whether these are the last of the epoch.
        """
        if self.failure:
            return
        with self._own_random_streams():
            try:
                self._steps = self._steps or self.trainer.steps()
                for _ in range(steps):
                    next(self._steps)
                if ends_epoch:
                    for _ in self._steps:
                        raise AssertionError("an epoch has more steps than it should")
                    self._steps = None
            except RunFailed as error:
                self.failure = str(error)

    def save(self, shared: dict[str, Tensor], about: dict[str, Any], settled: int | None) -> None:
        """Write a snapshot, unless the worker has failed.

        Args:
            shared: Tensors that all workers hold.
            about: Facts that JSON can hold, from outside the worker.
            settled: Steps that all of several workers have taken; None for a single worker.
        """
        if self.failure:
            return
        with self._own_random_streams():
            tensors, counts = self.trainer.state()
        base = {"whole": self.base_values.whole, "seeds": self.base_values.seeds}
        snapshot = Snapshot(self.base_values.delta(), tensors | shared, {**about, **counts, "ledger": base})
        self._snapshots.save(self.trainer.progress.steps, snapshot, settled)

    def restore_weights(self, snapshot: Snapshot) -> None:
        """Put the weights of a snapshot into the model, which is as training began."""
        base, model = snapshot.about["ledger"], self.problem.model
        if base["whole"]:
            self.base_values.add_whole_model()
        else:
            self.base_values.add([mask_to_positions(snapshot.delta.mask(model), weights(model))])
            self.base_values.seeds = base["seeds"]
        snapshot.delta.apply_(model)

    def resume(self, snapshot: Snapshot, mask: Mask | None, decay: Decay) -> None:
        """Resume from a snapshot whose weights are in the model, training the entries of this mask."""
        with self._own_random_streams():
            self._trainable = Trainable(self.problem.model, mask, decay, self.problem.costs)
            self.trainer.restore(snapshot, self._trainable.parameters)

    @contextmanager
    def _own_random_streams(self) -> Iterator[None]:
        """Make torch's random streams this worker's inside the block."""
        others = self.problem.random_streams()
        self.problem.set_random_streams(self._streams)
        try:
            yield
        finally:
            self._streams = self.problem.random_streams()
            self.problem.set_random_streams(others)


def worker_problem(problem: Problem, rank: int, *, shard: bool) -> Problem:
    """Build the problem of worker ``rank``, with a model and an order of the examples of its own.

    Args:
        shard: Give each worker every n-th example of a random order; a few examples are given twice where the workers'
            parts would not be equal. Else give each worker all examples.
    """
    world_size = problem.collectives.world_size
    if world_size == 1:
        return problem
    data = problem.data
    if shard:
        index = torch.randperm(len(data.train), generator=stream(problem.seed, "shard"))
        index = torch.cat([index, index[: -len(index) % world_size]])
        data = replace(data, train=data.train.subset(index[rank::world_size]))
    model = problem.model if rank == problem.collectives.local_ranks[0] else copy.deepcopy(problem.model)
    return replace(problem, model=model, data=data, order=stream(problem.seed, "order", rank))
