"""Merges: every worker gets what all workers have changed, and nothing else is sent."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from fishexp.distributed.merge import Merge, merge_changes, merge_values
from fishexp.distributed.shared_state import SharedState
from fishexp.errors import AllFailed
from fishexp.masks.positions import Positions
from fishexp.training.collectives import Collectives

Wire: TypeAlias = Literal["fp32", "bf16"]
Reduce: TypeAlias = Literal["ordered", "ring"]

# numbers of a header before its flags: whether the worker failed, its steps, a digest of the masks, and of its values
_HEADER_NUMBERS = 4
# flags, one for each buffer, that a number of a header holds
_FLAGS_A_NUMBER = 62
# bytes of a number of a header
_NUMBER_BYTES = 8


class Synchronizer:
    """Merge the workers of a run, and check that they still hold the same.

    Args:
        how: How the workers' changes of shared entries are merged. The head is averaged in any case.
        wire: ``bf16`` sends changes with 8 significant bits; buffers are sent in float32 in any case.
        reduce: ``ordered`` adds in float64 and in the order of the ranks, ``ring`` as torch's all_reduce does.
        as_original: Merge the head like any weight, and divide by the number of workers even what a single
            worker changed.

    Attributes:
        merge_bytes: Bytes that each worker sent in the last merge.
        digests: For each local worker, a digest of the shared state that it held after the last merge.
    """

    def __init__(
        self,
        collectives: Collectives,
        shared_state: SharedState,
        how: Merge,
        wire: Wire,
        reduce: Reduce,
        *,
        as_original: bool = False,
    ) -> None:
        self._collectives, self._shared_state, self._as_original = collectives, shared_state, as_original
        self._how: Merge = how
        self._wire = torch.bfloat16 if wire == "bf16" else None
        self._ring = reduce == "ring"
        self.merge_bytes = 0
        self.set_masks(None)

    def set_masks(self, masks: Sequence[Positions] | None) -> None:
        """Merge other entries from now on; see :meth:`SharedState.set_masks`."""
        self._shared_state.set_masks(masks)
        self._update_digests()

    def merge(self, step: int, failures: Sequence[str]) -> None:
        """Give every worker what all workers have changed since the last merge.

        Args:
            step: How many steps the workers have taken.
            failures: For each local worker why it cannot go on; empty if it can.

        Raises:
            AllFailed: If a worker cannot go on, or the workers do not hold the same.
            WorkerLost: If a worker is gone.
        """
        state, collectives = self._shared_state, self._collectives
        bytes_before = collectives.bytes_sent
        shared, own = state.read_shared(), state.read_own()
        finite = [bool(row.isfinite().all()) for row in shared]
        for local_index, row in enumerate(own):
            finite[local_index] &= bool(row.isfinite().all())
        not_finite = f"a weight is not finite after step {step}; lower regime.lr"
        reasons = [why or ("" if fine else not_finite) for why, fine in zip(failures, finite, strict=True)]
        buffers = self.check_workers(step, reasons)
        if collectives.world_size == 1:
            state.write_shared(shared[0])
        else:
            state.write_shared(self._merge_shared(shared))
            for rank, values in enumerate(self._gather_own(own)):
                state.write_own(rank, values)
        if buffers:
            rows = state.read_buffers(buffers)
            mean = collectives.ordered_all_reduce(rows, lambda values, _: merge_values(values, values[0], "mean"))
            state.write_buffers(buffers, mean)
        self._update_digests()
        self.merge_bytes = collectives.bytes_sent - bytes_before

    def check_workers(self, step: int, failures: Sequence[str]) -> list[int]:
        """Check that all workers can go on, have taken ``step`` steps, and held the same after the last merge.

        Args:
            failures: For each local worker why it cannot go on; empty if it can.

        Returns:
            The buffers that any worker has changed since the last merge.

        Raises:
            AllFailed: If not, with the first worker's reason.
        """
        collectives = self._collectives
        headers = [self._header(local_index, step, failure != "") for local_index, failure in enumerate(failures)]
        table = collectives.all_gather(headers).tolist()
        if any(row[0] for row in table):
            reasons = collectives.all_gather_text(failures)
            rank, reason = next((rank, reason) for rank, reason in enumerate(reasons) if reason)
            raise AllFailed(f"worker {rank}: {reason}" if collectives.world_size > 1 else reason)
        for rank, row in enumerate(table):
            for what, number, first in zip(("steps", "masks", "weights"), row[1:4], table[0][1:4], strict=True):
                if number != first:
                    other = f"{number} steps, worker 0 {first}" if what == "steps" else f"other {what} than worker 0"
                    raise AllFailed(f"worker {rank} has {other}: a fault of a machine, the link, or fishexp")
        return [
            i
            for i in range(len(self._shared_state.buffers))
            if any(row[_HEADER_NUMBERS + i // _FLAGS_A_NUMBER] >> i % _FLAGS_A_NUMBER & 1 for row in table)
        ]

    def _header(self, local_index: int, step: int, failed: bool) -> Tensor:
        """Build what a local worker sends to be checked, :func:`header_bytes` long."""
        state = self._shared_state
        changed = state.changed_buffers(local_index)
        chunks = [changed[start : start + _FLAGS_A_NUMBER] for start in range(0, len(changed), _FLAGS_A_NUMBER)]
        flags = [sum(flag << bit for bit, flag in enumerate(chunk)) for chunk in chunks]
        return torch.tensor([failed, step, state.masks_digest, self.digests[local_index], *flags])

    def _update_digests(self) -> None:
        """Compute what each local worker holds now, for the next check."""
        local_workers = len(self._collectives.local_ranks) if self._collectives.world_size > 1 else 0
        self.digests = [self._shared_state.digest(local_index) for local_index in range(local_workers)] or [0]

    def _merge_shared(self, rows: Sequence[Tensor]) -> Tensor:
        """Merge the workers' values of the shared entries."""
        before, collectives = self._shared_state.shared, self._collectives
        if self._wire is None and not self._ring:
            return collectives.ordered_all_reduce(
                rows, lambda values, piece: self._merge_piece(values, piece, before[piece])
            )
        changes = [(row - before).to(self._wire or row.dtype) for row in rows]
        if self._ring:
            total = collectives.all_reduce(changes)
            parts = self._parts(slice(0, len(before)))
            merged = [total[part] / collectives.world_size if how == "mean" else total[part] for part, how in parts]
            return before + torch.cat(merged).to(before.dtype)
        change = collectives.ordered_all_reduce(changes, lambda values, piece: self._merge_piece(values, piece, None))
        return before + change.to(before.dtype)

    def _merge_piece(self, values: Tensor, piece: slice, before: Tensor | None) -> Tensor:
        """Merge the workers' values of a piece of the shared entries; without ``before`` these are changes."""
        parts = [
            merge_changes(values[:, part], how) if before is None else merge_values(values[:, part], before[part], how)
            for part, how in self._parts(piece)
        ]
        return torch.cat(parts)

    def _parts(self, piece: slice) -> tuple[tuple[slice, Merge], ...]:
        """Cut a piece of the shared entries into the head's part and the rest, each with how it is merged."""
        head = 0 if self._as_original else self._shared_state.head_entries
        cut = min(max(head - piece.start, 0), piece.stop - piece.start)
        return (slice(0, cut), "mean"), (slice(cut, piece.stop - piece.start), self._how)

    def _gather_own(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Return, for each rank, the values of the entries that it alone trains, as all workers get them."""
        if not rows:
            return []
        before, local_ranks = self._shared_state.own, self._collectives.local_ranks
        if self._wire is not None:
            rows = [(row - before[rank]).to(self._wire) for row, rank in zip(rows, local_ranks, strict=True)]
        lengths = [len(values) for values in before]  # of units, not all workers have as many entries
        rows = [F.pad(row, (0, max(lengths) - len(row))) for row in rows]
        found = [row[:length] for row, length in zip(self._collectives.all_gather(rows), lengths, strict=True)]
        if self._wire is not None:
            found = [old + change.to(old.dtype) for old, change in zip(before, found, strict=True)]
        if self._as_original and self._how == "mean":
            found = [old + (new - old) / self._collectives.world_size for old, new in zip(before, found, strict=True)]
        return found


def header_bytes(buffers: int) -> int:
    """Count the bytes by which a worker lets another check it, if the model has so many floating-point buffers."""
    return _NUMBER_BYTES * (_HEADER_NUMBERS + -(-buffers // _FLAGS_A_NUMBER))
