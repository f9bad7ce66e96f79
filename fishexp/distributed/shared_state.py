"""What several workers hold in common: the entries that move, as they were after the last merge, and the buffers."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fishexp.delta.fingerprint import bits
from fishexp.distributed.flat_view import FlatView, Places, stored
from fishexp.distributed.merge import digest
from fishexp.sparse.parameter import weights


class SharedState:
    """The models of the local workers, and what all workers had after the last merge.

    Args:
        models: All with the same weights.
        ranks: Of these workers.
        head: Weights that stand first in ``shared``.

    Attributes:
        shared: (entries,) what was common of the entries that several workers move.
        first: How many of these are of the head.
        own: For each rank (entries,) what was common of the entries that it alone moves; empty if there are none.
        buffers: What was common of the floating-point buffers.
        masks: A digest of which entries move.
    """

    def __init__(self, models: Sequence[nn.Module], ranks: Sequence[int], head: Collection[str]) -> None:
        self._models, self._ranks, self._head = models, ranks, head
        self._buffers = [[b for b in model.buffers() if b.is_floating_point()] for model in models]
        self.buffers = [buffer.clone() for buffer in self._buffers[0]]
        self.begin(None)

    def begin(self, moving: Sequence[Places] | None) -> None:
        """From now on these entries move: all weights, those of one mask, or on each worker those of its own.

        The workers hold the same weights now.
        """
        several = moving is not None and len(moving) > 1
        self._shared: list[FlatView] = []
        self._own: list[list[FlatView]] = []
        for model in self._models:
            everything: Places = dict.fromkeys(weights(model))
            first: Places = {name: None for name in everything if name in self._head}
            rest = [{n: w[n] for n in w if n not in self._head} for w in moving or [everything]]
            self._shared.append(FlatView(model, first if several else {**first, **rest[0]}))
            self._own.append([FlatView(model, own) for own in rest] if several else [])
            self.first = len(FlatView(model, first))
        self.shared = self._shared[0].read()
        self.own = [packed.read() for packed in self._own[0]]
        self.masks = digest(list(stored(moving or []).values()))

    def read_shared(self) -> list[Tensor]:
        """For each local worker (entries,) its values of the shared entries."""
        return [packed.read() for packed in self._shared]

    def read_own(self) -> list[Tensor]:
        """For each local worker (entries,) its values of those that it alone moves; empty if there are none."""
        return [own[rank].read() for own, rank in zip(self._own, self._ranks, strict=True) if own]

    def moved(self, worker: int) -> list[bool]:
        """Which of its buffers this local worker has changed since."""
        return [
            not torch.equal(bits(buffer), bits(before))
            for buffer, before in zip(self._buffers[worker], self.buffers, strict=True)
        ]

    def read_buffers(self, which: Sequence[int]) -> list[Tensor]:
        """For each local worker (entries,) these buffers in float32, one behind the other."""
        return [torch.cat([buffers[i].flatten().float() for i in which]) for buffers in self._buffers]

    def set_shared(self, values: Tensor) -> None:
        """The shared entries have these values on all workers now."""
        self.shared = values
        for packed in self._shared:
            packed.write_(values)

    def set_own(self, rank: int, values: Tensor) -> None:
        """The entries that this worker alone moves have these values on all workers now."""
        self.own[rank] = values
        for own in self._own:
            own[rank].write_(values)

    def set_buffers(self, which: Sequence[int], values: Tensor) -> None:
        """These buffers have these values on all workers now."""
        parts = values.split([self.buffers[i].numel() for i in which])
        for buffers in [*self._buffers, self.buffers]:
            _copy(
                [part.view(buffers[i].shape) for i, part in zip(which, parts, strict=True)], [buffers[i] for i in which]
            )

    def digest(self, worker: int) -> int:
        """Of all that this local worker holds of it."""
        own = [packed.read() for packed in self._own[worker]]
        return digest([self._shared[worker].read(), *own, *self._buffers[worker]])

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The first local worker's model is what all had after the last merge; afterwards it is its own again."""
        shared, buffers, rank = self._shared[0], self._buffers[0], self._ranks[0]
        mine, kept, own = shared.read(), [buffer.clone() for buffer in buffers], self.read_own()[:1]
        shared.write_(self.shared)
        if own:
            self._own[0][rank].write_(self.own[rank])
        _copy(self.buffers, buffers)
        try:
            yield
        finally:
            shared.write_(mine)
            if own:
                self._own[0][rank].write_(own[0])
            _copy(kept, buffers)

    def state(self) -> dict[str, Tensor]:
        """For :meth:`resume`."""
        own = {f"common.own{rank}": values for rank, values in enumerate(self.own)}
        buffers = {f"common.buffer{i}": buffer for i, buffer in enumerate(self.buffers)}
        tensors = {"common.shared": self.shared, **own, **buffers}
        return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}

    def resume(self, state: dict[str, Tensor]) -> None:
        """After :meth:`begin` with the masks of then."""
        self.shared.copy_(state["common.shared"])
        _copy([state[f"common.own{rank}"] for rank in range(len(self.own))], self.own)
        _copy([state[f"common.buffer{i}"] for i in range(len(self.buffers))], self.buffers)


@torch.no_grad()
def _copy(values: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)
