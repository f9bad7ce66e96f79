"""Entries of a model as one vector, and what training has moved since it began."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fishexp.masks.topk import Mask
from fishexp.sparse.parameter import weights

# name -> (entries,) int64, ascending: where in the flattened weight they are; None for all of it
Places: TypeAlias = Mapping[str, Tensor | None]


class FlatView:
    """The entries of some weights of a model, one behind the other."""

    def __init__(self, model: nn.Module, places: Places) -> None:
        own = weights(model)
        self._entries = [(own[name], index) for name, index in places.items()]
        self._sizes = [p.numel() if index is None else len(index) for p, index in self._entries]

    def __len__(self) -> int:
        return sum(self._sizes)

    def read(self) -> Tensor:
        """(entries,) a copy of their values."""
        values = [p.detach().flatten() if index is None else p.detach().take(index) for p, index in self._entries]
        return torch.cat(values) if values else torch.zeros(0)

    @torch.no_grad()
    def write_(self, values: Tensor) -> None:
        """Give them these values."""
        for (p, index), part in zip(self._entries, values.split(self._sizes), strict=True):
            if index is None:
                p.copy_(part.view(p.shape))
            else:
                p.put_(index, part)


def places(mask: Mask, model: nn.Module) -> Places:
    """Where the entries of a mask are: name by name in the model's order, without weights that have none."""
    found: dict[str, Tensor | None] = {}
    for name, p in weights(model).items():
        index = mask[name].to(p.device).flatten().nonzero().squeeze(1)
        if len(index):
            found[name] = None if len(index) == p.numel() else index
    return found


def stored(moving: Sequence[Places]) -> dict[str, Tensor]:
    """Where the entries of masks are, for a file; of a weight kept whole there is one position, -1."""
    return {
        f"mask{number}.{name}": torch.tensor([-1]) if index is None else index.cpu()
        for number, where in enumerate(moving)
        for name, index in where.items()
    }


def restored(tensors: Mapping[str, Tensor], model: nn.Module) -> list[Places]:
    """What :func:`stored` put among ``tensors``, for the model it was made for."""
    found: list[Places] = []
    while any(name.startswith(f"mask{len(found)}.") for name in tensors):
        stem = f"mask{len(found)}."
        own = {name: tensors[stem + name].to(p.device) for name, p in weights(model).items() if stem + name in tensors}
        found.append({name: None if index.tolist() == [-1] else index for name, index in own.items()})
    return found


def mask_at(where: Places, model: nn.Module) -> Mask:
    """The mask that has its entries there."""
    mask = {name: torch.zeros(p.shape, dtype=torch.bool, device=p.device) for name, p in weights(model).items()}
    for name, index in where.items():
        mask[name].view(-1)[slice(None) if index is None else index] = True
    return mask
