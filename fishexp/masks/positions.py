"""A mask as the positions of its entries: as small as the mask, in memory and in the file of a snapshot."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fishexp.masks.topk import Mask

# name -> (entries,) int64, ascending: where in the flattened weight the mask is true; None where it is true everywhere
Positions: TypeAlias = Mapping[str, Tensor | None]

# in a file, the only position of a weight that is kept whole
_WHOLE = -1


def find_positions(kept: Tensor) -> Tensor | None:
    """Return the positions of true entries in a flattened bool tensor, (entries,) int64; None if all are true."""
    index = kept.flatten().nonzero().squeeze(1)
    return None if len(index) == kept.numel() else index


def mask_to_positions(mask: Mask, parameters: Mapping[str, Tensor]) -> Positions:
    """Find the entries of a mask, on the devices of the parameters and in their order; names without any are left out.

    Args:
        mask: name -> bool tensor of the parameter's shape, for every parameter.
    """
    found = {name: find_positions(mask[name].to(p.device)) for name, p in parameters.items()}
    return {name: index for name, index in found.items() if index is None or len(index)}


def positions_to_mask(positions: Positions, parameters: Mapping[str, Tensor]) -> Mask:
    """Build the mask that has its entries at these positions, on the devices of the parameters."""
    mask = {name: torch.zeros(p.shape, dtype=torch.bool, device=p.device) for name, p in parameters.items()}
    for name, index in positions.items():
        mask[name].view(-1)[slice(None) if index is None else index] = True
    return mask


def positions_for_file(index: Tensor | None) -> Tensor:
    """Turn the positions in a weight into the tensor that a snapshot holds."""
    return torch.tensor([_WHOLE], device="cpu") if index is None else index.cpu()


def positions_from_file(stored: Tensor, parameter: Tensor) -> Tensor | None:
    """Read what :func:`positions_for_file` wrote for ``parameter``, or a mask's bits, which older snapshots hold."""
    if stored.dtype == torch.uint8:
        bits = np.unpackbits(stored.numpy(), count=parameter.numel())
        return find_positions(torch.from_numpy(bits).bool().to(parameter.device))
    return None if len(stored) == 1 and stored.item() == _WHOLE else stored.to(parameter.device)


def write_entries(tensor: Tensor, positions: Tensor, values: Tensor) -> None:
    """Set entries of a tensor in place.

    Args:
        tensor: In any memory layout.
        positions: (entries,) int64, different places in the flattened tensor.
        values: (entries,) in the tensor's type.
    """
    if tensor.is_contiguous():
        tensor.view(-1).scatter_(0, positions, values)
    else:
        tensor.index_put_(torch.unravel_index(positions, tensor.shape), values)
