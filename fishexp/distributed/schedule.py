"""How several workers go on together, and when they do what: merge, end an epoch, save."""

from dataclasses import dataclass

from fishexp.distributed.merge import Merge
from fishexp.distributed.synchronizer import Reduce, Wire


@dataclass(frozen=True)
class Plan:
    """When and how workers merge; :func:`fishexp.regimes.distributed.train` says what each means."""

    sync_every: int
    merge: Merge
    disjoint: bool
    warmup_epochs: int
    refresh_every: int | None
    shard: bool
    wire: Wire
    reduce: Reduce
    snapshot_steps: int


class Schedule:
    """Optimiser steps, the same for every worker, at which something happens.

    Args:
        epoch_steps: Steps an epoch.
        sync_every: Steps from one merge to the next. All merge after the last step too, and as the warm-up ends.
        warmup_epochs: In which every weight trains.
        snapshot_steps: Between two snapshots.
        as_original: Each epoch's end counts as a step for ``sync_every``, and the end of the warm-up as nothing.

    Attributes:
        total: Steps of all epochs.
        warmup: Steps of the warm-up.
    """

    def __init__(
        self,
        epoch_steps: int,
        epochs: int,
        sync_every: int,
        warmup_epochs: int,
        snapshot_steps: int,
        *,
        as_original: bool = False,
    ) -> None:
        self._epoch, self._snapshot = epoch_steps, snapshot_steps
        self.total, self.warmup = epochs * epoch_steps, warmup_epochs * epoch_steps
        if as_original:
            counts = range(sync_every, epochs * (epoch_steps + 1) + 1, sync_every)
            self._merges = {count - count // (epoch_steps + 1) for count in counts} | {self.total}
        else:
            self._merges = {*range(sync_every, self.total, sync_every), self.warmup, self.total} - {0}

    def next(self, step: int) -> int:
        """The next step at which something happens."""
        step += 1
        while not (self.merges(step) or self.ends_epoch(step) or self.saves(step)):
            step += 1
        return step

    def merges(self, step: int) -> bool:
        """Whether the workers merge after so many steps."""
        return step in self._merges

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch ends with this step."""
        return step % self._epoch == 0

    def saves(self, step: int) -> bool:
        """Whether a snapshot is due."""
        return step % self._snapshot == 0 and step < self.total
