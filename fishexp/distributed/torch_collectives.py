"""Collective operations of workers that are processes, on this machine or several, by torch.distributed."""

import re
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from fishexp.errors import WorkerLost, first_line
from fishexp.training.collectives import Reduction, check_text_lengths, pieces


class TorchCollectives:
    """Connect the worker of this process to the others of the default group; see :class:`Collectives`.

    Tensors of fixed sizes are sent, as bytes wherever nothing is added up, and nothing that is received is unpickled.
    Tensors on a GPU go by NCCL where the group has it, all others by gloo, through the CPU's memory.

    Args:
        timeout: Seconds that a worker may be silent; the group, made before this, has the same timeout.
    """

    def __init__(self, timeout: float) -> None:
        self._rank, self._timeout = dist.get_rank(), timeout
        self.world_size, self.local_ranks = dist.get_world_size(), range(self._rank, self._rank + 1)
        self.bytes_sent = 0
        self._has_nccl = "cuda:nccl" in dist.get_backend_config()

    def all_gather(self, rows: Sequence[Tensor]) -> Tensor:
        """Implement :meth:`Collectives.all_gather`."""
        (row,) = rows
        result = row.new_empty(self.world_size, len(row))
        self._all_gather_into(result.view(-1), row)
        return result

    def ordered_all_reduce(self, rows: Sequence[Tensor], reduction: Reduction) -> Tensor:
        """Implement :meth:`Collectives.ordered_all_reduce`."""
        (row,) = rows
        result = None
        for piece, part in pieces(len(row), self.world_size):
            first = piece.start + self._rank * part
            mine = slice(min(first, piece.stop), min(first + part, piece.stop))
            reduced = reduction(self._all_to_all(row[piece], part)[:, : mine.stop - mine.start], mine)
            if result is None:  # longer than a row, as the padding of a piece ends where the next piece begins
                result = reduced.new_empty(len(row) + self.world_size)
            self._all_gather_into(result[piece.start : piece.start + self.world_size * part], _padded(reduced, part))
        return reduction(row.new_empty(self.world_size, 0), slice(0, 0)) if result is None else result[: len(row)]

    def all_reduce(self, rows: Sequence[Tensor]) -> Tensor:
        """Implement :meth:`Collectives.all_reduce`. gloo passes the entries round a ring; NCCL decides for itself."""
        (row,) = rows
        total = row.to(self._network_device(row), copy=True)
        self._wait(lambda: dist.all_reduce(total, async_op=True))
        self.bytes_sent += 2 * (self.world_size - 1) * -(-row.nbytes // self.world_size)
        return total.to(row.device)

    def all_gather_text(self, texts: Sequence[str]) -> list[str]:
        """Implement :meth:`Collectives.all_gather_text`, by gloo, which notices at once when another process ends."""
        (text,) = texts
        data = text.encode()
        lengths = self.all_gather([torch.tensor([len(data)])])[:, 0].tolist()
        check_text_lengths(lengths)
        padded = data.ljust(max(lengths), b"\0")
        rows = self.all_gather([torch.tensor(list(padded), dtype=torch.uint8)]).tolist()
        return [bytes(row[:length]).decode(errors="replace") for row, length in zip(rows, lengths, strict=True)]

    def _all_to_all(self, row: Tensor, part: int) -> Tensor:
        """Return (workers, part): this worker's part of every worker's row, padded."""
        sent = _as_bytes(_padded(row, self.world_size * part)).to(self._network_device(row))
        received = torch.empty_like(sent)
        self._wait(lambda: dist.all_to_all_single(received, sent, async_op=True))
        self.bytes_sent += (self.world_size - 1) * part * row.element_size()
        return received.to(row.device).view(row.dtype).view(self.world_size, part)

    def _all_gather_into(self, result: Tensor, part: Tensor) -> None:
        """Write every worker's part into ``result``, one behind the other."""
        sent, wanted = _as_bytes(part).to(self._network_device(part)), _as_bytes(result)
        received = wanted if wanted.device == sent.device else torch.empty_like(wanted, device=sent.device)
        self._wait(lambda: dist.all_gather_into_tensor(received, sent, async_op=True))
        self.bytes_sent += (self.world_size - 1) * part.nbytes
        if received is not wanted:
            wanted.copy_(received)

    def _network_device(self, tensor: Tensor) -> torch.device:
        """Return the device that a tensor is sent from."""
        return tensor.device if tensor.is_cuda and self._has_nccl else torch.device("cpu")

    def _wait(self, begin: Callable[[], dist.Work | None]) -> None:
        """Begin an operation and wait for its end.

        Raises:
            WorkerLost: If a worker is not there any more, or silent for too long.
        """
        start = time.monotonic()
        try:
            if work := begin():
                work.wait(timedelta(seconds=self._timeout))  # NCCL waits only if there is a timeout
        except RuntimeError as error:  # whatever goes wrong below torch.distributed
            if time.monotonic() - start >= self._timeout:
                raise WorkerLost(f"another worker of the run was silent for {self._timeout:g} s") from error
            raise WorkerLost(f"another worker of the run is gone: {_reason(error)}") from error


def _padded(tensor: Tensor, length: int) -> Tensor:
    return tensor if len(tensor) == length else F.pad(tensor, (0, length - len(tensor)))


def _as_bytes(tensor: Tensor) -> Tensor:
    """View a tensor of one dimension as bytes: the same memory if there are no gaps in it."""
    return tensor.contiguous().unsqueeze(1).view(torch.uint8).flatten()  # (entries, 1), as one entry has any stride


def _reason(error: RuntimeError) -> str:
    """Cut a message that begins with a line of the library's source and ends with advice down to what happened."""
    return re.sub(r"^\[\S+\] ", "", first_line(error)).partition(". ")[0]
