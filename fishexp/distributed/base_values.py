"""Values that entries of a model had before training moved them, mask after mask."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from fishexp.delta import Delta
from fishexp.delta.trained import Original, by_seed, trained
from fishexp.distributed.flat_view import Places
from fishexp.sparse.parameter import weights


class BaseValues:
    """What a model was before training moved entries of it, mask after mask."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.whole = False
        self.seeds: list[int | None] = []
        self._places: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}
        self._buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def all_move(self) -> None:
        """From now on every weight may be another."""
        self.whole, self._places, self._values = True, {}, {}

    def add(self, moving: Sequence[Places], seed: int | None = None) -> None:
        """These entries are going to move; to be told before they do.

        Args:
            seed: Of the mask, if it is nothing but that.
        """
        if self.whole:
            return
        self.seeds.append(seed)
        for name, p in weights(self._model).items():
            found = [where[name] for where in moving if name in where]
            here = [torch.arange(p.numel(), device=p.device) if index is None else index for index in found]
            if not here:
                continue
            known = self._places.get(name, here[0][:0])
            index = torch.cat(here).unique()
            index = index[~torch.isin(index, known)]
            values = self._values.get(name, p.detach().new_zeros(0))
            self._places[name] = torch.cat([known, index])
            self._values[name] = torch.cat([values, p.detach().take(index)])

    def delta(self, fresh: Collection[str] = ()) -> Delta:
        """The model as it is now against what it was; see :meth:`fishexp.sparse.Sparse.delta`."""
        if self.whole:
            return Delta.whole(self._model)
        originals = {
            name: Original(None if len(index) == p.numel() and _ascends(index) else index, self._values[name], True)
            for name, p in weights(self._model).items()
            if (index := self._places.get(name)) is not None
        }
        known = self._model.state_dict().keys()
        originals |= {name: Original(None, b, False) for name, b in self._buffers.items() if name in known}
        content = trained(self._model, originals, fresh)
        if len(self.seeds) == 1 and self.seeds[0] is not None:
            content = by_seed(content, self.seeds[0], weights(self._model))
        return Delta.of(content)


def _ascends(index: Tensor) -> bool:
    return bool((index[1:] > index[:-1]).all())
