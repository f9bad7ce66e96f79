"""Powers of gradients, added up: squares, or absolute values."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

Power: TypeAlias = Literal["square", "absolute"]

# tokens of an example up to which a product for each pair of them costs less than the squares of the gradients
PAIRED_TOKENS = 4
# weights whose product and sum of powers stay in the cache together
CACHED_WEIGHTS = 2**20
# rows, for each thread, and columns of the blocks that more weights are cut into
BLOCK = 256, 1024


def add_power(total: Tensor, gradient: Tensor, power: Power, sign: int = 1) -> None:
    """Add ``sign * gradient**2``, or the absolute value, to ``total``; overwrite ``gradient`` to take no memory."""
    if gradient.is_sparse:
        gradient = gradient.to_dense()
    gradient = gradient.to(total.dtype)  # once; the product below would do it twice
    if power == "square":
        total.addcmul_(gradient, gradient, value=sign)
    else:
        total.add_(gradient.abs_(), alpha=sign)


def add_product_powers(total: Tensor, left: Tensor, right: Tensor, power: Power) -> None:
    """Add the powers of each example's product of ``left`` and ``right`` over the tokens, in one buffer at most.

    Args:
        total: (rows, columns).
        left: (examples, tokens, rows).
        right: (examples, tokens, columns).
    """
    tokens = left.shape[1]
    if tokens == 1:
        rows, columns = (powered(t[:, 0].to(total.dtype), power) for t in (left, right))
        total.addmm_(rows.t(), columns)
    elif tokens <= PAIRED_TOKENS and power == "square":
        _add_paired_squares(total, left.to(total.dtype), right.to(total.dtype))
    else:
        _add_block_by_block(total, left, right.to(left.dtype), power)


def _add_paired_squares(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the squares as one product of matrices, by (a + b)^2 = aa + 2ab + bb for the parts a, b of two tokens."""
    one, other = torch.triu_indices(left.shape[1], left.shape[1], device=left.device)
    times = torch.where(one == other, 1, 2).to(left.dtype)[:, None]
    size = max(1, total.numel() // (len(one) * sum(total.shape)))  # examples whose pairs take no more than a gradient
    for some, others in zip(left.split(size), right.split(size), strict=True):
        rows = (some[:, one] * some[:, other] * times).flatten(0, 1)
        columns = (others[:, one] * others[:, other]).flatten(0, 1)
        total.addmm_(rows.t(), columns)
    total.clamp_(min=0)  # where the parts cancel each other, rounding may leave less


def _add_block_by_block(total: Tensor, left: Tensor, right: Tensor, power: Power) -> None:
    """Add the powers of all examples to a block of the weights before the next, in the same buffer."""
    whole = total.is_cuda or total.numel() <= CACHED_WEIGHTS
    rows, columns = total.shape if whole else (BLOCK[0] * torch.get_num_threads(), BLOCK[1])
    buffer = left.new_empty(min(rows, len(total)) * min(columns, total.shape[1]))
    for block, some in zip(total.split(rows), left.transpose(1, 2).split(rows, 1), strict=True):
        for part, others in zip(block.split(columns, 1), right.split(columns, 2), strict=True):
            product = buffer[: part.numel()].view(part.shape)
            for one, other in zip(some, others, strict=True):
                add_power(part, torch.mm(one, other, out=product), power)


def powered(gradients: Tensor, power: Power) -> Tensor:
    return gradients.square() if power == "square" else gradients.abs()
