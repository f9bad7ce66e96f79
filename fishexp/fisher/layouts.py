"""Layouts: which example each part of a tensor belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


class Unbatchable(RuntimeError):
    """Say at which weight, and why, the examples of a batch cannot be told apart."""


@dataclass(frozen=True)
class Blocks:
    """Say that each of ``examples`` has as many neighbours along dimension ``dim``, in the order of the examples.

    Attributes:
        groups: How often that is repeated along ``dim``: (tokens, examples, features) flattened to two dimensions has
            as many groups as tokens.
    """

    examples: int
    dim: int
    groups: int = 1

    def fits(self, shape: Sequence[int]) -> bool:
        """Tell whether a tensor of this shape may have the layout."""
        size = shape[self.dim] if 0 <= self.dim < len(shape) else 0
        return size > 0 and size % (self.groups * self.examples) == 0

    def first(self, tensor: Tensor) -> Tensor:
        """Return (examples, ...) in which each dimension comes one later, ``dim`` with the example's own part only."""
        cut = tensor.unflatten(self.dim, (self.groups, self.examples, -1))
        return cut.movedim(self.dim + 1, 0).flatten(self.dim + 1, self.dim + 2)

    def part(self, tensor: Tensor, i: int) -> Tensor:
        """Return the ``i``-th example's part, with all dimensions."""
        cut = tensor.unflatten(self.dim, (self.groups, self.examples, -1))
        return cut.select(self.dim + 1, i).flatten(self.dim, self.dim + 1)

    def only(self, tensor: Tensor, i: int) -> Tensor:
        """Return a copy that is zero outside the ``i``-th example's part."""
        own = self.numbers_of(tensor) == i
        return torch.where(own, tensor, 0)

    def tokens(self, tensor: Tensor) -> Tensor:
        """Return (examples, tokens, features) of a tensor (..., features)."""
        return self.first(tensor).reshape(self.examples, -1, tensor.shape[-1])

    def sums(self, tensor: Tensor, kept: list[int], dtype: torch.dtype) -> Tensor:
        """Sum each example over all dimensions but ``kept``, in ``dtype``; return (examples, *kept)."""
        first = self.first(tensor)
        others = [d for d in range(1, first.dim()) if d - 1 not in kept]
        return first.sum(others, dtype=dtype)

    def numbers_of(self, positions: Tensor) -> Tensor:
        """Return the number of the example of each position, in a shape that broadcasts to that of ``positions``."""
        size = positions.shape[self.dim] // (self.groups * self.examples)
        numbers = torch.arange(self.examples, device=positions.device).repeat_interleave(size).repeat(self.groups)
        return numbers.view(-1, *[1] * (positions.dim() - self.dim - 1))


@dataclass(frozen=True, eq=False)
class Rows:
    """Say of each row (all dimensions but the last, flattened) which example it belongs to.

    Attributes:
        numbers: (rows,) int64, of the examples.
    """

    examples: int
    numbers: Tensor

    def part(self, tensor: Tensor, i: int) -> Tensor:
        """Return the ``i``-th example's rows, (rows, features)."""
        return tensor.reshape(-1, tensor.shape[-1])[self.numbers == i]

    def only(self, tensor: Tensor, i: int) -> Tensor:
        """Return a copy that is zero outside the ``i``-th example's rows."""
        return torch.where((self.numbers == i).view(*tensor.shape[:-1], 1), tensor, 0)

    def tokens(self, tensor: Tensor) -> list[Tensor]:
        """Return (tokens, features) of each example of a tensor (..., features)."""
        return [self.part(tensor, i) for i in range(self.examples)]

    def sums(self, tensor: Tensor, kept: list[int], dtype: torch.dtype) -> Tensor:
        """Sum each example over all dimensions but the last, in ``dtype``; return (examples, features)."""
        total = tensor.new_zeros(self.examples, tensor.shape[-1], dtype=dtype)
        return total.index_add_(0, self.numbers, tensor.reshape(-1, tensor.shape[-1]).to(dtype))

    def numbers_of(self, positions: Tensor) -> Tensor:
        """Return the number of the example of each position."""
        return self.numbers.view(positions.shape)


Layout: TypeAlias = Blocks | Rows


class Weighing:
    """Find out which example each part of a gradient belongs to, from two backward passes.

    In the second each example's objective is multiplied by a power of two of its own. What belongs to one example is
    then multiplied by its factor, to the bit, and what several examples share is not multiplied by any: so nothing is
    assumed of how a model treats its tensors, and what cannot be told apart is found in every batch.

    Attributes:
        factors: (examples,) the powers of two; they repeat, in another order, after as many as differ.
    """

    def __init__(self, examples: int, device: torch.device) -> None:
        self.examples = examples
        number, span = torch.arange(examples, device="cpu"), min(examples, _FACTORS)
        exponents = (number + 7 * (number // span)) % span - span // 2  # small, so that small gradients stay in range
        self.exponents = exponents.to(device)
        self.factors = (2.0 ** exponents.double()).to(device)

    def layout(self, plain: Tensor, weighed: Tensor, by_rows: bool) -> Layout | None:
        """Return the layout of a gradient from its :func:`summary` in both passes; None if examples share a part.

        Args:
            by_rows: Whether rows in any order will do.
        """
        largest = plain.abs().max() if plain.numel() else plain.new_zeros(())
        noise = 1e3 * torch.finfo(plain.dtype).eps * largest
        for dim, size in enumerate(plain.shape):
            if size and size % self.examples == 0:
                factors = self.factors.to(noise.dtype).repeat_interleave(size // self.examples)
                factors = factors.view(-1, *[1] * (plain.dim() - dim - 1))
                if bool(((weighed - factors * plain).abs() <= noise * factors).all()):
                    return Blocks(self.examples, dim)
        if not by_rows or self.examples > _FACTORS:
            return None
        plain, weighed = plain.flatten(), weighed.flatten()
        exponents = torch.where(plain != 0, weighed / plain, 1).abs().log2().round().long()
        known = torch.full((2 * _FACTORS,), -1, device=plain.device)
        known[self.exponents + _FACTORS] = torch.arange(self.examples, device=plain.device)
        numbers = known[(exponents + _FACTORS).clamp(0, 2 * _FACTORS - 1)]
        numbers = torch.where(plain.abs() <= noise, numbers.clamp(min=0), numbers)
        factors = self.factors.to(noise.dtype)[numbers.clamp(min=0)]
        matches = ((weighed - factors * plain).abs() <= noise * factors) & (numbers >= 0)
        return Rows(self.examples, numbers) if bool(matches.all()) else None


# powers of two that differ; the range of float32 leaves room for gradients on both sides
_FACTORS = 61


def summary(gradient: Tensor) -> Tensor:
    """Return a number for each row of a gradient, whose entries could cancel in a plain sum; float32 at least."""
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    if gradient.dim() < 2:
        return gradient
    width = gradient.shape[-1]
    return gradient @ torch.cos(1.7 * torch.arange(width, device=gradient.device) + 0.3).to(gradient.dtype)
