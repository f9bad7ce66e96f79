"""Workers that are processes, on one machine or several: a collectives on torch.distributed."""

import re
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from fishexp.errors import WorkerLost
from fishexp.training.collectives import Reduction, check_text_lengths, pieces

_Begin: TypeAlias = Callable[[], dist.Work | None]


class TorchCollectives:
    """The worker of this process among those of the default group; see :class:`Collectives`.

    What travels are tensors of fixed sizes, as bytes wherever nothing is added up, and nothing that is received is
    unpickled. Tensors on a GPU go by NCCL where the group has it, all others by gloo, through the CPU's memory.
    """

    def __init__(self, timeout: float) -> None:
        """``timeout``: seconds that a worker may be silent; the group, made before this, has the same timeout."""
        self._rank, self._timeout = dist.get_rank(), timeout
        self.world_size, self.local_ranks, self.bytes_sent = dist.get_world_size(), range(self._rank, self._rank + 1), 0
        self._nccl = "cuda:nccl" in dist.get_backend_config()

    def all_gather(self, rows: Sequence[Tensor]) -> Tensor:
        """See :class:`Collectives`."""
        (row,) = rows
        result = row.new_empty(self.world_size, len(row))
        self._collect(row, result.view(-1))
        return result

    def ordered_all_reduce(self, rows: Sequence[Tensor], reduction: Reduction) -> Tensor:
        """See :class:`Collectives`."""
        (row,) = rows
        result = None
        for piece, part in pieces(len(row), self.world_size):
            first = piece.start + self._rank * part
            mine = slice(min(first, piece.stop), min(first + part, piece.stop))
            reduced = reduction(self._exchange(row[piece], part)[:, : mine.stop - mine.start], mine)
            if result is None:
                result = reduced.new_empty(
                    len(row) + self.world_size
                )  # the padding of a piece ends where the next begins
            self._collect(_padded(reduced, part), result[piece.start : piece.start + self.world_size * part])
        return reduction(row.new_empty(self.world_size, 0), slice(0, 0)) if result is None else result[: len(row)]

    def all_reduce(self, rows: Sequence[Tensor]) -> Tensor:
        """See :class:`Collectives`. gloo passes the entries round a ring; NCCL decides for itself."""
        (row,) = rows
        total = row.to(self._carrier(row), copy=True)
        self._wait(lambda: dist.all_reduce(total, async_op=True))
        self.bytes_sent += 2 * (self.world_size - 1) * -(-row.nbytes // self.world_size)
        return total.to(row.device)

    def all_gather_text(self, texts: Sequence[str]) -> list[str]:
        """See :class:`Collectives`. Always by gloo, which notices at once when another process ends."""
        (text,) = texts
        data = text.encode()
        lengths = self.all_gather([torch.tensor([len(data)])])[:, 0].tolist()
        check_text_lengths(lengths)
        padded = data.ljust(max(lengths), b"\0")
        rows = self.all_gather([torch.tensor(list(padded), dtype=torch.uint8)]).tolist()
        return [bytes(row[:length]).decode(errors="replace") for row, length in zip(rows, lengths, strict=True)]

    def _exchange(self, row: Tensor, part: int) -> Tensor:
        """(workers, part): this worker's part of everybody's row, padded."""
        sent = _bytes(_padded(row, self.world_size * part)).to(self._carrier(row))
        received = torch.empty_like(sent)
        self._wait(lambda: dist.all_to_all_single(received, sent, async_op=True))
        self.bytes_sent += (self.world_size - 1) * part * row.element_size()
        return received.to(row.device).view(row.dtype).view(self.world_size, part)

    def _collect(self, part: Tensor, result: Tensor) -> None:
        """Everybody's part, one after the other, into ``result``."""
        sent, wanted = _bytes(part).to(self._carrier(part)), _bytes(result)
        received = wanted if wanted.device == sent.device else torch.empty_like(wanted, device=sent.device)
        self._wait(lambda: dist.all_gather_into_tensor(received, sent, async_op=True))
        self.bytes_sent += (self.world_size - 1) * part.nbytes
        if received is not wanted:
            wanted.copy_(received)

    def _carrier(self, tensor: Tensor) -> torch.device:
        """Where a tensor is sent from."""
        return tensor.device if tensor.is_cuda and self._nccl else torch.device("cpu")

    def _wait(self, begin: _Begin) -> None:
        start = time.monotonic()
        try:
            if work := begin():
                work.wait(timedelta(seconds=self._timeout))  # NCCL waits only if it is told for how long
        except RuntimeError as error:  # whatever goes wrong below torch.distributed
            if time.monotonic() - start >= self._timeout:
                raise WorkerLost(
                    f"another worker of the run was silent for {self._timeout:g} s (regime.timeout)"
                ) from error
            raise WorkerLost(f"another worker of the run is gone: {_reason(error)}") from error


def _padded(tensor: Tensor, length: int) -> Tensor:
    return tensor if len(tensor) == length else F.pad(tensor, (0, length - len(tensor)))


def _bytes(tensor: Tensor) -> Tensor:
    """Of a tensor with one dimension: the same memory if there are no gaps in it."""
    return tensor.contiguous().unsqueeze(1).view(torch.uint8).flatten()  # (entries, 1), as one entry has any stride


def _reason(error: RuntimeError) -> str:
    """What happened, of a message that begins with a place in the library's source and ends with advice."""
    return re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).partition(". ")[0]
