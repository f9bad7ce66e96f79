"""Apply a delta in place, to the model that it is for: all of it or nothing, and take it back to the bit."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from fishexp.delta.content import Content, TensorDelta
from fishexp.delta.fingerprint import Fingerprint, bits, in_threads, kind, pieces, sha256
from fishexp.delta.names import match
from fishexp.delta.sources import named, tied_names
from fishexp.errors import DeltaError

Target: TypeAlias = nn.Module | dict[str, Tensor]

ALREADY_APPLIED = "already applied: the model has the delta's result"

_last_applied: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()  # tensor -> number of the last delta applied
_numbers = count()  # of deltas applied in this process


class OtherValues(DeltaError):
    """Raised where a tensor has other values than in the delta's base."""


@dataclass(frozen=True)
class TargetTensor:
    """Pair a tensor of a target with what the delta says of it.

    Attributes:
        names: In the target.
        tensor: The target's own, or one to be put there.
        base: What it has to be; None for a new one.
        moved: Its new values, if any.
        added: Whether the target is still to get ``tensor``.
        exchanged: Whether ``tensor`` is to get other memory, as it has another number of rows.
    """

    names: tuple[str, ...]
    tensor: Tensor
    base: Fingerprint | None
    moved: TensorDelta | None
    added: bool = False
    exchanged: bool = False


@dataclass(frozen=True)
class Fit:
    """List the tensors of a target, in its order, and the names of those that it is to lose.

    Attributes:
        found: What the target has by name, and of which type and shape it was.
    """

    tensors: list[TargetTensor]
    removed: list[str]
    found: Mapping[str, tuple[Tensor, Fingerprint]]

    def holds(self, target: nn.Module | Mapping[str, Tensor]) -> bool:
        """Tell whether the target has the same tensors still, of the same types and shapes."""
        now = named(target)
        return now.keys() == self.found.keys() and all(
            now[name] is tensor and (tensor.dtype, tensor.shape) == (own.dtype, own.shape)
            for name, (tensor, own) in self.found.items()
        )


def fit(delta: Content, target: nn.Module | Mapping[str, Tensor], exchange: bool = False) -> Fit:
    """Find which tensor of ``target`` is which of the delta; their values are not looked at.

    Args:
        delta: To apply.
        target: A model or a dict of tensors.
        exchange: Whether new tensors of the delta may have another number of rows than those of a model, as a head for
            another number of classes has.

    Raises:
        DeltaError: If a name, type or shape is another one than that of the delta's base; it names the first.
    """
    found = named(target)
    if delta.removed and isinstance(target, nn.Module):
        raise DeltaError(f"the delta removes {delta.removed[0]}, which a model cannot; apply it to a dict or a file")
    alike, gone = match(found, delta.all_names), set(delta.removed)
    tensors: list[TargetTensor] = []
    removed: list[str] = []
    seen: set[str] = set()
    for names in tied_names(found):
        known = _delta_names(delta, names, alike.names)
        seen.update(known)
        if known[0] in gone:
            removed += names
        own = _exchanged(delta, known[0], names, found[names[0]]) if exchange else None
        may_grow = not isinstance(target, nn.Module)
        tensors.append(own or _target_tensor(delta, known[0], names, found[names[0]], may_grow))
    for name in [*delta.base, *delta.moved]:
        if name not in seen and (name in delta.base or isinstance(target, nn.Module)):
            raise DeltaError(f"the delta is for another base: it has {name}, which is missing here")
    others: dict[str, list[str]] = defaultdict(list)
    for other, first in delta.tied.items():
        others[first].append(other)
    for name, moved in delta.moved.items():
        if name not in seen:
            new = torch.empty(moved.shape, dtype=moved.values.dtype, device="cpu")
            names = tuple(alike.back(own) for own in (name, *others[name]))
            tensors.append(TargetTensor(names, new, None, moved, added=True))
    _check_memory(tensors)
    return Fit(tensors, removed, {name: (tensor, kind(tensor)) for name, tensor in found.items()})


def _delta_names(delta: Content, names: Sequence[str], alike: Mapping[str, str]) -> list[str]:
    """Return the names that the delta has for a tensor of the target with these names."""
    own = (delta.tied.get(alike[name], alike[name]) for name in names)
    known = [name for name in dict.fromkeys(own) if name in delta.base or name in delta.moved]
    if not known:
        raise DeltaError(f"the delta is for another base: {names[0]} is not in it")
    for other in known[1:]:
        if any(tensors.get(other) != tensors.get(known[0]) for tensors in (delta.base, delta.result)):
            raise DeltaError(f"{known[0]} and {other} are one tensor here, and two that differ in the delta")
    return known


def _exchanged(delta: Content, name: str, names: list[str], tensor: Tensor) -> TargetTensor | None:
    """Return what becomes of a tensor that the delta brings along with another number of rows; None if it does not."""
    moved, here = delta.moved.get(name), kind(tensor)
    if moved is None or name in delta.base or here == moved.kind or not here.shape or not moved.shape:
        return None
    if (here.dtype, here.shape[1:]) != (moved.kind.dtype, moved.shape[1:]):
        return None
    return TargetTensor(tuple(names), tensor, None, moved, exchanged=True)


def _target_tensor(delta: Content, name: str, names: list[str], tensor: Tensor, may_grow: bool) -> TargetTensor:
    base, moved = delta.base.get(name), delta.moved.get(name)
    after = base if moved is None else moved.after
    assert after is not None
    here = kind(tensor)
    if (here.dtype, here.shape) == (after.dtype, after.shape):
        return TargetTensor(tuple(names), tensor, base, moved)
    if base is None and moved is not None and may_grow:  # another head in the place of the base's
        return TargetTensor(tuple(names), tensor.new_empty(moved.shape, dtype=after.dtype), None, moved, added=True)
    if base is None:
        raise DeltaError(f"the delta is for another model: {names[0]} is {here}, the delta has {after}")
    if (here.dtype, here.shape) != (base.dtype, base.shape):
        raise wrong_kind(names[0], here, base)
    if not may_grow:
        raise DeltaError(f"{names[0]} is {here}, after the delta it is {after}; give the model these rows first")
    more = tensor.new_zeros(after.shape[0] - here.shape[0], *after.shape[1:])
    return TargetTensor(tuple(names), torch.cat([tensor.detach(), more]), base, moved, added=True)


def wrong_kind(name: str, here: Fingerprint, base: Fingerprint) -> DeltaError:
    """Return the error that a tensor has another type or shape than in the delta's base."""
    return DeltaError(f"the delta is for another base: {name} is {here}, the delta's base has {base}")


def _check_memory(tensors: Sequence[TargetTensor]) -> None:
    """Refuse an entry that changes and is also an entry of another tensor, or of the same a second time."""
    spans = [(*_span(target.tensor), target) for target in tensors if target.tensor.numel()]
    spans.sort(key=lambda span: span[:2])
    last: tuple[int, TargetTensor] | None = None
    for start, end, target in spans:
        shared = last is not None and start < last[0] and not (target.moved is None and last[1].moved is None)
        if shared:
            assert last is not None
            raise DeltaError(
                f"{last[1].names[0]} and {target.names[0]} share memory, but are not tied; copy one of them"
            )
        if target.moved is not None and any(n > 1 and s == 0 for n, s in _strides(target.tensor)):
            raise DeltaError(f"{target.names[0]} is expanded: several of its entries are one in memory; copy it")
        if last is None or end > last[0]:
            last = end, target


def _strides(tensor: Tensor) -> Iterator[tuple[int, int]]:
    return zip(tensor.shape, tensor.stride(), strict=True)


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor in memory, and the byte after its last."""
    last = sum((n - 1) * s for n, s in _strides(tensor))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def contradiction(name: str) -> DeltaError:
    """Return the error that the values of a tensor are not those of which the delta's digest was made."""
    return DeltaError(f"the delta contradicts itself: its values of {name} do not give its result")


def check_hashes(
    name: str, base: Fingerprint | None, moved: TensorDelta | None, before: str, after: str, override: str
) -> None:
    """Check that a tensor is that of the delta's base, and becomes that of its result.

    Args:
        name: Of the tensor.
        base: What it has to be; None for a new one.
        moved: Its new values, if any.
        before: SHA-256 of the tensor as it is.
        after: SHA-256 of the tensor with the new values; of any text if there are none.
        override: The option that applies the delta all the same.

    Raises:
        OtherValues: If it is not that of the base.
        DeltaError: If it does not become that of the result.
    """
    if base is not None and base.sha256 not in (None, before):
        raise OtherValues(
            f"the delta is for another base: the values of {name} are not those of the delta's base; "
            f"{override} applies it all the same"
        )
    if moved is not None and moved.sha256 != after:
        raise contradiction(name)


def _check_values(tensors: Sequence[TargetTensor]) -> None:
    """Check that all tensors are those of the base, and become those of the result.

    Raises:
        DeltaError: If not; it names the first.
    """
    hashes = in_threads(_hashes, tensors)
    try:
        for target, (before, after) in zip(tensors, hashes, strict=True):
            check_hashes(target.names[0], target.base, target.moved, before, after, "strict=False")
    except OtherValues:
        if _are_result(tensors):
            raise DeltaError(ALREADY_APPLIED) from None
        raise


def _hashes(target: TargetTensor) -> tuple[str, str]:
    """Return the SHA-256 of the tensor as far as the base has it, and of the tensor as it is going to be."""
    if target.moved is None:
        unchanged = sha256(target.tensor)
        return unchanged, unchanged
    return target.moved.hashes(pieces(target.tensor), 0 if target.base is None else target.base.entries)


def _are_result(tensors: Sequence[TargetTensor]) -> bool:
    results = [target.base if target.moved is None else target.moved.after for target in tensors]
    now = in_threads(lambda target: sha256(target.tensor), tensors)
    return all(after is not None and after.sha256 in (None, found) for after, found in zip(results, now, strict=True))


class TensorChange(NamedTuple):
    """Hold what is to be written into a tensor of a target, and what stands there; if exchanged, its memory."""

    name: str
    tensor: Tensor
    moved: TensorDelta
    new: Tensor
    old: Tensor
    exchanged: bool

    def write_(self, values: Tensor) -> None:
        """Write the new values, or the old ones."""
        if self.exchanged:
            self.tensor.data = values
        else:
            self.moved.write_(self.tensor, values)


def _change(own: TargetTensor, moved: TensorDelta) -> TensorChange:
    """Return what a delta is to do to a tensor."""
    if own.exchanged:
        new = moved.values.to(own.tensor.device, copy=True).view(moved.shape)
        return TensorChange(own.names[0], own.tensor, moved, new, own.tensor.data, True)
    return TensorChange(own.names[0], own.tensor, moved, moved.values, moved.gather(own.tensor), False)


def apply_(delta: Content, target: Target, strict: bool) -> "Undo":
    """Make the base the result, in place; see :meth:`fishexp.delta.Delta.apply_`."""
    fitted = fit(delta, target)
    if strict:
        _check_values(fitted.tensors)
    return write_(target, fitted)


def write_(target: Target, fitted: Fit) -> "Undo":
    """Put the new values where they belong; all of them, or none if there is an error."""
    changes = (_change(own, own.moved) for own in fitted.tensors if own.moved is not None)
    return Undo(target, fitted, _write_all(changes))


class Undo:
    """Keep the original values of the entries that a delta changed."""

    def __init__(self, target: Target, fitted: Fit, changes: Sequence[TensorChange]) -> None:
        self._target, self._number, self._reverted = target, next(_numbers), False
        self._originals = [(change.name, change.moved, change.old, change.exchanged) for change in changes]
        found = {name: tensor for name, (tensor, _) in fitted.found.items()}
        self._last = {name: _last_applied.get(tensor) for name, tensor in found.items()}
        self._added = {name: own.tensor for own in fitted.tensors if own.added for name in own.names}
        self._before = found if self._added or fitted.removed else None
        if isinstance(target, dict):
            target.update(self._added)
            for name in fitted.removed:
                del target[name]
        for tensor in (target if isinstance(target, dict) else found).values():
            _last_applied[tensor] = self._number

    def take_back_(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor of the target as it was; a copy of it is given, and written to where it had as many rows."""
        for own, moved, original, exchanged in self._originals:
            if own == name and exchanged:
                return original.clone()
            if own == name:
                moved.write_(tensor, original)
        return tensor

    def revert_(self) -> None:
        """Bring the original values back, in place: all of them, or nothing if there is an error.

        Raises:
            DeltaError: If they are back already, another delta was applied after this one and is still there, or
                entries have other values by now.
        """
        if self._reverted:
            raise DeltaError("this delta was reverted before; nothing of it is left to take back")
        found = named(self._target)
        if any(_last_applied.get(tensor, self._number) != self._number for tensor in found.values()):
            raise DeltaError("another delta was applied after this one; revert that one first")
        _write_all(self._back(found))
        self._reverted = True
        for name, tensor in found.items():
            _last_applied.pop(tensor, None)
            if (last := self._last.get(name)) is not None:
                _last_applied[tensor] = last
        if isinstance(self._target, dict) and self._before is not None:
            kept = {name: tensor for name, tensor in self._target.items() if name not in self._added}
            self._target.clear()
            self._target.update(self._before | kept)

    def _back(self, found: Mapping[str, Tensor]) -> Iterator[TensorChange]:
        """Yield the original values, as long as the delta's stand in their place."""
        for name, moved, original, exchanged in self._originals:
            tensor = found.get(name)
            if tensor is None or kind(tensor) != moved.kind:
                raise DeltaError(f"{name} is gone, or of another type or shape than when the delta was applied")
            if not torch.equal(moved.gather(tensor), bits(moved.values).to(tensor.device)):
                raise DeltaError(f"{name} has other values by now than the delta gave it; to revert would lose them")
            yield TensorChange(name, tensor, moved, original, tensor.data if exchanged else moved.values, exchanged)


def _write_all(changes: Iterable[TensorChange]) -> list[TensorChange]:
    """Make each change as it comes; if one cannot be made, or there is an error in finding it, undo them all."""
    begun: list[TensorChange] = []
    with torch.no_grad():
        try:
            for change in changes:
                begun.append(change)
                change.write_(change.new)
        except BaseException:
            for change in begun:
                change.write_(change.old)
            raise
    return begun
