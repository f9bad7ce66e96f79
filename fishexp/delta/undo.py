"""Apply a delta in place, all of it or nothing, and take it back to the bit."""

from collections.abc import MutableMapping, Sequence
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

_APPLIED: MutableMapping[Tensor, tuple[int, ...]] = WeakTensorKeyDictionary()  # tensor -> deltas on its model, in order
_numbers = count()


class Change(NamedTuple):
    """New values of a tensor of a target, and the ones in their place before."""

    name: str
    moved: Moved
    original: Tensor


def apply_(delta: Content, target: Target, strict: bool) -> "Undo":
    """See :meth:`fishexp.delta.Delta.apply_`."""
    fitted = fit(delta, target)
    if strict:
        check_content(fitted.places)
    return write_(target, fitted)


def write_(target: Target, fitted: Fit) -> "Undo":
    """Put the new values where they belong; all of them, or none if there is an error."""
    changes = [
        Change(place.names[0], place.moved, place.moved.gather(place.tensor))
        for place in fitted.places
        if place.moved is not None
    ]
    tensors = {place.names[0]: place.tensor for place in fitted.places}
    _write_all([(change, tensors[change.name], change.moved.values, change.original) for change in changes])
    return Undo(target, fitted, changes)


class Undo:
    """The original values of the entries that a delta changed."""

    def __init__(self, target: Target, fitted: Fit, changes: Sequence[Change]) -> None:
        self._target, self._changes = target, changes
        self._before: dict[str, Tensor] | None = None
        self._added = {name: place.tensor for place in fitted.places if place.added for name in place.names}
        if isinstance(target, dict) and (self._added or fitted.removed):
            self._before = dict(target)
            for name, tensor in self._added.items():
                _APPLIED[tensor] = _APPLIED.get(target[name], ()) if name in target else ()
                target[name] = tensor
            for name in fitted.removed:
                del target[name]
        self._number: int | None = next(_numbers)
        for tensor in {id(tensor): tensor for tensor in named(target).values()}.values():
            _APPLIED[tensor] = (*_APPLIED.get(tensor, ()), self._number)

    def revert_(self) -> None:
        """Bring the original values back, in place: all of them, or nothing if there is an error.

        Raises:
            DeltaError: If they are back already, another delta was applied after this one and is still there, or
                entries have other values by now.
        """
        if self._number is None:
            raise DeltaError("this delta was reverted before; nothing of it is left to take back")
        found = named(self._target)
        if any(self._number in _APPLIED.get(tensor, ())[:-1] for tensor in found.values()):
            raise DeltaError("another delta was applied after this one; revert that one first")
        for name, moved, _ in self._changes:
            tensor = found.get(name)
            if tensor is None or kind(tensor) != moved.kind:
                raise DeltaError(f"{name} is gone, or of another type or shape than when the delta was applied")
            if not torch.equal(moved.gather(tensor), bits(moved.values).to(tensor.device)):
                raise DeltaError(f"{name} has other values by now than the delta gave it; to revert would lose them")
        _write_all([(change, found[change.name], change.original, change.moved.values) for change in self._changes])
        for tensor in found.values():
            if tensor in _APPLIED:
                _APPLIED[tensor] = tuple(number for number in _APPLIED[tensor] if number != self._number)
        self._number = None
        if isinstance(self._target, dict) and self._before is not None:
            kept = {name: tensor for name, tensor in self._target.items() if name not in self._added}
            self._target.clear()
            self._target.update(self._before | kept)


def _write_all(writes: Sequence[tuple[Change, Tensor, Tensor, Tensor]]) -> None:
    """Write each tensor's new values; if one fails, for want of memory say, the old ones come back.

    Args:
        writes: Where, in which tensor, the new values, the old ones.
    """
    begun = 0
    with torch.no_grad():
        try:
            for change, tensor, new, _ in writes:
                begun += 1
                change.moved.write_(tensor, new)
        except BaseException:
            for change, tensor, _, old in writes[:begun]:
                change.moved.write_(tensor, old)
            raise
