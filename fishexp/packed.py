"""Entries of a model as one vector, and what training has moved since it began."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from fishexp.delta import Delta
from fishexp.delta.seeded import Seeded
from fishexp.delta.trained import Original, by_seed, trained
from fishexp.kept import weights
from fishexp.masks import Mask


class Packed:
    """The entries of some weights of a model, one behind the other.

    Args:
        places: name -> (entries,) int64 positions in the flattened weight; None for all of it.
    """

    def __init__(self, model: nn.Module, places: Mapping[str, Tensor | None]) -> None:
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


def places(mask: Mask, model: nn.Module, without: Collection[str] = ()) -> dict[str, Tensor | None]:
    """Where the entries of a mask are, for :class:`Packed`: name by name in the model's order."""
    found: dict[str, Tensor | None] = {}
    for name, p in weights(model).items():
        if name not in without and bool(mask[name].any()):
            found[name] = None if bool(mask[name].all()) else mask[name].to(p.device).flatten().nonzero().squeeze(1)
    return found


class Ledger:
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

    def add(self, masks: Sequence[Mask]) -> None:
        """These entries are going to move; to be told before they do."""
        if self.whole:
            return
        self.seeds += [mask.seed if isinstance(mask, Seeded) else None for mask in masks]
        for name, p in weights(self._model).items():
            new = torch.zeros(p.numel(), dtype=torch.bool, device=p.device)
            for mask in masks:
                new |= mask[name].to(p.device).flatten()
            known = self._places.get(name, torch.zeros(0, dtype=torch.int64, device=p.device))
            new[known] = False
            index = new.nonzero().squeeze(1)
            if len(index):
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


def stored(masks: Sequence[Mask]) -> dict[str, Tensor]:
    """The masks as positions, for a file; of a weight kept whole there is one position, -1."""
    tensors = {}
    for number, mask in enumerate(masks):
        for name, kept in mask.items():
            index = torch.tensor([-1]) if bool(kept.all()) else kept.cpu().flatten().nonzero().squeeze(1)
            tensors[f"mask{number}.{name}"] = index if kept.numel() >= 2**31 else index.int()
    return tensors


def restored(tensors: Mapping[str, Tensor], model: nn.Module) -> list[Mask]:
    """The masks that :func:`stored` put among ``tensors``, for the model they were made for."""
    masks: list[Mask] = []
    while any(name.startswith(f"mask{len(masks)}.") for name in tensors):
        mask = {}
        for name, p in weights(model).items():
            index = tensors[f"mask{len(masks)}.{name}"].long().to(p.device)
            mask[name] = torch.zeros(p.numel(), dtype=torch.bool, device=p.device)
            mask[name][slice(None) if -1 in index else index] = True
            mask[name] = mask[name].view(p.shape)
        masks.append(mask)
    return masks
