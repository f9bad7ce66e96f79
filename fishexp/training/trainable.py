"""Which weights train: the kept entries of a mask, or all weights; and what training has changed so far."""

from collections.abc import Callable, Collection, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fishexp.delta import Delta
from fishexp.masks.positions import (
    find_positions,
    positions_for_file,
    positions_from_file,
    positions_to_mask,
    write_entries,
)
from fishexp.masks.random_masks import Seeded
from fishexp.masks.started import Started
from fishexp.masks.topk import Mask
from fishexp.sparse import Sparse, sparsify
from fishexp.sparse.costs import Costs
from fishexp.sparse.parameter import weights
from fishexp.sparse.sparsify import mask_gradients
from fishexp.training.snapshots import Snapshot

Decay: TypeAlias = Literal["kept", "all"]  # which weights weight decay reaches
MASK = "mask."  # prefix of the masks in a snapshot


class Trainable:
    """Make weights of a model train: the kept entries (``decay=kept``), or all with masked gradients (``decay=all``).

    Args:
        mask: The kept entries; None if every weight trains.
        costs: By which gradient methods are chosen; None for those of this machine.

    Attributes:
        dense: Whether training may have moved weights outside a mask.
        parameters: The parameters for an optimiser.
        seed: Seed of a random mask, which says all there is to know of it; else None.
    """

    def __init__(self, model: nn.Module, mask: Mask | None, decay: Decay, costs: Costs | None = None) -> None:
        self.dense = mask is None or decay == "all"
        if mask is None:
            mask, decay = {name: torch.ones_like(p, dtype=torch.bool) for name, p in weights(model).items()}, "kept"
        self._model = model
        self.seed = mask.seed if isinstance(mask, Seeded) else None
        self.sparse: Sparse | None = None
        self._mask: Mask = {}  # where everything moves the entries that moved do not tell
        if decay == "kept":
            self.sparse = sparsify(model, mask, costs=costs)
            self.parameters = list(self.sparse.parameters())
        else:
            self._mask = mask
            self.parameters = mask_gradients(model, mask)

    @classmethod
    def chosen(cls, model: nn.Module, choose: Callable[[], Mask], decay: Decay, costs: Costs) -> "Trainable":
        """Make the entries of the mask that ``choose`` returns trainable.

        The delta's base is the model before ``choose``, whatever values the mask lets kept entries begin with: scoring
        as the original does moves running statistics.
        """
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        mask = choose()
        after = {name: buffer.clone() for name, buffer in model.named_buffers()}
        _set_buffers(model, before)
        trainable = cls(model, mask, decay, costs)
        if isinstance(mask, Started):
            _set_kept(model, mask)
        _set_buffers(model, after)
        return trainable

    def delta(self, fresh: Collection[str] = ()) -> Delta:
        """Make a delta of the model as it is now against what it was at the start, or at the last :meth:`rebase`.

        Args:
            fresh: Names of weights that began at random, which are no part of the base.
        """
        return Delta.whole(self._model) if self.sparse is None else self.sparse.delta(fresh)

    def rebase(self) -> None:
        """Let the next delta begin with the model as it is now."""
        if self.sparse is not None:
            self.sparse.rebase()

    def entries(self) -> dict[str, tuple[nn.Parameter, Tensor]]:
        """Return, for each weight that trains, the optimiser's parameter, and its entries' positions in the weight."""
        if self.sparse is None:
            return {name: (p, torch.arange(p.numel(), device=p.device)) for name, p in weights(self._model).items()}
        positions = self.sparse.positions()
        return {name: (p, positions[name]) for name, p in zip(positions, self.sparse.parameters(), strict=True)}

    def tensors(self) -> dict[str, Tensor]:
        """Return what :func:`snapshot_mask` needs beside the delta."""
        return {MASK + name: positions_for_file(find_positions(kept)) for name, kept in self._mask.items()}


def _set_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(values[name])


@torch.no_grad()
def _set_kept(model: nn.Module, mask: Started) -> None:
    """Give kept entries the values that they begin to train with."""
    for name, weight in weights(model).items():
        weight.copy_(torch.where(mask[name], mask.start[name], weight))
    weights(model)  # what trains in the place of a partly kept weight takes its values


def snapshot_mask(snapshot: Snapshot, model: nn.Module) -> Mask:
    """Return the mask that the run of this snapshot had selected."""
    seed = snapshot.about.get("mask_seed")
    stored = {name.removeprefix(MASK): t for name, t in snapshot.tensors.items() if name.startswith(MASK)}
    if not stored:
        mask = snapshot.delta.mask(model)
        return mask if seed is None else Seeded(mask, seed)
    parameters = weights(model)
    return positions_to_mask({name: positions_from_file(stored[name], p) for name, p in parameters.items()}, parameters)


def transfer_optimizer_state(old: Optimizer, before: Trainable, new: Optimizer, after: Trainable) -> None:
    """Give entries that train under both masks the state in ``new`` that they had in ``old``; others begin at zero.

    What an optimiser counts per tensor, such as AdamW's steps, goes on counting where any entry of a tensor stays.
    """
    if before.sparse is None and after.sparse is None:  # every weight trains, whatever the mask
        new.load_state_dict(old.state_dict())
        return
    earlier = before.entries()
    # of a scalar, what is counted per tensor has the shape of what there is per entry
    like = max((q for q, _ in earlier.values() if q in old.state), key=Tensor.dim, default=None)
    if like is None:
        return
    for name, (p, positions) in after.entries().items():
        q, known = earlier.get(name, (like, positions[:0]))
        if q not in old.state:  # it had no gradient
            q, known = like, positions[:0]
        order = known.argsort()
        nearest = torch.searchsorted(known, positions, sorter=order).clamp(max=max(len(known) - 1, 0))
        stays = known[order[nearest]] == positions if len(known) else torch.zeros_like(positions, dtype=torch.bool)
        for key, value in old.state[q].items():
            if value.shape != q.shape:
                new.state[p][key] = value.clone() if len(known) else torch.zeros_like(value)
                continue
            new.state[p][key] = torch.zeros_like(p, dtype=value.dtype)
            write_entries(new.state[p][key], stays.nonzero().squeeze(1), value.take(order[nearest[stays]]))
