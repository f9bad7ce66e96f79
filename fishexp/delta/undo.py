"""Apply a delta in place, all of it or nothing, and take it back to the bit."""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from itertools import count
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from fishexp.delta.content import Content
from fishexp.delta.fingerprint import bits
from fishexp.delta.fit import Fit, check_content, fit
from fishexp.delta.moved import Moved
from fishexp.delta.tensors import kind, named
from fishexp.errors import DeltaError

Target: TypeAlias = nn.Module | dict[str, Tensor]

_LAST: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()  # tensor -> the delta last applied to its model
_numbers = count()


class Change(NamedTuple):
    """What is to be written into a tensor of a target, and what stands there."""

    name: str
    tensor: Tensor
    moved: Moved
    new: Tensor
    old: Tensor


def apply_(delta: Content, target: Target, strict: bool) -> "Undo":
    """See :meth:`fishexp.delta.Delta.apply_`."""
    fitted = fit(delta, target)
    if strict:
        check_content(fitted.places)
    return write_(target, fitted)


def write_(target: Target, fitted: Fit) -> "Undo":
    """Put the new values where they belong; all of them, or none if there is an error."""
    changes = (
        Change(place.names[0], place.tensor, place.moved, place.moved.values, place.moved.gather(place.tensor))
        for place in fitted.places
        if place.moved is not None
    )
    return Undo(target, fitted, _write_all(changes))


class Undo:
    """The original values of the entries that a delta changed."""

    def __init__(self, target: Target, fitted: Fit, changes: Sequence[Change]) -> None:
        self._target, self._number, self._reverted = target, next(_numbers), False
        self._originals = [(change.name, change.moved, change.old) for change in changes]
        found = named(target)
        self._last = {name: _LAST.get(tensor) for name, tensor in found.items()}
        self._added = {name: place.tensor for place in fitted.places if place.added for name in place.names}
        self._before = found if self._added or fitted.removed else None
        if isinstance(target, dict):
            target.update(self._added)
            for name in fitted.removed:
                del target[name]
        for tensor in named(target).values():
            _LAST[tensor] = self._number

    def revert_(self) -> None:
        """Bring the original values back, in place: all of them, or nothing if there is an error.

        Raises:
            DeltaError: If they are back already, another delta was applied after this one and is still there, or
                entries have other values by now.
        """
        if self._reverted:
            raise DeltaError("this delta was reverted before; nothing of it is left to take back")
        found = named(self._target)
        if any(_LAST.get(tensor, self._number) != self._number for tensor in found.values()):
            raise DeltaError("another delta was applied after this one; revert that one first")
        _write_all(self._back(found))
        self._reverted = True
        for name, tensor in found.items():
            _LAST.pop(tensor, None)
            if (last := self._last.get(name)) is not None:
                _LAST[tensor] = last
        if isinstance(self._target, dict) and self._before is not None:
            kept = {name: tensor for name, tensor in self._target.items() if name not in self._added}
            self._target.clear()
            self._target.update(self._before | kept)

    def _back(self, found: Mapping[str, Tensor]) -> Iterator[Change]:
        """The original values, as long as the delta's stand in their place."""
        for name, moved, original in self._originals:
            tensor = found.get(name)
            if tensor is None or kind(tensor) != moved.kind:
                raise DeltaError(f"{name} is gone, or of another type or shape than when the delta was applied")
            if not torch.equal(moved.gather(tensor), bits(moved.values).to(tensor.device)):
                raise DeltaError(f"{name} has other values by now than the delta gave it; to revert would lose them")
            yield Change(name, tensor, moved, original, moved.values)


def _write_all(changes: Iterable[Change]) -> list[Change]:
    """Make each change as it comes; if one cannot be made, or there is an error in finding it, undo them all."""
    begun: list[Change] = []
    with torch.no_grad():
        try:
            for change in changes:
                begun.append(change)
                change.moved.write_(change.tensor, change.new)
        except BaseException:
            for change in begun:
                change.moved.write_(change.tensor, change.old)
            raise
    return begun
