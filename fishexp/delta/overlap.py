"""Entries that several deltas have values for."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fishexp.delta.fingerprint import bits
from fishexp.delta.moved import Moved


@dataclass(frozen=True)
class Overlap:
    """Where deltas meet.

    Attributes:
        entries: name -> how many entries several deltas want to change, of tensors with any. A merge counts those that
            several move, a stack those for which several have values, and not the same.
        total: New values that the deltas have, in all.
    """

    entries: Mapping[str, int]
    total: int

    @property
    def count(self) -> int:
        """Of all tensors."""
        return sum(self.entries.values())

    def __str__(self) -> str:
        if not self.count:
            return "the deltas do not meet in any entry"
        most = max(self.entries, key=self.entries.__getitem__)
        return (
            f"the deltas meet in {self.count:,} entries of {len(self.entries)} tensors, "
            f"{self.entries[most]:,} of them in {most}"
        )


def differing(one: Moved, other: Moved) -> Tensor:
    """The positions to which both have a value, and not the same."""
    if len(one.values) > len(other.values):
        one, other = other, one
    mine = one.where()
    if other.positions is None:
        both = mine < len(other.values)
        places = mine[both]
    else:
        places = torch.searchsorted(other.positions, mine).clamp_(max=len(other.positions) - 1)
        both = other.positions[places] == mine
        places = places[both]
    return mine[both][bits(one.values)[both] != bits(other.values)[places]]


def overlap(pairs: Iterable[tuple[Mapping[str, Moved], Mapping[str, Moved]]], total: int) -> Overlap:
    """Of each pair of deltas, given by the names of the same model."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    for one, other in pairs:
        for name in one.keys() & other.keys():
            found[name].append(differing(one[name], other[name]))
    counts = {name: len(torch.cat(places).unique()) for name, places in sorted(found.items())}
    return Overlap({name: count for name, count in counts.items() if count}, total)
