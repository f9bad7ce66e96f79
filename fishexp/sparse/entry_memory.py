"""The memory of a weight and of its kept entries' values, seen as integers: to compare, to read, to write."""

import torch
from torch import Tensor

from fishexp.delta.fingerprint import bits


class EntryMemory:
    """View a weight, and two vectors of values of its kept entries, as integers in one order.

    Integers are equal where the bits are: NaN equals NaN, and -0.0 is not 0.0. The views are made once, as to make them
    takes longer than to compare the entries of most layers. What writes through them raises the version counters of the
    tensors that they were made of.

    Args:
        weight: In any memory layout without holes, such as channels last.
        values, synced: (kept,), of the weight's type.
        positions: (kept,) places in the flattened weight.

    Attributes:
        values, synced: (kept,) integers; (kept, 2) of complex numbers.
    """

    def __init__(self, weight: Tensor, values: Tensor, synced: Tensor, positions: Tensor) -> None:
        vector, self._places = _as_vector(weight.detach(), positions)
        self._weight, self.values, self.synced = _bits(vector), _bits(values), _bits(synced)
        self._made_of = _identity(weight, values, synced)
        self._strides, self._length = weight.stride(), len(vector)

    def is_of(self, weight: Tensor, values: Tensor, synced: Tensor) -> bool:
        """Tell whether these tensors still have the memory that the views were made of."""
        return self._made_of == _identity(weight, values, synced)

    def vectors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return values, synced and the weight as vectors of integers, and the places of the kept entries in it."""
        return self.values, self.synced, self._weight, self._places

    def is_laid_out_as(self, dense: Tensor) -> bool:
        """Tell whether a tensor of the weight's shape has its numbers in the weight's order."""
        return dense.stride() == self._strides

    def gather(self, dense: Tensor) -> Tensor:
        """Return the kept entries of a tensor that is laid out as the weight."""
        return dense.as_strided((self._length,), (1,)).index_select(0, self._places)

    def read(self) -> Tensor:
        """Return the kept entries as the weight has them, as integers."""
        return self._weight.index_select(0, self._places)

    def write(self, entries: Tensor, *, unnoticed: bool = False) -> None:
        """Write the kept entries, given as integers, into the weight.

        Args:
            unnoticed: Leave the weight's version counter as it is.
        """
        index = self._places.long()
        if entries.dim() == 2:  # of complex numbers
            index = index[:, None].expand(-1, 2)
        (self._weight.data if unnoticed else self._weight).scatter_(0, index, entries)


def entries_at(tensor: Tensor, places: Tensor) -> Tensor:
    """Return the entries of a tensor at places of it as if flattened; faster than ``take`` where it is contiguous."""
    return tensor.view(-1).index_select(0, places) if tensor.is_contiguous() else tensor.take(places.long())


def _identity(weight: Tensor, values: Tensor, synced: Tensor) -> tuple[object, ...]:
    return weight.data_ptr(), weight.stride(), weight.dtype, values.data_ptr(), synced.data_ptr()


def _as_vector(weight: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight as a vector in the order of its memory, and the places of the kept entries there."""
    if weight.is_contiguous():
        return weight.view(-1), positions
    index = torch.unravel_index(positions.long(), weight.shape)
    places = torch.stack([i * stride for i, stride in zip(index, weight.stride(), strict=True)]).sum(0)
    length = 1 + sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))
    return weight.as_strided((length,), (1,)), places.to(positions.dtype)


def _bits(vector: Tensor) -> Tensor:
    vector = vector.detach()
    return bits(torch.view_as_real(vector) if vector.is_complex() else vector)
