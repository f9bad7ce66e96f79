"""Several deltas on a model that stays in memory: put on, taken off and exchanged in milliseconds."""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from typing import Literal, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from torch import nn

from fishexp.delta.apply import Fit, TargetTensor, Undo, contradiction, fit, write_
from fishexp.delta.combine import Overlap, find_overlap
from fishexp.delta.content import TensorDelta
from fishexp.delta.delta import Delta
from fishexp.delta.fingerprint import Fingerprint, flat, in_threads, pieces, sha256
from fishexp.delta.sources import named, source
from fishexp.delta.turns import Turns
from fishexp.errors import DeltaError

OverlapRule: TypeAlias = Literal["refuse", "last"]
State: TypeAlias = dict[str, Fingerprint]  # of each tensor of the model; without a SHA-256 where it is not known


class Level(NamedTuple):
    """Hold a delta on the stack, its values by the names of the model, and the model's fingerprints with it."""

    delta: Delta
    undo: Undo
    moved: dict[str, TensorDelta]
    state: State


class Stack:
    """Apply deltas on top of one another to a resident model.

    All tensors of the model are hashed once, at the start. From then on fingerprints are compared, not tensors: nobody
    else may change the model meanwhile. Where somebody changed an entry of a delta all the same, :meth:`pop` refuses.

    A head that the base does not have may have another number of classes in each delta.

    Several threads may share a stack. :meth:`using` keeps the model as it is for as long as a thread computes with it;
    whatever would change it waits until nobody uses it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._base: State = source(model).fingerprints()
        self._levels: list[Level] = []
        self._turns = Turns()
        # which tensor is which, of those deltas that give the result that they say, on this model
        self._checked: MutableMapping[Delta, Fit] = WeakKeyDictionary()

    @contextmanager
    def using(self, delta: Delta | None) -> Iterator[nn.Module]:
        """Lend the model with ``delta``, or nothing, on its base, and let no thread change it before the block ends.

        Threads that want the same delta compute side by side. One that wants another waits until they are done, and
        those that come later wait behind it. The delta stays on the model, so that the next block need not change it.

        Raises:
            DeltaError: As :meth:`switch`; or if this thread uses the model with another delta already.
        """
        wanted = () if delta is None else (delta,)
        with self._turns.share(lambda: self.deltas == wanted, lambda: self._switch(delta)):
            yield self._model

    @property
    def deltas(self) -> tuple[Delta, ...]:
        """Return the deltas that are on the model, the first one first."""
        return tuple(level.delta for level in self._levels)

    def push(self, delta: Delta, overlap: OverlapRule = "refuse") -> None:
        """Apply ``delta``, in place.

        Its base is what the model is now, or what it was at the bottom of the stack. In the second case the order of
        pushes does not matter, to the bit, as long as no two deltas have different values for an entry. If they do,
        ``refuse`` raises an error, and with ``last`` this delta's values hold until it is popped.

        The first time that it is pushed, its result is computed and compared with the one that it says.

        Raises:
            DeltaError: If ``delta`` is for another base, overlaps, or contradicts itself.
        """
        if overlap not in ("refuse", "last"):
            raise DeltaError(f"overlap={overlap!r} is neither 'refuse' nor 'last'")
        with self._turns.alone():
            self._push(delta, overlap)

    def _push(self, delta: Delta, overlap: OverlapRule) -> None:
        known = self._checked.get(delta)
        fitted = known if known is not None and known.holds(self._model) else fit(delta, self._model, exchange=True)
        other = _difference(fitted, self._base)
        if other is None:
            found = find_overlap(((level.moved, _moved(fitted)) for level in self._levels), delta.changes)
            if found.count and overlap == "refuse":
                raise DeltaError(f"{found}; pop the others, merge them, or say overlap='last' for this one to win")
        elif not self._levels or _difference(fitted, self._hashed_state()):
            raise DeltaError(f"the delta is for another base: {other} is neither what it was nor what it is now")
        if known is None:
            self._check(fitted, self._levels if other is None else [])
        self._checked[delta] = fitted
        self._put(delta, fitted)

    def pop(self) -> Delta:
        """Take off the last delta, which is returned; the model is what it was before, to the bit.

        Raises:
            DeltaError: If there is none, or entries have other values by now.
        """
        with self._turns.alone():
            return self._pop()

    def _pop(self) -> Delta:
        if not self._levels:
            raise DeltaError("no delta is on the stack")
        self._levels[-1].undo.revert_()
        return self._levels.pop().delta

    def switch(self, delta: Delta | None) -> None:
        """Take off all deltas and apply ``delta``, if any, to the bottom of the stack.

        Raises:
            DeltaError: If ``delta`` is for another base, and the stack is what it was; or if entries have other values
                by now than a delta on the stack gave them.
        """
        with self._turns.alone():
            self._switch(delta)

    def _switch(self, delta: Delta | None) -> None:
        popped = [self._pop() for _ in self._levels[:]][::-1]
        try:
            if delta is not None:
                self._push(delta, "refuse")
        except DeltaError:
            for before in popped:
                self._push(before, "last")
            raise

    def report(self) -> Overlap:
        """Find the entries for which several deltas on the stack have different values."""
        moved = [level.moved for level in self._levels]
        return find_overlap(combinations(moved, 2), sum(level.delta.changes for level in self._levels))

    def _check(self, fitted: Fit, above: Sequence[Level]) -> None:
        """Check that a delta gives its result.

        Args:
            fitted: The delta on the model as it is.
            above: The deltas that are on the model, and not on the delta's base.
        """

        def check(target: TargetTensor) -> None:
            if target.moved is None:
                return
            before = target.tensor.detach()
            if target.base is not None and any(target.names[0] in level.moved for level in above):
                before = before.clone()
                for level in reversed(above):
                    before = level.undo.take_back_(target.names[0], before)
            if target.moved.hashes(pieces(before), 0)[1] != target.moved.sha256:
                raise contradiction(target.names[0])

        in_threads(check, fitted.tensors)

    def _put(self, delta: Delta, fitted: Fit) -> None:
        state = dict(self._state)
        for target in fitted.tensors:
            if target.moved is not None:
                name = target.names[0]
                known = target.base is None or target.moved.positions is None or state[name] == target.base
                state[name] = target.moved.after if known else target.moved.kind
        self._levels.append(Level(delta, write_(self._model, fitted), _moved(fitted), state))

    @property
    def _state(self) -> State:
        return self._levels[-1].state if self._levels else self._base

    def _hashed_state(self) -> State:
        """Return the fingerprints of the model; those that are not known yet are computed."""
        state = self._state
        unknown = [name for name, tensor in state.items() if tensor.sha256 is None]
        if unknown:
            tensors = named(self._model)
            state.update({name: replace(state[name], sha256=sha256(tensors[name])) for name in unknown})
        return state


def _moved(fitted: Fit) -> dict[str, TensorDelta]:
    return {target.names[0]: target.moved for target in fitted.tensors if target.moved is not None}


def _difference(fitted: Fit, state: Mapping[str, Fingerprint]) -> str | None:
    """Name the first tensor that is not the delta's base; of a tensor with new rows the others are hashed."""
    for target in fitted.tensors:
        name, base = target.names[0], target.base
        if base is not None and base.sha256 is not None:
            grown = base.shape != state[name].shape
            if base.sha256 != (sha256(flat(target.tensor)[: base.entries]) if grown else state[name].sha256):
                return name
    return None
