"""Whether a delta is for a model, and which of its tensors it is about."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fishexp.delta.content import Content
from fishexp.delta.fingerprint import Fingerprint, in_threads, sha256
from fishexp.delta.moved import Moved
from fishexp.delta.tensors import kind, named, tied
from fishexp.errors import DeltaError


@dataclass(frozen=True)
class Place:
    """A tensor of a target.

    Attributes:
        name: In the delta.
        names: In the target.
        tensor: The target's own, or one to be put there.
        base: What it has to be; None for a new one.
        moved: Its new values, if any.
        added: Whether the target is still to get ``tensor``.
    """

    name: str
    names: tuple[str, ...]
    tensor: Tensor
    base: Fingerprint | None
    moved: Moved | None
    added: bool = False


@dataclass(frozen=True)
class Fit:
    """The tensors of a target, in its order, and those that it is to lose."""

    places: list[Place]
    removed: list[str]


def fit(delta: Content, target: nn.Module | Mapping[str, Tensor]) -> Fit:
    """Which tensor of ``target`` is which of the delta; their values are not looked at.

    Raises:
        DeltaError: If a name, type or shape is another one than that of the delta's base; it names the first.
    """
    found = named(target)
    if delta.removed and isinstance(target, nn.Module):
        raise DeltaError(f"the delta removes {delta.removed[0]}, which a model cannot; apply it to a dict or a file")
    places: list[Place] = []
    removed: list[str] = []
    seen: set[str] = set()
    for names in tied(found):
        known = _known(delta, names)
        seen.update(known)
        if known[0] in delta.removed:
            removed += names
        places.append(_place(delta, known[0], names, found[names[0]], not isinstance(target, nn.Module)))
    for name in [*delta.base, *delta.moved]:
        if name not in seen and (name in delta.base or isinstance(target, nn.Module)):
            raise DeltaError(f"the delta is for another base: it has {name}, which is missing here")
    for name, moved in delta.moved.items():
        if name not in seen:
            others = (other for other, first in delta.tied.items() if first == name)
            new = torch.empty(moved.shape, dtype=moved.values.dtype)
            places.append(Place(name, (name, *others), new, None, moved, added=True))
    _check_memory(places)
    return Fit(places, removed)


def _known(delta: Content, names: Sequence[str]) -> list[str]:
    """The names that the delta has for a tensor of the target with these names."""
    own = (delta.tied.get(name, name) for name in names)
    known = [name for name in dict.fromkeys(own) if name in delta.base or name in delta.moved]
    if not known:
        raise DeltaError(f"the delta is for another base: {names[0]} is not in it")
    for other in known[1:]:
        if any(of.get(other) != of.get(known[0]) for of in (delta.base, delta.result)):
            raise DeltaError(f"{known[0]} and {other} are one tensor here, and two that differ in the delta")
    return known


def _place(delta: Content, name: str, names: list[str], tensor: Tensor, may_grow: bool) -> Place:
    base, moved = delta.base.get(name), delta.moved.get(name)
    after = base if moved is None else moved.after
    assert after is not None
    here = kind(tensor)
    if (here.dtype, here.shape) == (after.dtype, after.shape):
        return Place(name, tuple(names), tensor, base, moved)
    if base is None:
        raise DeltaError(f"the delta is for another model: {names[0]} is {here}, the delta has {after}")
    if (here.dtype, here.shape) != (base.dtype, base.shape):
        raise DeltaError(f"the delta is for another base: {names[0]} is {here}, the delta's base has {base}")
    if not may_grow:
        raise DeltaError(f"{names[0]} is {here}, after the delta it is {after}; give the model these rows first")
    more = tensor.new_zeros(after.shape[0] - here.shape[0], *after.shape[1:])
    return Place(name, tuple(names), torch.cat([tensor.detach(), more]), base, moved, added=True)


def _check_memory(places: Sequence[Place]) -> None:
    """No entry that changes may be one of another tensor too, or of the same a second time."""
    spans = [(*_span(place.tensor), place) for place in places if place.tensor.numel()]
    spans.sort(key=lambda span: span[:2])
    last: tuple[int, Place] | None = None
    for start, end, place in spans:
        shared = last is not None and start < last[0] and not (place.moved is None and last[1].moved is None)
        if shared:
            assert last is not None
            raise DeltaError(
                f"{last[1].names[0]} and {place.names[0]} share memory, but are not tied; copy one of them"
            )
        if place.moved is not None and any(n > 1 and s == 0 for n, s in _strides(place.tensor)):
            raise DeltaError(f"{place.names[0]} is expanded: several of its entries are one in memory; copy it")
        if last is None or end > last[0]:
            last = end, place


def _strides(tensor: Tensor) -> Iterator[tuple[int, int]]:
    return zip(tensor.shape, tensor.stride(), strict=True)


def _span(tensor: Tensor) -> tuple[int, int]:
    """First byte and the one after the last."""
    last = sum((n - 1) * s for n, s in _strides(tensor))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def check_content(places: Sequence[Place]) -> None:
    """Whether all tensors are those of the base, and become those of the result.

    Raises:
        DeltaError: If not; it names the first.
    """
    hashes = in_threads(_hashes, places)
    for place, (before, after) in zip(places, hashes, strict=True):
        expected = None if place.base is None else place.base.sha256
        if expected not in (None, before):
            if _already(places):
                raise DeltaError("already applied: the model has the delta's result")
            raise DeltaError(
                f"the delta is for another base: the values of {place.names[0]} are not those of the delta's base; "
                "strict=False applies it all the same"
            )
        if place.moved is not None and after != place.moved.sha256:
            raise DeltaError(f"the delta contradicts itself: its values of {place.name} do not give its result")


def _hashes(place: Place) -> tuple[str, str | None]:
    """SHA-256 of the tensor as far as the base has it, and of the tensor as it is going to be if that is new."""
    if place.moved is None:
        return sha256(place.tensor), None
    return place.moved.hashes(place.tensor, 0 if place.base is None else place.base.entries)


def _already(places: Sequence[Place]) -> bool:
    results = [place.base if place.moved is None else place.moved.after for place in places]
    now = in_threads(lambda place: sha256(place.tensor), places)
    return all(after is not None and after.sha256 in (None, found) for after, found in zip(results, now, strict=True))
