"""The parts of a delta, whether it is in memory or in a file: new values, and the positions where they stand."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from fishexp.delta.fingerprint import Fingerprint, bits, digest, piece_entries, raw
from fishexp.masks.random_masks import ScoredParameter, SeedRecipe, expand, make_recipe

_drawing = Lock()  # several threads may ask for positions that have not been drawn yet


class SeedMask:
    """Know the positions of a random mask by its recipe; they are drawn when the first are asked for.

    Args:
        recipe: Of the mask.
        order: The parameters that have scores, as these are drawn.
        counts: How many positions each parameter has.
        positions: The positions themselves, where they are known already.
    """

    def __init__(
        self,
        recipe: SeedRecipe,
        order: Sequence[ScoredParameter],
        counts: Mapping[str, int],
        positions: dict[str, Tensor] | None = None,
    ) -> None:
        self.recipe, self.order, self.counts = recipe, tuple(order), dict(counts)
        self._positions = positions

    def positions(self, name: str) -> Tensor:
        """Return the positions of a parameter: (k,) int64, ascending.

        Raises:
            DeltaError: If others come back than those that the recipe was made of.
        """
        with _drawing:
            if self._positions is None:
                self._positions = dict(expand(self.recipe, self.order, self.counts))
        return self._positions[name]


@dataclass(frozen=True, eq=False)
class SeededPositions:
    """Stand for the positions that a seed mask has in the tensor ``name``."""

    mask: SeedMask
    name: str


def seed_mask(
    shapes: Mapping[str, tuple[int, ...]], seed: int, positions: Mapping[str, Tensor | None]
) -> SeedMask | None:
    """Return the mask with these positions if ``seed`` drew them, None otherwise.

    Args:
        shapes: name -> shape of each parameter that has scores, in the order in which they were drawn.
        positions: name -> (k,) int64, ascending, or None for a tensor that is stored whole, whatever its scores.
    """
    order = [
        ScoredParameter(name, shape, name in positions and positions[name] is None) for name, shape in shapes.items()
    ]
    some = {p.name: found for p in order if (found := positions.get(p.name)) is not None and len(found)}
    recipe = make_recipe(order, seed, some)
    if recipe is None:
        return None
    return SeedMask(recipe, order, {name: len(found) for name, found in some.items()}, some)


@dataclass(frozen=True, eq=False)
class TensorDelta:
    """Hold the new values of a tensor.

    Attributes:
        shape: Of the tensor, after.
        places: (kept,) int64, ascending: where in the flattened tensor the kept entries stand, or the seed mask that
            knows it; None if all entries are kept.
        values: (moved,) in the tensor's type, on the CPU: those of the kept entries that moved.
        sha256: Of the whole tensor, after.
        unmoved: (kept - moved,) int64, ascending: which of the kept entries have no value here, as theirs is that of
            the base, to the bit; None if all have one.
    """

    shape: tuple[int, ...]
    places: Tensor | SeededPositions | None
    values: Tensor
    sha256: str
    unmoved: Tensor | None = None

    @property
    def count(self) -> int:
        """Count the kept entries."""
        return len(self.values) + (0 if self.unmoved is None else len(self.unmoved))

    @property
    def kept(self) -> Tensor | None:
        """Return the positions of the kept entries, (kept,) int64, ascending; None if all are kept."""
        return self.places.mask.positions(self.places.name) if isinstance(self.places, SeededPositions) else self.places

    @cached_property
    def positions(self) -> Tensor | None:
        """Return the positions of the values, (moved,) int64, ascending; None if the tensor is stored whole."""
        if self.unmoved is None:
            return self.kept
        moved = torch.ones(self.count, dtype=torch.bool, device="cpu")
        moved[self.unmoved] = False
        return moved.nonzero().flatten() if self.kept is None else self.kept[moved]

    @property
    def after(self) -> Fingerprint:
        """Return the fingerprint of the tensor with the new values."""
        return Fingerprint(self.values.dtype, self.shape, self.sha256)

    @property
    def kind(self) -> Fingerprint:
        """Return type and shape of the tensor."""
        return Fingerprint(self.values.dtype, self.shape)

    def where(self) -> Tensor:
        """Return the positions of the values, (moved,) int64, of a tensor stored whole as well."""
        return torch.arange(len(self.values), device="cpu") if self.positions is None else self.positions

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the bits that a tensor of this shape, on any device and in any order, has in place of the values."""
        if self.positions is None:
            return bits(tensor).flatten().clone()
        positions = self.positions.to(tensor.device)
        if tensor.is_contiguous():  # half the time
            return bits(tensor).view(-1).index_select(0, positions)
        return bits(tensor).take(positions)

    def write_(self, tensor: Tensor, values: Tensor) -> None:
        """Write the bits of ``values`` into the tensor, in place of the delta's."""
        values = bits(values).to(tensor.device)
        if self.positions is None:
            bits(tensor).copy_(values.view(self.shape))
            return
        positions = self.positions.to(tensor.device)
        if tensor.is_contiguous():
            bits(tensor).view(-1).scatter_(0, positions, values)
        else:  # `put_` would be refused where the user asks torch for deterministic algorithms
            bits(tensor)[torch.unravel_index(positions, self.shape)] = values

    def patched(self, before: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each piece of a tensor as it is, and the same piece with the new values; the tensor is left alone.

        Args:
            before: The tensor in pieces, see :func:`fishexp.delta.fingerprint.pieces`. It may have fewer rows; a piece
                of new rows has no entries before.
        """
        step, entries, remaining = piece_entries(self.values.dtype), self.after.entries, iter(before)
        positions = None if self.positions is None else self.positions.numpy()
        values = bits(self.values).numpy()  # torch would have several threads wait for one another at every piece
        for start in range(0, entries, step):
            old = next(remaining, self.values[:0])
            if positions is None:
                new = values[start : start + step]
            else:
                new = np.zeros(min(step, entries - start), values.dtype)
                new[: len(old)] = bits(old).numpy()
                low, high = np.searchsorted(positions, [start, start + len(new)])
                new[positions[low:high] - start] = values[low:high]
            yield old, torch.from_numpy(new).view(self.values.dtype)

    def hashes(self, before: Iterable[Tensor], entries: int) -> tuple[str, str]:
        """Return the SHA-256 of a tensor's first ``entries`` as it is, and of all of it with the new values.

        Args:
            before: The tensor in pieces, as for :meth:`patched`.
            entries: How many entries the base has, where the tensor has new rows already.
        """
        old_hash, new_hash = hashlib.sha256(), hashlib.sha256()
        for old, new in self.patched(before):
            old_hash.update(raw(old[:entries]))
            entries -= min(entries, len(old))
            new_hash.update(raw(new))
        return old_hash.hexdigest(), new_hash.hexdigest()


@dataclass(frozen=True, eq=False, repr=False)
class Content:
    """Hold new values of some entries of a model's tensors, and what the model was before.

    Attributes:
        base: name -> fingerprint of each tensor of the base. Tied tensors stand under one name.
        moved: name -> the new values of a tensor that has any. What ``base`` lacks is new, and stored whole.
        removed: Tensors of the base that are there no more; of files only.
        tied: Another name of a tensor -> the one that ``base`` or ``moved`` has.
    """

    base: Mapping[str, Fingerprint]
    moved: Mapping[str, TensorDelta]
    removed: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)

    @property
    def all_names(self) -> list[str]:
        """Name the tensors before and after, tied ones by all of their names."""
        return [*dict.fromkeys([*self.base, *self.moved, *self.tied])]

    def named_as(self, names: Mapping[str, str]) -> "Content":
        """Return the same delta with tensors by other names, as far as ``names`` has them."""

        def new(name: str) -> str:
            return names.get(name, name)

        return Content(
            {new(name): tensor for name, tensor in self.base.items()},
            {new(name): entries for name, entries in self.moved.items()},
            tuple(sorted(new(name) for name in self.removed)),
            {new(name): new(first) for name, first in self.tied.items()},
        )

    @cached_property
    def result(self) -> dict[str, Fingerprint]:
        """Return the fingerprint that each tensor has afterwards, by name."""
        gone = set(self.removed)
        found = {name: tensor for name, tensor in self.base.items() if name not in gone}
        return found | {name: moved.after for name, moved in self.moved.items()}

    @cached_property
    def before(self) -> str:
        """Return the SHA-256 of the base; where it equals another delta's ``after``, this one follows on that."""
        return digest(self.base)

    @cached_property
    def after(self) -> str:
        """Return the SHA-256 of the result."""
        return digest(self.result)
