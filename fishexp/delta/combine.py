"""Make one delta of several: those that follow on one another are chained, those for the same base merged."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fishexp.delta.apply import contradiction
from fishexp.delta.content import Content, TensorDelta
from fishexp.delta.delta import Delta
from fishexp.delta.diff import by_common_name, change, common_ties, whole
from fishexp.delta.fingerprint import Fingerprint, bits, in_threads
from fishexp.delta.names import match, plainer
from fishexp.delta.sources import LoadedTensor, Source, TensorReader, Tensors, read_fingerprint, source
from fishexp.errors import DeltaError

MergeRule: TypeAlias = Literal["sum", "mean"]

# how entries of any model become one that several tasks have moved
_Rule: TypeAlias = Literal["sum", "mean", "largest"]
# last part of the name of a running statistic -> its rule
_STATISTICS: Mapping[str, _Rule] = {"running_mean": "mean", "running_var": "mean", "num_batches_tracked": "largest"}


@dataclass(frozen=True)
class Overlap:
    """Count the entries for which several deltas have values.

    Attributes:
        entries: name -> how many entries several deltas want to change, of tensors with any. A merge counts those that
            several move, a stack those for which several have values, and not the same.
        total: New values that the deltas have, in all.
    """

    entries: Mapping[str, int]
    total: int

    @property
    def count(self) -> int:
        """Count the entries of all tensors."""
        return sum(self.entries.values())

    def __str__(self) -> str:
        if not self.count:
            return "the deltas do not meet in any entry"
        most = max(self.entries, key=self.entries.__getitem__)
        return (
            f"the deltas meet in {self.count:,} entries of {len(self.entries)} tensors, "
            f"{self.entries[most]:,} of them in {most}"
        )


def find_overlap(pairs: Iterable[tuple[Mapping[str, TensorDelta], Mapping[str, TensorDelta]]], total: int) -> Overlap:
    """Find where the deltas of each pair have different values.

    Args:
        pairs: The new values of two deltas, by the names of the same model.
        total: New values that the deltas have, in all.
    """
    found: dict[str, list[Tensor]] = defaultdict(list)
    for first, second in pairs:
        for name in first.keys() & second.keys():
            found[name].append(_differing(first[name], second[name]))
    counts = {name: len(torch.cat(positions).unique()) for name, positions in sorted(found.items())}
    return Overlap({name: count for name, count in counts.items() if count}, total)


def _differing(first: TensorDelta, second: TensorDelta) -> Tensor:
    """Return the positions for which both have a value, and not the same."""
    if len(first.values) > len(second.values):
        first, second = second, first
    mine = first.where()
    if second.positions is None:
        both = mine < len(second.values)
        index = mine[both]
    else:
        index = torch.searchsorted(second.positions, mine).clamp_(max=len(second.positions) - 1)
        both = second.positions[index] == mine
        index = index[both]
    return mine[both][bits(first.values)[both] != bits(second.values)[index]]


def with_same_names(deltas: Sequence[Content], base: Collection[str]) -> list[Content]:
    """Return the deltas with the names that the first one has, without what wrappers put into them.

    Args:
        deltas: For the same base.
        base: Names of the base.
    """
    found = [delta.named_as(plainer(delta.all_names, base)) for delta in deltas]
    return [delta.named_as(match(delta.all_names, found[0].all_names).names) for delta in found]


def chain(deltas: Sequence[Content], strict: bool = True) -> Content:
    """Make one delta that does what all do, one after the other: each one's base is the result of the one before.

    Args:
        deltas: At least one.
        strict: If false, only names, types and shapes of a result have to be those of the next base.

    Raises:
        DeltaError: If a delta does not follow on the one before; the message names the first difference.
    """
    numbered = enumerate(deltas[1:], 2)
    return reduce(lambda first, second: _then(first, second[1], second[0], strict), numbered, deltas[0])


def _then(first: Content, second: Content, number: int, strict: bool) -> Content:
    second = second.named_as(match(second.all_names, first.all_names).names)
    second = second.named_as({name: known for name, known in first.tied.items() if name in second.base})
    _check_follows(first, second, number, strict)
    moved, removed = dict(first.moved), set(first.removed)
    for name, entries in second.moved.items():
        if name in removed:
            raise DeltaError(f"delta {number} brings {name} back, which was removed; apply the deltas one by one")
        moved[name] = _over(moved.get(name), entries)
    for name in second.removed:
        moved.pop(name, None)
        removed |= {name} & first.base.keys()
    return Content(first.base, moved, tuple(sorted(removed)), {**second.tied, **first.tied})


def _check_follows(first: Content, second: Content, number: int, strict: bool) -> None:
    before = f"delta {number} does not follow on the one before: "
    result = first.result
    for name in [*result, *second.base]:
        here, base = result.get(name), second.base.get(name)
        if here is None or base is None:
            raise DeltaError(f"{before}{name} is {'only in its base' if here is None else 'not in its base'}")
        if str(here) != str(base):
            raise DeltaError(f"{before}{name} is {here}, in its base {base}")
        if strict and base.sha256 not in (None, here.sha256):
            raise DeltaError(
                f"{before}the values of {name} are not those of its base; "
                "to put several deltas of one base together, merge them"
            )


def _over(old: TensorDelta | None, new: TensorDelta) -> TensorDelta:
    """Return the new values of both, those of ``new`` where both have one, and the kept entries of either."""
    if old is None or new.positions is None:
        return new
    if old.positions is None:
        values = old.values.new_zeros(prod(new.shape))
        values[: len(old.values)] = old.values
        bits(values)[new.positions] = bits(new.values)
        return TensorDelta(new.shape, None, values, new.sha256)
    stays = ~torch.isin(old.positions, new.positions, assume_unique=True)
    positions, order = torch.cat([old.positions[stays], new.positions]).sort()
    values = torch.cat([old.values[stays], new.values])[order]
    if old.kept is None or new.kept is None:
        places, kept = None, torch.arange(new.after.entries, device="cpu")
    else:
        places = kept = torch.cat([old.kept, new.kept]).unique()
    unmoved = torch.isin(kept, positions, assume_unique=True, invert=True).nonzero().flatten()
    return TensorDelta(new.shape, places, values, new.sha256, unmoved if len(unmoved) else None)


def merge(deltas: Sequence[Content], base: Tensors | Source, how: MergeRule = "sum") -> tuple[Delta, Overlap]:
    """Make one delta with what each of several moves.

    A delta moves an entry if it gives it other bits than the base has. An entry that a single delta moves gets that
    delta's value. One that several move gets the base's value plus the sum, or the mean over these deltas, of their
    differences to it, computed in 64 bits. Running statistics of normalisation are averaged in any case, since what
    several tasks took from a variance may be more than all of it; of their counts of batches the largest is taken.

    Args:
        deltas: For the same base.
        base: In any form that :meth:`Delta.diff` takes; its tensors are read a few at a time.
        how: ``sum`` keeps what each task learned, ``mean`` averages.

    Returns:
        The delta, and how many entries of each tensor several deltas move.

    Raises:
        DeltaError: If a delta is for another base, or contradicts itself; or several move an integer, a bool or an
            entry that the base does not have, and do not agree.
        OSError: If a file cannot be read.
    """
    if how not in ("sum", "mean"):
        raise DeltaError(f"how={how!r} is neither 'sum' nor 'mean'")
    found = source(base)
    names = [*found.tensors, *found.tied]
    deltas = with_same_names(deltas, names)
    if deltas:
        found = found.named_as(match(names, deltas[0].all_names).names)
    tied = common_ties(found, found, *(delta.tied for delta in deltas))
    tensors = by_common_name(found, tied)
    fingerprints = dict(zip(tensors, in_threads(read_fingerprint, tensors.values()), strict=True))
    several = [_on_common_base(delta, tied, fingerprints, number) for number, delta in enumerate(deltas, 1)]
    removed = {tied.get(name, name) for delta in deltas for name in delta.removed}

    def merged(name: str) -> tuple[TensorDelta | None, int]:
        here = [moved[name] for moved in several if name in moved]
        for moved in here:
            _check_result(name, tensors.get(name), moved)
        if name in removed and here:
            raise DeltaError(f"{name} has new values in one delta and is removed by another")
        rule = _STATISTICS.get(name.rpartition(".")[2], how)
        try:
            return _merged(tensors.get(name), here, rule)
        except DeltaError as error:
            raise DeltaError(f"{name}: {error}") from None

    names = list(dict.fromkeys(name for moved in several for name in moved))
    results = dict(zip(names, in_threads(merged, names), strict=True))
    moved = {name: entries for name, (entries, _) in results.items() if entries is not None}
    collisions = {name: count for name, (_, count) in results.items() if count}
    total = sum(len(entries.values) for entries in moved.values())
    return Delta(fingerprints, moved, tuple(sorted(removed)), tied), Overlap(collisions, total)


def _check_result(name: str, base: TensorReader | None, moved: TensorDelta) -> None:
    """Check that the new values of a tensor give the result that the delta says."""
    if moved.hashes(() if base is None else base.pieces(), 0)[1] != moved.sha256:
        raise contradiction(name)


def whole_result(name: str, base: TensorReader | None, moved: TensorDelta | None) -> TensorDelta:
    """Return all of a tensor with its new values, if any.

    Raises:
        DeltaError: If they do not give the result that the delta says.
    """
    if moved is None:
        assert base is not None
        return whole(base)
    pieces = [new for _, new in moved.patched(() if base is None else base.pieces())]
    found = TensorDelta(moved.shape, None, torch.cat(pieces) if pieces else moved.values, moved.sha256)
    _check_result(name, None, found)
    return found


def _on_common_base(
    delta: Content, tied: Mapping[str, str], base: Mapping[str, Fingerprint], number: int
) -> dict[str, TensorDelta]:
    """Return the delta's values by the names that all deltas share.

    Raises:
        DeltaError: If it is for another base.
    """
    own = {tied.get(name, name): tensor for name, tensor in delta.base.items()}
    for name in [*base, *own]:
        here, its = base.get(name), own.get(name)
        unknown = here is not None and its is not None and its.sha256 is None and str(here) == str(its)
        if here != its and not unknown:
            found = "missing" if here is None else str(here)
            wanted = "none of that name" if its is None else "other values" if str(here) == str(its) else str(its)
            raise DeltaError(f"delta {number} is for another base: {name} is {found}, the delta's base has {wanted}")
    moved: dict[str, TensorDelta] = {}
    for name, entries in delta.moved.items():
        if moved.setdefault(tied.get(name, name), entries).sha256 != entries.sha256:
            raise DeltaError(f"{name} is two tensors that differ in delta {number}, and one elsewhere")
    return moved


def _merged(base: TensorReader | None, deltas: Sequence[TensorDelta], how: _Rule) -> tuple[TensorDelta | None, int]:
    """Return what several deltas make of a tensor, and how many entries more than one of them moves."""
    new = deltas[0].values[:0] if base is None else base.read()
    shapes = {moved.shape for moved in deltas if base is None or moved.after.entries > len(new)}
    if len(shapes) > 1:
        raise DeltaError(
            f"the deltas make its shape {' and '.join(map(str, sorted(shapes)))}; one of them has to change, or "
            "--keep-heads (merge_tasks) keeps a head for each"
        )
    shape = next(iter(shapes), deltas[0].shape)
    found = [_moves(new, moved) for moved in deltas]
    positions, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    entries, which, counts = positions.unique(return_inverse=True, return_counts=True)
    several = counts > 1
    together = _together(new, entries, which, counts, values, how)[several] if bool(several.any()) else None
    if prod(shape) > len(new):
        new = torch.cat([new, new.new_zeros(prod(shape) - len(new))])
    bits(new)[positions] = values  # in any order, where several move an entry
    if together is not None:
        bits(new)[entries[several]] = together
    after = LoadedTensor(new.view(shape))
    moved = whole(after) if base is None else change(base.kind, base.pieces(), after)
    return moved, int(several.sum())


def _moves(old: Tensor, moved: TensorDelta) -> tuple[Tensor, Tensor]:
    """Return positions and bits of the entries that a delta moves: new ones, and those with other bits than before."""
    positions, values = moved.where(), bits(moved.values)
    known = positions < len(old)
    moves = ~known
    moves[known] = values[known] != bits(old)[positions[known]]
    return positions[moves], values[moves]


def _together(old: Tensor, entries: Tensor, which: Tensor, counts: Tensor, values: Tensor, how: _Rule) -> Tensor:
    """Compute the bits that entries get of which several deltas move some.

    Args:
        old: The tensor of the base, (entries of the base,).
        entries: (n,) distinct positions.
        which: For each value, the number of its position among ``entries``.
        counts: (n,) deltas that move each.
        values: Bits, one behind the other for all deltas.
        how: As for :func:`merge`, or ``largest``, of numbers that are not negative.
    """
    any_of = values.new_empty(len(entries))
    any_of[which] = values
    if how == "largest":
        return any_of.scatter_reduce(0, which, values, "amax")
    differ = torch.zeros(len(entries), dtype=torch.bool, device="cpu")
    differ[which[values != any_of[which]]] = True
    known = entries < len(old)
    has_sum = known if old.is_floating_point() or old.is_complex() else torch.zeros_like(known)
    if count := int((differ & ~has_sum).sum()):
        raise DeltaError(
            f"the deltas have different values for {count} of its entries, which have no {how}, being no floats or not "
            "in the base; make them equal, or take the tensor out of one; --keep-heads (merge_tasks) keeps new ones "
            "apart"
        )
    wide = torch.complex128 if old.is_complex() else torch.float64
    start = torch.zeros(len(entries), dtype=wide, device="cpu")
    start[known] = bits(old)[entries[known]].view(old.dtype).to(wide)
    total = torch.zeros_like(start).index_add_(0, which, values.view(old.dtype).to(wide) - start[which])
    merged = start + (total / counts if how == "mean" else total)
    return torch.where(has_sum & (differ | (how == "sum")), bits(merged.to(old.dtype)), any_of)
