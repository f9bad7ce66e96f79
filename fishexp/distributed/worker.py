"""One of several workers: its model, its part of the data, its optimiser and its random streams."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fishexp.distributed.base_values import BaseValues
from fishexp.distributed.flat_view import places
from fishexp.errors import RunFailed
from fishexp.masks.topk import Mask
from fishexp.training.logger import Logger
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshot, Snapshots
from fishexp.training.trainable import Decay, Trainable, transfer_optimizer_state
from fishexp.training.trainer import Recipe, Trainer


def worker_problem(problem: Problem, rank: int, *, shard: bool) -> Problem:
    """What worker ``rank`` has to learn, with a model and an order of the examples of its own.

    Args:
        shard: It has every n-th example of a random order, a few twice where the workers' parts would not be equal.
    """
    size = problem.collectives.world_size
    if size == 1:
        return problem
    seed = problem.order.initial_seed()
    data, order = problem.data, problem.order
    if shard:
        index = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
        index = torch.cat([index, index[: -len(index) % size]])
        data = replace(data, train=data.train.subset(index[rank::size]))
    if rank > 0:
        order = torch.Generator().manual_seed(_other(seed, rank))
    model = problem.model if rank == problem.collectives.local_ranks[0] else copy.deepcopy(problem.model)
    return replace(problem, model=model, data=data, order=order)


class Worker:
    """Trains, some steps at a time.

    Args:
        problem: Its own, of :func:`worker_problem`.
        quiet: Another worker in this process says what there is to say.

    Attributes:
        failure: Why it cannot go on; empty if it can.
        ledger: What its model was.
    """

    def __init__(
        self, rank: int, problem: Problem, log: Logger, snapshots: Snapshots, recipe: Recipe, *, quiet: bool
    ) -> None:
        self.rank, self.problem, self.failure = rank, problem, ""
        self.course = Trainer(problem, log, snapshots, recipe, quiet=quiet)
        self.ledger = BaseValues(problem.model)
        self._snapshots = snapshots
        self._moving: Trainable | None = None
        self._steps: Iterator[Tensor] | None = None
        if rank > 0:
            seed = _other(torch.initial_seed(), rank)
            self._streams = {"torch": torch.Generator().manual_seed(seed).get_state()}
            if problem.device.type == "cuda":
                self._streams["cuda"] = torch.Generator(problem.device).manual_seed(seed).get_state()
        else:
            self._streams = problem.random_streams()

    def move(self, mask: Mask | None, decay: Decay) -> None:
        """Train the entries of this mask from now on (None: all); those that stay keep their momentum."""
        if self._steps is not None:
            self.course.again()
            self._steps = None
        before = self._moving
        old = self.course.optimiser if before else None
        self._moving = Trainable(self.problem.model, mask, decay)
        self.course.optimise(self._moving.parameters)
        if before and old:
            transfer_optimizer_state(old, before, self.course.optimiser, self._moving)

    def advance(self, steps: int, *, ends: bool) -> None:
        """Take so many optimiser steps; ``ends`` if these are the last of the epoch."""
        if self.failure:
            return
        with self._turn():
            try:
                self._steps = self._steps or self.course.steps()
                for _ in range(steps):
                    next(self._steps)
                if ends:
                    for _ in self._steps:
                        raise AssertionError("an epoch has more steps than it should")
                    self._steps = None
            except RunFailed as error:
                self.failure = str(error)

    def save(self, shared: dict[str, Tensor], about: dict[str, Any], settled: int | None) -> None:
        """Write a snapshot, with what all workers know; ``settled`` steps all of several workers have taken."""
        if self.failure:
            return
        with self._turn():
            tensors, counts = self.course.state()
        of_ledger = {"whole": self.ledger.whole, "seeds": self.ledger.seeds}
        snapshot = Snapshot(self.ledger.delta(), tensors | shared, {**about, **counts, "ledger": of_ledger})
        self._snapshots.save(self.course.place.steps, snapshot, settled)

    def restore_weights(self, snapshot: Snapshot) -> None:
        """The weights of a snapshot, into a model that is as training began."""
        about = snapshot.about["ledger"]
        if about["whole"]:
            self.ledger.all_move()
        else:
            self.ledger.add([places(snapshot.delta.mask(self.problem.model), self.problem.model)])
            self.ledger.seeds = about["seeds"]
        snapshot.delta.apply_(self.problem.model)

    def resume(self, snapshot: Snapshot, mask: Mask | None, decay: Decay) -> None:
        """Go on from a snapshot whose weights are there, training the entries of this mask."""
        with self._turn():
            self._moving = Trainable(self.problem.model, mask, decay)
            self.course.resume(snapshot, self._moving.parameters)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Torch's random streams are this worker's."""
        others = self.problem.random_streams()
        self.problem.set_random_streams(self._streams)
        try:
            yield
        finally:
            self._streams = self.problem.random_streams()
            self.problem.set_random_streams(others)


def _other(seed: int, rank: int) -> int:
    """A seed of this worker's own."""
    return (seed + rank * 0x9E3779B97F4A7C15) % 2**63
