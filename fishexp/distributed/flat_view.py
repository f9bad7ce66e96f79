"""Entries of a model's weights as a vector."""

import torch
from torch import Tensor, nn

from fishexp.masks.positions import Positions, write_entries
from fishexp.sparse.parameter import weights


class FlatView:
    """Read and write entries of a model's weights as a vector, weight after weight.

    Args:
        positions: Which entries, weight by weight in the order of the vector.
    """

    def __init__(self, model: nn.Module, positions: Positions) -> None:
        parameters = weights(model)
        self._model, self._positions = model, positions
        self._sizes = [parameters[name].numel() if index is None else len(index) for name, index in positions.items()]

    def __len__(self) -> int:
        return sum(self._sizes)

    def read(self) -> Tensor:
        """Return a copy of the values, (entries,)."""
        values = [p.detach().flatten() if index is None else p.detach().take(index) for p, index in self._parts()]
        return torch.cat(values) if values else torch.zeros(0)

    @torch.no_grad()
    def write_(self, values: Tensor) -> None:
        """Set the entries to ``values``, (entries,)."""
        for (p, index), part in zip(self._parts(), values.split(self._sizes), strict=True):
            if index is None:
                p.copy_(part.view(p.shape))
            else:
                write_entries(p, index, part)

    def _parts(self) -> list[tuple[nn.Parameter, Tensor | None]]:
        parameters = weights(self._model)
        return [(parameters[name], index) for name, index in self._positions.items()]
