"""Collective operations of a run's workers: the protocol, and the workers that take turns in one process.

Each operation takes a row from every local worker, and gives all workers the same result, bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fishexp.errors import AllFailed

# entries that are reduced together
PIECE = 1 << 22
# bytes of the longest text that a worker may send
LONGEST_TEXT = 1 << 20

# (workers, entries) of a piece, and which entries these are -> (entries,) for all; each entry is reduced on its own
Reduction = Callable[[Tensor, slice], Tensor]


class Collectives(Protocol):
    """Connect the workers of a run.

    Attributes:
        world_size: Number of all workers, wherever they are.
        local_ranks: Ranks of the workers in this process: its own rank if each worker is a process, else all ranks.
        bytes_sent: Bytes that the first local worker has sent so far, without headers of network protocols.
    """

    world_size: int
    local_ranks: range
    bytes_sent: int

    def all_gather(self, rows: Sequence[Tensor]) -> Tensor:
        """Give every worker the rows of all workers, in the order of their ranks.

        Args:
            rows: (entries,) for each local worker, of the same type and length on all workers.

        Returns:
            (workers, entries).

        Raises:
            WorkerLost: If a worker is not there any more, or silent for too long.
        """
        ...

    def ordered_all_reduce(self, rows: Sequence[Tensor], reduction: Reduction) -> Tensor:
        """Reduce the workers' rows with a function: each worker reduces its part of the entries, and sends it to all.

        Args:
            rows: (entries,) for each local worker, of the same type and length on all workers. They are sent as they
                are.
            reduction: Gets the workers' entries in the order of the ranks. It is called with any number of entries at
                a time, sometimes with none.

        Returns:
            (entries,), in the type that ``reduction`` returns; the same bits at every worker.

        Raises:
            WorkerLost: If a worker is not there any more, or silent for too long.
        """
        ...

    def all_reduce(self, rows: Sequence[Tensor]) -> Tensor:
        """Add up the workers' rows, in the type of the rows and in whatever order is the fastest.

        With more than two workers its last bits depend on how many there are and on the network library.

        Args:
            rows: (entries,) for each local worker, of the same type and length on all workers.

        Raises:
            WorkerLost: If a worker is not there any more, or silent for too long.
        """
        ...

    def all_gather_text(self, texts: Sequence[str]) -> list[str]:
        """Give every worker the texts of all workers, in the order of their ranks.

        Args:
            texts: A text for each local worker; of any length up to ``LONGEST_TEXT``, usually some kilobytes.

        Raises:
            AllFailed: If a text is longer than ``LONGEST_TEXT``.
            WorkerLost: If a worker is not there any more, or silent for too long.
        """
        ...


class InProcessCollectives:
    """Connect workers that take turns in one process: for a single worker, for debugging, and for laptops.

    ``bytes_sent`` counts what a worker that is a process would send.
    """

    def __init__(self, world_size: int = 1) -> None:
        self.world_size, self.local_ranks, self.bytes_sent = world_size, range(world_size), 0

    def all_gather(self, rows: Sequence[Tensor]) -> Tensor:
        """Implement :meth:`Collectives.all_gather`."""
        self.bytes_sent += (self.world_size - 1) * rows[0].nbytes
        return torch.stack(list(rows))

    def ordered_all_reduce(self, rows: Sequence[Tensor], reduction: Reduction) -> Tensor:
        """Implement :meth:`Collectives.ordered_all_reduce`."""
        reduced = []
        for piece, part in pieces(len(rows[0]), self.world_size):
            reduced.append(reduction(torch.stack([row[piece] for row in rows]), piece))
            self.bytes_sent += (self.world_size - 1) * part * (rows[0].element_size() + reduced[-1].element_size())
        return torch.cat(reduced) if reduced else reduction(torch.stack(list(rows)), slice(0, 0))

    def all_reduce(self, rows: Sequence[Tensor]) -> Tensor:
        """Implement :meth:`Collectives.all_reduce`."""
        self.bytes_sent += 2 * (self.world_size - 1) * -(-rows[0].nbytes // self.world_size)
        total = rows[0].clone()
        for row in rows[1:]:
            total += row
        return total

    def all_gather_text(self, texts: Sequence[str]) -> list[str]:
        """Implement :meth:`Collectives.all_gather_text`."""
        lengths = [len(text.encode()) for text in texts]
        check_text_lengths(lengths)
        # 8 bytes of a length, and as many bytes as the longest text has
        self.bytes_sent += (self.world_size - 1) * (8 + max(lengths))
        return list(texts)


def pieces(entries: int, world_size: int) -> Iterator[tuple[slice, int]]:
    """Cut a row into the pieces that are reduced together.

    Yields:
        The entries of a piece, and how many of them each worker reduces; the last worker's are padded to that number.
    """
    for start in range(0, entries, PIECE):
        stop = min(start + PIECE, entries)
        yield slice(start, stop), -(-(stop - start) // world_size)


def check_text_lengths(lengths: Sequence[int]) -> None:
    """Check the lengths of all workers' texts, in bytes.

    Raises:
        AllFailed: If a text is longer than ``LONGEST_TEXT``, or what was received is no length.
    """
    for rank, length in enumerate(lengths):
        if not 0 <= length <= LONGEST_TEXT:
            raise AllFailed(f"worker {rank} has a message of {length} bytes, and the limit is {LONGEST_TEXT}")
