"""The part of a delta that is about one tensor."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from fishexp.delta.fingerprint import Fingerprint, bits, flat, raw, sha256
from fishexp.delta.part import Part

PIECE = 1 << 18  # entries hashed together


@dataclass(frozen=True, eq=False)
class Moved:
    """The new values of a tensor.

    Attributes:
        shape: Of the tensor, after.
        places: (k,) int64, ascending: where in the flattened tensor the values stand, or the mask that knows it; None
            if the tensor is stored whole.
        values: (k,) or (entries,), in the tensor's type, on the CPU.
        sha256: Of the whole tensor, after.
    """

    shape: tuple[int, ...]
    places: Tensor | Part | None
    values: Tensor
    sha256: str

    @property
    def positions(self) -> Tensor | None:
        """(k,) int64, ascending; None if the tensor is stored whole."""
        return self.places.mask.positions(self.places.name) if isinstance(self.places, Part) else self.places

    @property
    def after(self) -> Fingerprint:
        """What the tensor is afterwards."""
        return Fingerprint(self.values.dtype, self.shape, self.sha256)

    @property
    def kind(self) -> Fingerprint:
        """Type and shape of the tensor."""
        return Fingerprint(self.values.dtype, self.shape)

    def where(self) -> Tensor:
        """(k,) int64 positions, of a tensor stored whole as well."""
        return torch.arange(len(self.values)) if self.positions is None else self.positions

    def gather(self, tensor: Tensor) -> Tensor:
        """The bits that a tensor of this shape, on any device and in any order, has in the place of the values."""
        if self.positions is None:
            return bits(tensor).flatten().clone()
        places = self.positions.to(tensor.device)
        if tensor.is_contiguous():  # half the time
            return bits(tensor).view(-1).index_select(0, places)
        return bits(tensor).take(places)

    def write_(self, tensor: Tensor, values: Tensor) -> None:
        """The bits of ``values`` into the tensor, in the place of the delta's."""
        values = bits(values).to(tensor.device)
        if self.positions is None:
            bits(tensor).copy_(values.view(self.shape))
            return
        places = self.positions.to(tensor.device)
        if tensor.is_contiguous():
            bits(tensor).view(-1).scatter_(0, places, values)
        else:  # `put_` would be refused where the user asks torch for deterministic algorithms
            bits(tensor)[torch.unravel_index(places, self.shape)] = values

    def hashes(self, tensor: Tensor, entries: int) -> tuple[str, str]:
        """SHA-256 of the first ``entries`` of the tensor as it is, and of all of it with these values in their place.

        The tensor is left alone, and not copied but for a piece at a time.
        """
        entire, before, after = flat(tensor), hashlib.sha256(), hashlib.sha256()
        places, values = self.positions, bits(self.values)
        for start in range(0, len(entire), PIECE):
            piece = entire[start : start + PIECE]
            before.update(raw(piece[: max(0, entries - start)]))
            if places is None:
                piece = self.values[start : start + PIECE]
            else:
                low, high = torch.searchsorted(places, torch.tensor([start, start + len(piece)])).tolist()
                piece = piece.clone()
                bits(piece)[places[low:high] - start] = values[low:high]
            after.update(raw(piece))
        return before.hexdigest(), after.hexdigest()


def whole(tensor: Tensor) -> Moved:
    """All of a tensor."""
    return Moved(tuple(tensor.shape), None, flat(tensor).clone(), sha256(tensor))
