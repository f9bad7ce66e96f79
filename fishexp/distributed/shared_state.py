"""The state that all workers share: the entries that train, as they were after the last merge, and the buffers."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fishexp.delta.fingerprint import bits
from fishexp.distributed.flat_view import FlatView
from fishexp.distributed.merge import digest
from fishexp.masks.positions import Positions, positions_for_file
from fishexp.sparse.parameter import weights


class SharedState:
    """Hold what all workers had after the last merge, and read and write it in the models of the local workers.

    Args:
        models: Models of the local workers, all with the same weights.
        ranks: Ranks of the local workers.
        head: Names of the weights that stand first in ``shared``.

    Attributes:
        shared: (entries,) values, after the last merge, of the entries that all workers train.
        head_entries: How many of the first of these are the head's.
        own: For each rank (entries,) values, after the last merge, of the entries that it alone trains; empty if all
            workers train the same.
        buffers: Floating-point buffers after the last merge.
        masks_digest: A digest of which entries train.
    """

    def __init__(self, models: Sequence[nn.Module], ranks: Sequence[int], head: Collection[str]) -> None:
        self._models, self._ranks, self._head = models, ranks, head
        self._model_buffers = [[b for b in model.buffers() if b.is_floating_point()] for model in models]
        self.buffers = [buffer.clone() for buffer in self._model_buffers[0]]
        self.set_masks(None)

    def set_masks(self, masks: Sequence[Positions] | None) -> None:
        """Share other entries from now on; to be called when all workers hold the same weights.

        Args:
            masks: One mask that all workers train, or a mask for each worker; None for all weights.
        """
        disjoint = masks is not None and len(masks) > 1
        self._shared_views: list[FlatView] = []
        self._own_views: list[list[FlatView]] = []
        for model in self._models:
            everything: Positions = dict.fromkeys(weights(model))
            head: Positions = {name: None for name in everything if name in self._head}
            rest = [{name: mask[name] for name in mask if name not in self._head} for mask in masks or [everything]]
            self._shared_views.append(FlatView(model, head if disjoint else {**head, **rest[0]}))
            self._own_views.append([FlatView(model, own) for own in rest] if disjoint else [])
            self.head_entries = len(FlatView(model, head))
        self.shared = self._shared_views[0].read()
        self.own = [view.read() for view in self._own_views[0]]
        self.masks_digest = digest([positions_for_file(index) for mask in masks or [] for index in mask.values()])

    def read_shared(self) -> list[Tensor]:
        """Return, for each local worker, (entries,) its values of the shared entries."""
        return [view.read() for view in self._shared_views]

    def read_own(self) -> list[Tensor]:
        """Return, for each local worker, (entries,) its values of the entries that it alone trains, if any."""
        return [views[rank].read() for views, rank in zip(self._own_views, self._ranks, strict=True) if views]

    def changed_buffers(self, local_index: int) -> list[bool]:
        """Tell which of its buffers a local worker has changed since the last merge."""
        return [
            not torch.equal(bits(buffer), bits(before))
            for buffer, before in zip(self._model_buffers[local_index], self.buffers, strict=True)
        ]

    def read_buffers(self, indices: Sequence[int]) -> list[Tensor]:
        """Return, for each local worker, (entries,) these buffers in float32, one behind the other."""
        return [torch.cat([buffers[i].flatten().float() for i in indices]) for buffers in self._model_buffers]

    def write_shared(self, values: Tensor) -> None:
        """Set the shared entries of all workers to ``values``."""
        self.shared = values
        for view in self._shared_views:
            view.write_(values)

    def write_own(self, rank: int, values: Tensor) -> None:
        """Set the entries that worker ``rank`` alone trains to ``values``, on all workers."""
        self.own[rank] = values
        for views in self._own_views:
            views[rank].write_(values)

    def write_buffers(self, indices: Sequence[int], values: Tensor) -> None:
        """Set these buffers of all workers to ``values``, (entries,) one buffer behind the other."""
        parts = values.split([self.buffers[i].numel() for i in indices])
        for buffers in [*self._model_buffers, self.buffers]:
            shaped = [part.view(buffers[i].shape) for i, part in zip(indices, parts, strict=True)]
            _copy(shaped, [buffers[i] for i in indices])

    def digest(self, local_index: int) -> int:
        """Compute a digest of the shared state as a local worker holds it."""
        own = [view.read() for view in self._own_views[local_index]]
        return digest([self._shared_views[local_index].read(), *own, *self._model_buffers[local_index]])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the shared state into the first local worker's model, and give the model its own back afterwards."""
        view, buffers, rank = self._shared_views[0], self._model_buffers[0], self._ranks[0]
        model_shared, model_buffers = view.read(), [buffer.clone() for buffer in buffers]
        model_own = self.read_own()[:1]
        view.write_(self.shared)
        if model_own:
            self._own_views[0][rank].write_(self.own[rank])
        _copy(self.buffers, buffers)
        try:
            yield
        finally:
            view.write_(model_shared)
            if model_own:
                self._own_views[0][rank].write_(model_own[0])
            _copy(model_buffers, buffers)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that :meth:`load_state_dict` needs, on the CPU."""
        own = {f"common.own{rank}": values for rank, values in enumerate(self.own)}
        buffers = {f"common.buffer{i}": buffer for i, buffer in enumerate(self.buffers)}
        tensors = {"common.shared": self.shared, **own, **buffers}
        return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned; to be called after :meth:`set_masks` with the same masks."""
        self.shared.copy_(state["common.shared"])
        _copy([state[f"common.own{rank}"] for rank in range(len(self.own))], self.own)
        _copy([state[f"common.buffer{i}"] for i in range(len(self.buffers))], self.buffers)


@torch.no_grad()
def _copy(values: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)
