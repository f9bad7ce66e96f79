"""Deltas that follow on one another become one; a delta gets other names."""

from collections.abc import Mapping, Sequence
from functools import reduce
from math import prod

import torch

from fishexp.delta.content import Content
from fishexp.delta.fingerprint import bits
from fishexp.delta.moved import Moved
from fishexp.errors import DeltaError


def chain(deltas: Sequence[Content], strict: bool = True) -> Content:
    """What all deltas do, one after the other: each one's base is the result of the one before.

    Args:
        deltas: At least one.
        strict: If false, only names, types and shapes of a result have to be those of the next base.

    Raises:
        DeltaError: If a delta does not follow on the one before; the message names the first difference.
    """
    numbered = enumerate(deltas[1:], 2)
    return reduce(lambda first, second: _then(first, second[1], second[0], strict), numbered, deltas[0])


def renamed(delta: Content, names: Mapping[str, str]) -> Content:
    """The same delta with tensors by other names, as far as ``names`` has them."""

    def new(name: str) -> str:
        return names.get(name, name)

    return Content(
        {new(name): one for name, one in delta.base.items()},
        {new(name): one for name, one in delta.moved.items()},
        tuple(sorted(new(name) for name in delta.removed)),
        {new(name): new(first) for name, first in delta.tied.items()},
    )


def _then(first: Content, second: Content, number: int, strict: bool) -> Content:
    second = renamed(second, {name: known for name, known in first.tied.items() if name in second.base})
    _check(first, second, number, strict)
    moved, removed = dict(first.moved), set(first.removed)
    for name, entries in second.moved.items():
        if name in removed:
            raise DeltaError(f"delta {number} brings {name} back, which was removed; apply the deltas one by one")
        moved[name] = _over(moved.get(name), entries)
    for name in second.removed:
        moved.pop(name, None)
        removed |= {name} & first.base.keys()
    return Content(first.base, moved, tuple(sorted(removed)), {**second.tied, **first.tied})


def _check(first: Content, second: Content, number: int, strict: bool) -> None:
    result = first.result
    for name in [*result, *second.base]:
        one, other = result.get(name), second.base.get(name)
        if one is None or other is None:
            where = "only in its base" if one is None else "not in its base"
            raise DeltaError(f"delta {number} does not follow on the one before: {name} is {where}")
        if str(one) != str(other):
            raise DeltaError(f"delta {number} does not follow on the one before: {name} is {one}, in its base {other}")
        if strict and other.sha256 not in (None, one.sha256):
            raise DeltaError(
                f"delta {number} does not follow on the one before: the values of {name} are not those of its base; "
                "to put several deltas of one base together, merge them"
            )


def _over(old: Moved | None, new: Moved) -> Moved:
    """The new values of both, those of ``new`` where both have one."""
    if old is None or new.positions is None:
        return new
    if old.positions is None:
        values = old.values.new_zeros(prod(new.shape))
        values[: len(old.values)] = old.values
        bits(values)[new.positions] = bits(new.values)
        return Moved(new.shape, None, values, new.sha256)
    stays = ~torch.isin(old.positions, new.positions, assume_unique=True)
    places, order = torch.cat([old.positions[stays], new.positions]).sort()
    return Moved(new.shape, places, torch.cat([old.values[stays], new.values])[order], new.sha256)
