"""What makes one model of another."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fishexp.delta.content import Content
from fishexp.delta.fingerprint import Fingerprint, bits, fingerprint, flat, in_threads, sha256
from fishexp.delta.moved import Moved, whole
from fishexp.delta.tensors import Source
from fishexp.errors import DeltaError
from fishexp.masks import position_codec


def difference(before: Source, after: Source) -> Content:
    """The delta between two models, whose tensors are read a few at a time.

    Raises:
        DeltaError: If types or shapes differ in another way than by more rows.
    """
    tied = ties(before, after)
    old, new = members(before, tied), members(after, tied)
    for name in new.keys() & old.keys():
        _check_growth(name, before.kind(old[name]), after.kind(new[name]))

    def one(name: str) -> tuple[Fingerprint | None, Moved | None]:
        first = before.read(old[name]) if name in old else None
        if name not in new:
            return fingerprint(first), None  # type: ignore[arg-type]
        return None if first is None else fingerprint(first), change(first, after.read(new[name]))

    names = [*new, *(old.keys() - new.keys())]
    found = dict(zip(names, in_threads(one, names), strict=True))
    base = {name: print_ for name, (print_, _) in found.items() if print_ is not None}
    moved = {name: entries for name, (_, entries) in found.items() if entries is not None}
    return Content(base, moved, tuple(sorted(old.keys() - new.keys())), tied)


def change(before: Tensor | None, after: Tensor) -> Moved | None:
    """What of ``after`` is not in ``before``, to the bit, in the smaller form; None if nothing.

    Args:
        before: Of the same type; ``after`` may have more rows. None: ``after`` is stored whole.
        after: On any device.
    """
    if before is None:
        return whole(after)
    old, new = flat(before), flat(after)
    changed = (bits(new[: len(old)]) != bits(old)).nonzero().squeeze(1)
    found = torch.cat([changed, torch.arange(len(old), len(new))])
    if not len(found) and before.shape == after.shape:
        return None
    shape = tuple(after.shape)
    if len(found) < len(new):
        size = len(found) * new.element_size() + len(position_codec.encode(found, shape)[1])
        if size < len(new) * new.element_size():
            return Moved(shape, found, new[found], sha256(new))
    return whole(after)


def ties(before: Source, after: Source, *more: Mapping[str, str]) -> dict[str, str]:
    """Another name of a tensor -> its first one, by any of both and by ``more``; if it is one tensor in both."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while name in parent:
            name = parent[name]
        return name

    for other, first in (pair for tied in (after.tied, before.tied, *more) for pair in tied.items()):
        if root(other) != root(first):
            parent[root(other)] = root(first)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in parent:
        groups[root(name)].append(name)
    return {
        name: first
        for first, names in groups.items()
        if all(_is_one([first, *names], where) for where in (before, after))
        for name in names
    }


def _is_one(names: Sequence[str], where: Source) -> bool:
    """Whether those that are there are equal."""
    distinct = {where.tied.get(name, name) for name in names} & where.kinds.keys()
    return len(distinct) < 2 or len({fingerprint(where.read(name)) for name in distinct}) == 1


def members(where: Source, tied: Mapping[str, str]) -> dict[str, str]:
    """Name in the delta -> name in the source."""
    found: dict[str, str] = {}
    for name in [*where.kinds, *where.tied]:
        found.setdefault(tied.get(name, name), name)
    return found


def _check_growth(name: str, before: Fingerprint, after: Fingerprint) -> None:
    if not before.grows_to(after):
        raise DeltaError(
            f"{name} is {before} before and {after} after; a delta keeps the type, and of the shape all but more rows"
        )
