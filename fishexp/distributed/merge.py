"""The arithmetic of merges, each entry on its own; and a digest by which workers find that they differ."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fishexp.delta.fingerprint import bits

Merge: TypeAlias = Literal["mean", "sum"]

# entries of a digest that are looked at together: they stay in the cache
_DIGEST_PIECE = 1 << 16
# odd factors of a digest: of the first entry of a piece and of sums of pieces; of sums of tensors
_ODD_FACTOR, _TENSOR_FACTOR = 0x9E3779B1, 1_000_003


def merge_values(values: Tensor, before: Tensor, how: Merge) -> Tensor:
    """Compute the mean of the workers' values, or add up what all of them changed.

    Computed in float64, worker after worker, and rounded once. Under ``sum`` an entry that a single worker changed gets
    that worker's bits.

    Args:
        values: (workers, entries).
        before: (entries,) what all had after the last merge.

    Returns:
        (entries,), in the type of the values.
    """
    if values.device.type == "mps":  # which has no float64
        return merge_values(values.cpu(), before.cpu(), how).to(values.device)
    if how == "mean":
        return merge_changes(values, how)
    start = before.double()
    total = start.clone()
    for row in values:
        total.add_(row).sub_(start)
    changed = bits(values) != bits(before.to(values.dtype))
    only = values.gather(0, changed.to(torch.uint8).argmax(0, keepdim=True)).squeeze(0)
    return torch.where(changed.sum(0) <= 1, only, total.to(values.dtype))


def merge_changes(changes: Tensor, how: Merge) -> Tensor:
    """Compute the mean or the sum of the workers' changes in float64, rounded once.

    Args:
        changes: (workers, entries).
    """
    if changes.device.type == "mps":  # which has no float64
        return merge_changes(changes.cpu(), how).to(changes.device)
    total = changes[0].double()
    for row in changes[1:]:
        total.add_(row)
    return (total.div_(len(changes)) if how == "mean" else total).to(changes.dtype)


def digest(tensors: list[Tensor]) -> int:
    """Compute a signed number of 64 bits that differs where a single bit does, and mostly where several do.

    It is a sum of the entries' bits, each times an odd number that stands for its place in its piece; the pieces' sums
    are added up likewise.
    """
    total, factors = 0, torch.zeros(0)
    for tensor in tensors:
        flat = bits(tensor.detach().reshape(-1))
        if factors.device != flat.device or not len(factors):
            factors = torch.arange(_DIGEST_PIECE, device=flat.device) * 2 + _ODD_FACTOR
        sums = torch.zeros(-(-len(flat) // _DIGEST_PIECE), dtype=torch.int64, device=flat.device)
        for number, piece in enumerate(flat.split(_DIGEST_PIECE) if len(flat) else ()):
            sums[number] = (piece * factors[: len(piece)]).sum()
        total = total * _TENSOR_FACTOR + len(flat)
        for piece_sum in sums.tolist():
            total = (total * _ODD_FACTOR + piece_sum) % (1 << 64)
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)
