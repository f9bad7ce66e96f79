"""Merges: every worker gets what all have changed, and only that travels."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fishexp.distributed.flat_view import Places
from fishexp.distributed.merge import Merge, combined, merged
from fishexp.distributed.shared_state import SharedState
from fishexp.errors import AllFailed
from fishexp.training.collectives import Collectives

Wire: TypeAlias = Literal["fp32", "bf16"]
Reduce: TypeAlias = Literal["ordered", "ring"]
FLAGS = 62  # bits of a number in a header


class Synchronizer:
    """The merges of a run.

    Args:
        how: Of the workers' changes to what several of them move. The head is averaged in any case.
        wire: ``bf16`` sends changes with 8 significant bits; buffers travel in float32 in any case.
        reduce: ``ordered`` adds in float64 and in the order of the ranks, ``ring`` as torch's all_reduce does.
        as_original: Merge the head as any weight, and divide by the number of workers also what one alone moves.

    Attributes:
        bytes: That one worker sent in the last merge.
        count: How many merges there were.
        digests: Of what each local worker held after the last of them.
    """

    def __init__(
        self,
        collectives: Collectives,
        common: SharedState,
        how: Merge,
        wire: Wire,
        reduce: Reduce,
        *,
        as_original: bool = False,
    ) -> None:
        self._collectives, self._common, self._original = collectives, common, as_original
        self._how: Merge = how
        self._wire = torch.bfloat16 if wire == "bf16" else None
        self._ring = reduce == "ring"
        self.count = self.bytes = 0
        self.begin(None)

    def begin(self, moving: Sequence[Places] | None) -> None:
        """See :meth:`SharedState.begin`."""
        self._common.begin(moving)
        self._note()

    def _note(self) -> None:
        """What each local worker holds now, for the next :meth:`meet`."""
        workers = range(len(self._collectives.local_ranks) if self._collectives.world_size > 1 else 0)
        self.digests = [self._common.digest(worker) for worker in workers] or [0]

    def merge(self, step: int, failures: Sequence[str]) -> None:
        """Every worker gets what all have changed since the last time.

        Args:
            step: How many the workers have taken.
            failures: For each local worker why it cannot go on; empty if it can.

        Raises:
            AllFailed: If a worker cannot go on, or the workers do not hold the same.
            WorkerLost: If one is gone.
        """
        common, sent = self._common, self._collectives.bytes_sent
        shared, own = common.read_shared(), common.read_own()
        finite = [bool(row.isfinite().all()) for row in shared]
        for worker, row in enumerate(own):
            finite[worker] &= bool(row.isfinite().all())
        broken = f"a weight is not finite after step {step}; lower regime.lr"
        moved = self.meet(step, [why or ("" if fine else broken) for why, fine in zip(failures, finite, strict=True)])
        if self._collectives.world_size == 1:
            common.set_shared(shared[0])
        else:
            common.set_shared(self._merged(shared))
            for rank, values in enumerate(self._gathered(own)):
                common.set_own(rank, values)
        if moved:
            rows = common.read_buffers(moved)
            common.set_buffers(
                moved, self._collectives.ordered_all_reduce(rows, lambda values, _: merged(values, values[0], "mean"))
            )
        self._note()
        self.count += 1
        self.bytes = self._collectives.bytes_sent - sent

    def meet(self, step: int, failures: Sequence[str]) -> list[int]:
        """See that all workers are well, have taken so many steps, and held the same after the last merge.

        Returns:
            The buffers that moved on any of them.

        Raises:
            AllFailed: If not, with the reason of the first that has one.
        """
        headers = []
        for worker, failure in enumerate(failures):
            moved = self._common.moved(worker)
            chunks = [moved[start : start + FLAGS] for start in range(0, len(moved), FLAGS)]
            flags = [sum(flag << place for place, flag in enumerate(chunk)) for chunk in chunks]
            headers.append(torch.tensor([failure != "", step, self._common.masks, self.digests[worker], *flags]))
        table = self._collectives.all_gather(headers).tolist()
        if any(row[0] for row in table):
            reasons = self._collectives.all_gather_text(failures)
            rank, reason = next((rank, reason) for rank, reason in enumerate(reasons) if reason)
            raise AllFailed(f"worker {rank}: {reason}" if self._collectives.world_size > 1 else reason)
        for rank, row in enumerate(table):
            for what, number, first in zip(("steps", "masks", "weights"), row[1:4], table[0][1:4], strict=True):
                if number != first:
                    other = f"{number} steps, worker 0 {first}" if what == "steps" else f"other {what} than worker 0"
                    raise AllFailed(f"worker {rank} has {other}: a fault of a machine, the link, or fishexp")
        count = len(self._common.buffers)
        return [i for i in range(count) if any(row[4 + i // FLAGS] >> i % FLAGS & 1 for row in table)]

    def _merged(self, rows: Sequence[Tensor]) -> Tensor:
        """What becomes of the workers' values of the shared entries."""
        before, collectives = self._common.shared, self._collectives
        if self._wire is None and not self._ring:
            return collectives.ordered_all_reduce(rows, lambda values, where: self._apart(values, where, before[where]))
        changes = [(row - before).to(self._wire or row.dtype) for row in rows]
        if self._ring:
            change = collectives.all_reduce(changes)
            ways = self._ways(slice(0, len(before)))
            parts = [change[part] / collectives.world_size if how == "mean" else change[part] for part, how in ways]
            return before + torch.cat(parts).to(before.dtype)
        return before + collectives.ordered_all_reduce(
            changes, lambda values, where: self._apart(values, where, None)
        ).to(before.dtype)

    def _apart(self, values: Tensor, where: slice, before: Tensor | None) -> Tensor:
        """The values, or changes if there is no ``before``, of a piece merged."""
        parts = [
            combined(values[:, part], how) if before is None else merged(values[:, part], before[part], how)
            for part, how in self._ways(where)
        ]
        return torch.cat(parts)

    def _ways(self, where: slice) -> tuple[tuple[slice, Merge], ...]:
        """The head's part of a piece, and how it is merged; and the rest."""
        first = 0 if self._original else self._common.first
        cut = min(max(first - where.start, 0), where.stop - where.start)
        return (slice(0, cut), "mean"), (slice(cut, where.stop - where.start), self._how)

    def _gathered(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """For each worker what it alone moved, as all get it."""
        if not rows:
            return []
        before, local = self._common.own, self._collectives.local_ranks
        if self._wire is not None:
            rows = [(row - before[rank]).to(self._wire) for row, rank in zip(rows, local, strict=True)]
        found = list(self._collectives.all_gather(rows))
        if self._wire is not None:
            found = [old + change.to(old.dtype) for old, change in zip(before, found, strict=True)]
        if self._original and self._how == "mean":
            found = [old + (new - old) / self._collectives.world_size for old, new in zip(before, found, strict=True)]
        return found
