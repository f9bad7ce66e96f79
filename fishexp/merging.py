"""What several workers' values of an entry become: plain arithmetic, each entry on its own."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fishexp.delta.fingerprint import bits

Merge: TypeAlias = Literal["mean", "sum"]


def merged(values: Tensor, before: Tensor, how: Merge) -> Tensor:
    """The mean of the workers' values, or what all of them changed added up.

    Computed in float64, worker after worker, and rounded once. Under ``sum`` an entry that a single worker moved gets
    that worker's bits.

    Args:
        values: (workers, entries).
        before: (entries,) what all had after the last merge.

    Returns:
        (entries,), in the type of the values.
    """
    start = before.double() if how == "sum" else torch.zeros_like(before, dtype=torch.float64)
    total = torch.zeros_like(start)
    for row in values:
        total += row.double() - start
    if how == "mean":
        return (total / len(values)).to(values.dtype)
    moved = bits(values) != bits(before.to(values.dtype))
    only = values.gather(0, moved.to(torch.uint8).argmax(0, keepdim=True)).squeeze(0)
    return torch.where(moved.sum(0) == 1, only, (start + total).to(values.dtype))


def combined(changes: Tensor, how: Merge) -> Tensor:
    """The mean or the sum of the workers' changes, computed in float64 and rounded once.

    Args:
        changes: (workers, entries).
    """
    total = torch.zeros_like(changes[0], dtype=torch.float64)
    for row in changes:
        total += row.double()
    return (total / len(changes) if how == "mean" else total).to(changes.dtype)


PIECE = 1 << 20  # entries of a digest that are looked at together


def digest(tensors: list[Tensor]) -> int:
    """A number of 64 bits, signed, that differs where a bit of one does, and mostly where several do.

    A sum of the entries' bits, each times an odd number of its own: as fast as memory, on any device.
    """
    total = 0
    for tensor in tensors:
        flat = bits(tensor.detach().reshape(-1))
        total = total * 1_000_003 + 1
        for start in range(0, len(flat), PIECE):
            piece = flat[start : start + PIECE].long()
            factors = torch.arange(start, start + len(piece), device=piece.device) * 2 + 0x9E3779B1
            total += int((piece * factors).sum())
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)
