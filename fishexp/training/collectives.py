"""The workers of a run as one sees them: what each has goes in, what all get comes out, to the same bits everywhere."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fishexp.errors import AllFailed

# (workers, entries) of a piece, and which entries these are -> (entries,) for all; each entry on its own
Reduction = Callable[[Tensor, slice], Tensor]

PIECE = 1 << 22  # entries that are combined together
LONGEST = 1 << 20  # bytes of a message


class Collectives(Protocol):
    """Workers that train apart.

    Attributes:
        size: Of all workers, wherever they are.
        local: The ranks of those in this process: one of several processes has one, a single process all.
        sent: Bytes that the first of these has sent so far: what it was asked to send, without headers of protocols.
    """

    size: int
    local: range
    sent: int

    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        """What all workers have, in the order of their ranks.

        Args:
            rows: (entries,) for each local worker, of one type and length everywhere.

        Returns:
            (workers, entries).

        Raises:
            WorkerLost: If a worker is not there any more, or silent for too long.
        """
        ...

    def combine(self, rows: Sequence[Tensor], reduction: Reduction) -> Tensor:
        """What ``reduction`` makes of the workers' entries: each worker reduces its part of them, and sends it to all.

        Args:
            rows: (entries,) for each local worker, of one type and length everywhere. They are sent as they are.
            reduction: Called with as many entries at a time as suits the crew, sometimes with none.

        Returns:
            (entries,), in the type that ``reduction`` returns; the same bits at every worker.

        Raises:
            WorkerLost: If a worker is not there any more, or silent for too long.
        """
        ...

    def add(self, rows: Sequence[Tensor]) -> Tensor:
        """The sum over the workers, in the type of the rows and in whatever order is the fastest.

        With more than two workers its last bits depend on how many there are and on what carries the messages.

        Args:
            rows: (entries,) for each local worker, of one type and length everywhere.

        Raises:
            WorkerLost: If a worker is not there any more, or silent for too long.
        """
        ...

    def messages(self, texts: Sequence[str]) -> list[str]:
        """What all workers have to say, in the order of their ranks.

        Args:
            texts: One for each local worker; of any length up to some kilobytes.

        Raises:
            AllFailed: If one is longer than ``LONGEST``.
            WorkerLost: If a worker is not there any more, or silent for too long.
        """
        ...


def pieces(entries: int, workers: int) -> Iterator[tuple[slice, int]]:
    """What is combined together, piece by piece, and the entries of each worker's part; the last are padded to it."""
    for start in range(0, entries, PIECE):
        stop = min(start + PIECE, entries)
        yield slice(start, stop), -(-(stop - start) // workers)


def check_lengths(lengths: Sequence[int]) -> None:
    """Of the messages of all workers, in bytes.

    Raises:
        AllFailed: If one is longer than ``LONGEST``, or what was received is no length.
    """
    for rank, length in enumerate(lengths):
        if not 0 <= length <= LONGEST:
            raise AllFailed(f"worker {rank} has a message of {length} bytes, and the limit is {LONGEST}")


class InProcessCollectives:
    """Workers that take turns in one process: for one worker, for debugging, and for laptops.

    They count as sent what processes would send.
    """

    def __init__(self, size: int = 1) -> None:
        self.size, self.local, self.sent = size, range(size), 0

    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        """See :class:`Collectives`."""
        self.sent += (self.size - 1) * rows[0].nbytes
        return torch.stack(list(rows))

    def combine(self, rows: Sequence[Tensor], reduction: Reduction) -> Tensor:
        """See :class:`Collectives`."""
        reduced = []
        for piece, part in pieces(len(rows[0]), self.size):
            reduced.append(reduction(torch.stack([row[piece] for row in rows]), piece))
            self.sent += (self.size - 1) * part * (rows[0].element_size() + reduced[-1].element_size())
        return torch.cat(reduced) if reduced else reduction(torch.stack(list(rows)), slice(0, 0))

    def add(self, rows: Sequence[Tensor]) -> Tensor:
        """See :class:`Collectives`."""
        self.sent += 2 * (self.size - 1) * -(-rows[0].nbytes // self.size)
        total = rows[0].clone()
        for row in rows[1:]:
            total += row
        return total

    def messages(self, texts: Sequence[str]) -> list[str]:
        """See :class:`Collectives`."""
        lengths = [len(text.encode()) for text in texts]
        check_lengths(lengths)
        self.sent += (self.size - 1) * (8 + max(lengths))  # a length, and as many bytes as the longest has
        return list(texts)
