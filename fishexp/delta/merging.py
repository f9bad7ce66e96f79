"""Several deltas for one base become one."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fishexp.delta.content import Content
from fishexp.delta.delta import Delta
from fishexp.delta.difference import change, members, ties
from fishexp.delta.fingerprint import Fingerprint, bits, fingerprint, flat, in_threads
from fishexp.delta.moved import Moved
from fishexp.delta.overlap import Overlap
from fishexp.delta.tensors import Source, Tensors, source
from fishexp.errors import DeltaError

How: TypeAlias = Literal["sum", "mean"]


def merge(deltas: Sequence[Content], base: Tensors | Source, how: How = "sum") -> tuple[Delta, Overlap]:
    """One delta with what each of several moves.

    A delta moves an entry if it gives it other bits than the base has. An entry that a single delta moves gets that
    delta's value. One that several move gets the base's value plus the sum, or the mean over these deltas, of their
    differences to it, computed in 64 bits.

    Args:
        deltas: For the same base.
        base: In any form that :meth:`Delta.diff` takes; its tensors are read a few at a time.
        how: ``sum`` keeps what each task learned, ``mean`` averages.

    Returns:
        The delta, and how many entries of each tensor several deltas move.

    Raises:
        DeltaError: If a delta is for another base; or several move an integer, a bool or an entry that the base does
            not have, and do not agree.
        OSError: If a file cannot be read.
    """
    if how not in ("sum", "mean"):
        raise DeltaError(f"how={how!r} is neither 'sum' nor 'mean'")
    found = source(base)
    tied = ties(found, found, *(delta.tied for delta in deltas))
    places = members(found, tied)
    prints = dict(zip(places, in_threads(lambda name: fingerprint(found.read(name)), places.values()), strict=True))
    several = [_renamed(delta, tied, prints, number) for number, delta in enumerate(deltas, 1)]
    removed = {tied.get(name, name) for delta in deltas for name in delta.removed}

    def one(name: str) -> tuple[Moved | None, int]:
        here = [moved[name] for moved in several if name in moved]
        if name in removed and here:
            raise DeltaError(f"{name} has new values in one delta and is removed by another")
        try:
            return _merged(found.read(places[name]) if name in places else None, here, how)
        except DeltaError as error:
            raise DeltaError(f"{name}: {error}") from None

    names = list(dict.fromkeys(name for moved in several for name in moved))
    results = dict(zip(names, in_threads(one, names), strict=True))
    moved = {name: entries for name, (entries, _) in results.items() if entries is not None}
    collisions = {name: count for name, (_, count) in results.items() if count}
    total = sum(len(entries.values) for entries in moved.values())
    return Delta(prints, moved, tuple(sorted(removed)), tied), Overlap(collisions, total)


def _renamed(delta: Content, tied: Mapping[str, str], base: Mapping[str, Fingerprint], number: int) -> dict[str, Moved]:
    """The delta's values by the names that all deltas share.

    Raises:
        DeltaError: If it is for another base.
    """
    own = {tied.get(name, name): one for name, one in delta.base.items()}
    for name in [*base, *own]:
        one, other = base.get(name), own.get(name)
        unknown = one is not None and other is not None and other.sha256 is None and str(one) == str(other)
        if one != other and not unknown:
            what = "missing" if one is None else str(one)
            its = "none of that name" if other is None else "other values" if str(one) == str(other) else str(other)
            raise DeltaError(f"delta {number} is for another base: {name} is {what}, the delta's base has {its}")
    moved: dict[str, Moved] = {}
    for name, entries in delta.moved.items():
        if moved.setdefault(tied.get(name, name), entries).sha256 != entries.sha256:
            raise DeltaError(f"{name} is two tensors that differ in delta {number}, and one elsewhere")
    return moved


def _merged(base: Tensor | None, deltas: Sequence[Moved], how: How) -> tuple[Moved | None, int]:
    """What several deltas make of one tensor, and how many entries more than one of them moves."""
    old = deltas[0].values[:0] if base is None else flat(base)
    shapes = {moved.shape for moved in deltas if base is None or moved.after.entries > len(old)}
    if len(shapes) > 1:
        raise DeltaError(
            f"the deltas make its shape {' and '.join(map(str, sorted(shapes)))}; one of them has to change"
        )
    shape = next(iter(shapes), deltas[0].shape)
    places, values = zip(*(_moves(old, moved) for moved in deltas), strict=True)
    place, value = torch.cat(places), torch.cat(values)
    new = torch.cat([old, old.new_zeros(prod(shape) - len(old))])
    bits(new)[place] = value  # in any order, where several move an entry
    entries, which, counts = place.unique(return_inverse=True, return_counts=True)
    several = counts > 1
    if bool(several.any()):
        bits(new)[entries[several]] = _together(old, entries, which, counts, value, how)[several]
    return change(base, new.view(shape)), int(several.sum())


def _moves(old: Tensor, moved: Moved) -> tuple[Tensor, Tensor]:
    """Positions and bits of the entries that a delta moves: new ones, and those with other bits than they had."""
    where, value = moved.where(), bits(moved.values)
    known = where < len(old)
    moves = ~known
    moves[known] = value[known] != bits(old)[where[known]]
    return where[moves], value[moves]


def _together(old: Tensor, entries: Tensor, which: Tensor, counts: Tensor, value: Tensor, how: How) -> Tensor:
    """The bits that entries get of which several deltas move some; ``which`` entry each value is for."""
    any_of = value.new_empty(len(entries))
    any_of[which] = value
    differ = torch.zeros(len(entries), dtype=torch.bool)
    differ[which[value != any_of[which]]] = True
    known = entries < len(old)
    has_sum = known if old.is_floating_point() or old.is_complex() else torch.zeros_like(known)
    if count := int((differ & ~has_sum).sum()):
        raise DeltaError(
            f"the deltas have different values for {count} of its entries, which have no {how}, being no floats or not "
            "in the base; make them equal, or take the tensor out of one"
        )
    wide = torch.complex128 if old.is_complex() else torch.float64
    start = torch.zeros(len(entries), dtype=wide)
    start[known] = bits(old)[entries[known]].view(old.dtype).to(wide)
    total = torch.zeros_like(start).index_add_(0, which, value.view(old.dtype).to(wide) - start[which])
    merged = start + (total / counts if how == "mean" else total)
    return torch.where(has_sum & (differ | (how == "sum")), bits(merged.to(old.dtype)), any_of)
