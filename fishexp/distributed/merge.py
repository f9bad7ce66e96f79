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
    if values.device.type == "mps":  # which has no float64
        return merged(values.cpu(), before.cpu(), how).to(values.device)
    if how == "mean":
        return combined(values, how)
    start = before.double()
    total = start.clone()
    for row in values:
        total.add_(row).sub_(start)
    moved = bits(values) != bits(before.to(values.dtype))
    only = values.gather(0, moved.to(torch.uint8).argmax(0, keepdim=True)).squeeze(0)
    return torch.where(moved.sum(0) <= 1, only, total.to(values.dtype))


def combined(changes: Tensor, how: Merge) -> Tensor:
    """The mean or the sum of the workers' changes, computed in float64 and rounded once.

    Args:
        changes: (workers, entries).
    """
    if changes.device.type == "mps":
        return combined(changes.cpu(), how).to(changes.device)
    total = changes[0].double()
    for row in changes[1:]:
        total.add_(row)
    return (total.div_(len(changes)) if how == "mean" else total).to(changes.dtype)


PIECE = 1 << 16  # entries of a digest that are looked at together: they stay in the cache


def digest(tensors: list[Tensor]) -> int:
    """A number of 64 bits, signed, that differs where a bit of one does, and mostly where several do.

    A sum of the entries' bits, each times an odd number: its place in its piece; the pieces' sums likewise.
    """
    total, factors = 0, torch.zeros(0)
    for tensor in tensors:
        flat = bits(tensor.detach().reshape(-1))
        if factors.device != flat.device or not len(factors):
            factors = torch.arange(PIECE, device=flat.device) * 2 + 0x9E3779B1
        sums = torch.zeros(-(-len(flat) // PIECE), dtype=torch.int64, device=flat.device)
        for place, piece in enumerate(flat.split(PIECE) if len(flat) else ()):
            sums[place] = (piece * factors[: len(piece)]).sum()
        total = total * 1_000_003 + len(flat)
        for number in sums.tolist():
            total = (total * 0x9E3779B1 + number) % (1 << 64)
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)
