"""Powers of gradients, added up: squares, or absolute values."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

Power: TypeAlias = Literal["square", "absolute"]

# Both were measured on one core with 1 MiB of L2 cache.

# tokens an example; up to here the squares cost more than the products, and blocks of rows that stay in the cache pay
FEW_TOKENS = 8
# weights in such a block
BLOCK_WEIGHTS = 2**17


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
    """Add the powers of each example's product of ``left`` and ``right`` over the tokens, formed in one buffer.

    Args:
        total: (rows, columns).
        left: (examples, tokens, rows).
        right: (examples, tokens, columns).
    """
    if left.shape[1] == 1:
        rows, columns = (powered(t[:, 0].to(total.dtype), power) for t in (left, right))
        total.addmm_(rows.t(), columns)
        return
    right = right.to(left.dtype)
    size = len(total)
    if left.shape[1] <= FEW_TOKENS and not total.is_cuda:
        size = min(size, max(1, BLOCK_WEIGHTS // total.shape[1]))
    buffer = left.new_empty(size, total.shape[1])
    for part, rows in zip(total.split(size), left.transpose(1, 2).split(size, 1), strict=True):
        product = buffer[: len(part)]
        for example, columns in zip(rows, right, strict=True):
            add_power(part, torch.mm(example, columns, out=product), power)


def powered(gradients: Tensor, power: Power) -> Tensor:
    return gradients.square() if power == "square" else gradients.abs()
