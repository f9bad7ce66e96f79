"""Whether the ranks of a DistributedDataParallel model train the same entries."""

import hashlib
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fishexp.errors import FishexpError

# wrapped model -> SparseParameters in it that its ranks are known to share
_SHARED: "WeakKeyDictionary[nn.Module, WeakSet[nn.Module]]" = WeakKeyDictionary()

# hexadecimal digits of a digest that fit int64
_DIGITS = 15


def positions_digest(name: str, shape: Sequence[int], positions: Tensor | None) -> bytes:
    """Return the SHA-256 of the name and shape of a weight, and of the positions that train, in any order.

    Args:
        positions: (kept,) in the flattened weight; None for all.
    """
    digest = hashlib.sha256(f"{name} {tuple(shape)} {'whole' if positions is None else len(positions)}".encode())
    if positions is not None:
        digest.update(positions.long().sort().values.cpu().numpy().data)
    return digest.digest()


def check_ranks(kept: Any) -> None:
    """Refuse to train a SparseParameter whose ranks of DistributedDataParallel hold another mask, or that it misses.

    To be called in a forward pass. The first one in training compares the ranks, of whom all are in it then: a sum of
    16 bytes. Ranks that reduce gradients or weights in other ways may hold other masks on purpose.

    Raises:
        FishexpError: On all ranks, if their masks differ, or the model was sparsified after it had been wrapped.
    """
    wrapped = DistributedDataParallel._active_ddp_module
    if wrapped is None or not (wrapped.training and wrapped.require_backward_grad_sync):
        return
    shared = _SHARED.setdefault(wrapped, WeakSet())
    if kept in shared:
        return
    if all(p is not kept.values for p in wrapped._module_parameters):
        raise FishexpError(
            "the model was sparsified after DistributedDataParallel had wrapped it, which therefore reduces no "
            "gradients of kept entries; sparsify first, then wrap"
        )
    digest = hashlib.sha256()
    found: dict[str, Any] = {name: m for name, m in wrapped.named_modules() if isinstance(m, type(kept))}
    for name, one in found.items():
        digest.update(positions_digest(name, one.weight.shape, one.positions))
    digest.update(str([name for name, p in wrapped.named_parameters() if p.requires_grad]).encode())
    number = int(digest.hexdigest()[:_DIGITS], 16)
    lowest = torch.tensor([number, -number], device=kept.values.device)
    dist.all_reduce(lowest, dist.ReduceOp.MIN, group=wrapped.process_group)
    if lowest.tolist() != [number, -number]:
        raise FishexpError(
            "the ranks of DistributedDataParallel have different masks, and would train apart; make the mask on one "
            "rank and broadcast it, or of the same scores on all"
        )
    shared.update(found.values())
