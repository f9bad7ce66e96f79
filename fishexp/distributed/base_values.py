"""Values that a model's weights had before training changed them, mask after mask: the base of the run's delta."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from fishexp.delta import Delta
from fishexp.delta.diff import Original, by_seed, trained
from fishexp.masks.positions import Positions
from fishexp.sparse.parameter import weights


class BaseValues:
    """Remember the values that the masks' entries and the buffers of a model had before training changed them.

    Attributes:
        whole: Whether any weight may change, so that no values are remembered.
        seeds: Seed of each mask so far; None for a mask that no seed describes.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.whole = False
        self.seeds: list[int | None] = []
        self._positions: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}
        self._buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def add_whole_model(self) -> None:
        """Let every weight change from now on."""
        self.whole, self._positions, self._values = True, {}, {}

    def add(self, masks: Sequence[Positions], seed: int | None = None) -> None:
        """Remember the values of these masks' entries; to be called before training changes them.

        Args:
            seed: Seed of the mask, if a seed describes it.
        """
        if self.whole:
            return
        self.seeds.append(seed)
        for name, p in weights(self._model).items():
            found = [mask[name] for mask in masks if name in mask]
            here = [torch.arange(p.numel(), device=p.device) if index is None else index for index in found]
            if not here:
                continue
            known = self._positions.get(name, here[0][:0])
            index = torch.cat(here).unique()
            index = index[~torch.isin(index, known)]
            values = self._values.get(name, p.detach().new_zeros(0))
            self._positions[name] = torch.cat([known, index])
            self._values[name] = torch.cat([values, p.detach().take(index)])

    def delta(self, fresh: Collection[str] = ()) -> Delta:
        """Compute the delta of the model as it is now against what it was; see :meth:`fishexp.sparse.Sparse.delta`."""
        if self.whole:
            return Delta.whole(self._model)
        originals = {
            name: Original(None if len(index) == p.numel() and _ascends(index) else index, self._values[name], True)
            for name, p in weights(self._model).items()
            if (index := self._positions.get(name)) is not None
        }
        known = self._model.state_dict().keys()
        originals |= {name: Original(None, b, False) for name, b in self._buffers.items() if name in known}
        content = trained(self._model, originals, fresh)
        if len(self.seeds) == 1 and self.seeds[0] is not None:
            content = by_seed(content, self.seeds[0], weights(self._model))
        return Delta.of(content)


def _ascends(index: Tensor) -> bool:
    return bool((index[1:] > index[:-1]).all())
