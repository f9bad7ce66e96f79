"""Make the kept entries of a model the only weights that train: :func:`sparsify`."""

from collections.abc import Callable, Collection, Iterator
from typing import get_args

import torch
from torch import Tensor, nn

from fishexp.delta import Delta
from fishexp.delta.diff import Original, by_seed, trained
from fishexp.errors import FishexpError
from fishexp.masks.random_masks import Seeded
from fishexp.masks.topk import Mask
from fishexp.sparse.modules import (
    add_gradient_hook,
    attach,
    detach,
    kind_of,
    remove_gradient_hook,
    sparse_parameter,
)
from fishexp.sparse.parameter import GradientMethod, SparseParameter, retire, weights


class Sparse:
    """Hold the kept entries of a model, a parameter for each tensor that has any; made by :func:`sparsify`."""

    def __init__(
        self, model: nn.Module, parameters: dict[str, nn.Parameter], kept: dict[str, SparseParameter], seed: int | None
    ) -> None:
        self._model, self._parameters, self._kept, self._seed = model, parameters, kept, seed
        self.rebase()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return what to give to an optimiser: its state is as large as these, not as the model."""
        return iter(self._parameters.values())

    def positions(self) -> dict[str, Tensor]:
        """Return for each of :meth:`parameters`, by name, where in the flattened weight its values stand."""
        return {
            name: self._kept[name].positions.long() if name in self._kept else torch.arange(p.numel(), device=p.device)
            for name, p in self._parameters.items()
        }

    def rebase(self) -> None:
        """Let the next delta begin here: what the model is now becomes its base.

        The kept entries' values are copied for it, and the buffers.
        """
        self._originals: dict[str, Tensor] = {}
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            if name in self._kept:
                self._originals[name] = self._kept[name].gather(tensor.detach())
            elif name in self._parameters or (isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter)):
                self._originals[name] = tensor.detach().clone()

    def delta(self, fresh: Collection[str] = ()) -> Delta:
        """Return what training changed since :func:`sparsify`, or since :meth:`rebase`.

        It has all kept entries, also those that have the value they had, and the buffers that have changed. Its base
        is the model with the earlier values in their place, and everything else as it is: a weight that was changed
        outside the mask meanwhile belongs to the base. A mask of :func:`~fishexp.masks.random_masks.random_scores` is
        held by its seed.

        Args:
            fresh: Tensors that the base is to lack, such as those of a head that has just been put on it.

        Raises:
            DeltaError: If the model has no such tensor.
        """
        originals = {
            name: Original(self._kept[name].positions if name in self._kept else None, values, name in self._parameters)
            for name, values in self._originals.items()
        }
        content = trained(self._model, originals, fresh)
        return Delta.of(content if self._seed is None else by_seed(content, self._seed, weights(self._model)))

    def ways(self) -> dict[str, GradientMethod]:
        """Return the gradient method of the last backward pass for each partly kept weight of a Linear or Conv2d.

        ``sddmm``, ``submatrix`` or ``dense``; see :func:`fishexp.sparse.cost_model.choose`.
        """
        return {name: kept.last_method for name, kept in self._kept.items() if kept.last_method is not None}


def sparsify(model: nn.Module, mask: Mask, way: GradientMethod | None = None) -> Sparse:
    """Make the kept entries the only weights of ``model`` that train, in place.

    The values of a partly kept weight become a parameter ``<weight>_kept.values`` beside it, which
    ``model.parameters()`` lists too; the weight itself is frozen. Whatever writes the values, a step of an optimiser or
    not, the weight has them when it is next read: by a forward pass, by ``state_dict()``, :meth:`Sparse.delta` or
    ``module.weight``. Entries outside ``mask`` stay bit-identical, whatever the optimiser's decay or momentum, since it
    never sees them. ``state_dict()`` has the model's own names only. A model can be copied, pickled and moved with its
    kept entries; a second call replaces the first mask.

    Values follow a weight that is written, by ``load_state_dict()`` or through its module; where both were written
    since the last read, the values count, and on the CPU a warning says so. A weight taken from ``named_parameters()``
    is stale until the next read. A partly kept ``module.weight`` is a view while gradients are on, so that
    :meth:`torch.nn.Module.get_parameter`, and transformers' ``tie_weights`` with it, find it under ``torch.no_grad()``
    only. There are no gradients of gradients.

    An optimiser sees the kept entries of a weight as a vector. So one that treats all entries alike trains as a dense
    one does whose gradient is masked; one that looks at a weight's shape or norm (Adafactor, LAMB, Shampoo) trains
    otherwise, and :class:`torch.optim.Muon` refuses vectors.

    Args:
        model: Keeps its weights, their names and shapes. Those without a kept entry stop requiring a gradient.
        mask: name -> bool tensor of the parameter's shape, for every parameter.
        way: The method that forms the gradient of the kept entries of Linears and convolutions: ``sddmm``,
            ``submatrix`` or ``dense``; None lets :func:`fishexp.sparse.cost_model.choose` predict the fastest for each
            layer.

    Returns:
        The kept entries; give :meth:`Sparse.parameters` to an optimiser.

    Raises:
        FishexpError: If ``mask`` keeps nothing, or does not fit the model, or a module reaches a weight otherwise than
            by its name.
    """
    if way is not None and way not in get_args(GradientMethod):
        raise FishexpError(f"way={way!r} is none of {', '.join(get_args(GradientMethod))}")
    partly = _partly_kept(model, mask)
    _restore(model)
    users = {m._parameters.get("weight"): m for m in model.modules() if kind_of(m) is not None}
    parameters: dict[str, nn.Parameter] = {}
    kept: dict[str, SparseParameter] = {}
    for name, weight in weights(model).items():
        weight.requires_grad_(bool(mask[name].all()))
        if not weight.requires_grad:
            weight.grad = None  # of an earlier dense pass: nobody would clear it
        if name in partly:
            kept[name] = sparse_parameter(weight, mask[name], users.get(weight), way)
            parameters[name] = kept[name].values
        elif weight.requires_grad:
            parameters[name] = weight
    by_weight = {parameter.weight: parameter for parameter in kept.values()}
    for module in list(model.modules()):
        own = {name: by_weight[p] for name, p in module._parameters.items() if p is not None and p in by_weight}
        if own:
            attach(module, own)
    return Sparse(model, parameters, kept, mask.seed if isinstance(mask, Seeded) else None)


def _partly_kept(model: nn.Module, mask: Mask) -> dict[str, nn.Parameter]:
    """Return the weights of which some entries are kept, but not all.

    Raises:
        FishexpError: If the mask does not fit the model, or a module reaches such a weight otherwise than by its name.
    """
    parameters = weights(model)
    for name in sorted(parameters.keys() ^ mask.keys()):
        where = "the mask" if name in mask else "the model"
        raise FishexpError(f"{name} is in {where} only; a mask names every parameter of its model")
    for name, weight in parameters.items():
        if mask[name].shape != weight.shape:
            raise FishexpError(f"{name} has shape {tuple(weight.shape)}, its mask {tuple(mask[name].shape)}")
    if not any(bool(kept.any()) for kept in mask.values()):
        raise FishexpError("the mask keeps no weight, so nothing could train")
    partly = {name: p for name, p in parameters.items() if mask[name].any() and not mask[name].all()}
    registered, hidden = set(model.modules()), set(partly.values())
    for module in registered:
        if place := _out_of_reach(module, hidden, registered):
            raise FishexpError(
                f"{place} of a {type(module).__name__} holds a weight that the mask keeps in part, where sparsify "
                "cannot stand in for it; keep it whole or not at all, or make it a plain parameter of a module"
            )
    return partly


def _out_of_reach(module: nn.Module, partly: set[nn.Parameter], registered: set[nn.Module]) -> str | None:
    """Find an attribute through which ``module`` reaches a weight otherwise than by name in a registered module."""
    if isinstance(module, nn.Sequential):  # what stands beside the weight would be called, too
        return next((name for name, p in module._parameters.items() if p in partly), None)
    known = {"_parameters", "_modules", "_buffers", "_flat_weights"}  # the last of recurrent layers
    for name, value in vars(module).items():
        held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        for entry in () if name in known or isinstance(module, SparseParameter) else held:
            if isinstance(entry, nn.Parameter) and entry in partly:
                return name
            if isinstance(entry, nn.Module) and entry not in registered and not partly.isdisjoint(entry.parameters()):
                return name
    return None


def _restore(model: nn.Module) -> None:
    """Undo what the last mask did to the modules."""
    for _, kept in detach(model):
        for parameter in kept.values():
            retire(parameter)
    for weight in model.parameters():
        remove_gradient_hook(weight)


def mask_gradients(model: nn.Module, mask: Mask) -> list[nn.Parameter]:
    """Train all weights, with the gradient zeroed outside ``mask``, as the original does; decay still reaches them.

    Returns:
        All parameters, for an optimiser with dense state.

    Source:
        The CIFAR-10 code of the paper (varunnair18/FISH, b5bff1e), which adds weight decay after masking.
    """
    _restore(model)
    for name, weight in weights(model).items():
        weight.requires_grad_(True)
        add_gradient_hook(weight, _zero_outside(mask[name].to(weight)))
    return list(model.parameters())


def _zero_outside(kept: Tensor) -> Callable[[Tensor], None]:
    def zero(weight: Tensor) -> None:
        assert weight.grad is not None
        weight.grad.mul_(kept)

    return zero
