"""The schedule of the workers: at which steps they merge, end an epoch, and save."""

from dataclasses import dataclass

from fishexp.distributed.merge import Merge
from fishexp.distributed.synchronizer import Reduce, Wire


@dataclass(frozen=True)
class Plan:
    """Say when and how workers merge; :func:`fishexp.regimes.distributed.train` says what each setting means."""

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
    """Tell at which optimiser steps something happens; these are the same for every worker.

    Args:
        epoch_steps: Steps an epoch.
        epochs: How many epochs there are.
        sync_every: Steps from one merge to the next. All merge after the last step too, and as the warm-up ends.
        warmup_epochs: Epochs in which every weight trains.
        snapshot_steps: Steps from one snapshot to the next.
        as_original: Count each epoch's end as a step for ``sync_every``, and do not merge as the warm-up ends.

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
        self._epoch_steps, self._snapshot_steps = epoch_steps, snapshot_steps
        self.total, self.warmup = epochs * epoch_steps, warmup_epochs * epoch_steps
        if as_original:
            counts = range(sync_every, epochs * (epoch_steps + 1) + 1, sync_every)
            self._merge_steps = {count - count // (epoch_steps + 1) for count in counts} | {self.total}
        else:
            self._merge_steps = {*range(sync_every, self.total, sync_every), self.warmup, self.total} - {0}

    def next_stop(self, step: int) -> int:
        """Return the next step after which something happens."""
        step += 1
        while not (self.merges(step) or self.ends_epoch(step) or self.saves(step)):
            step += 1
        return step

    def merges(self, step: int) -> bool:
        """Tell whether the workers merge after so many steps."""
        return step in self._merge_steps

    def ends_epoch(self, step: int) -> bool:
        """Tell whether an epoch ends with this step."""
        return step % self._epoch_steps == 0

    def saves(self, step: int) -> bool:
        """Tell whether a snapshot is due after so many steps."""
        return step % self._snapshot_steps == 0 and step < self.total
