"""Kept entries become the only weights that train."""

from collections.abc import Callable, Iterator, MutableMapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from fishexp.errors import FishexpError
from fishexp.kept import Kept, Way, owners, weights
from fishexp.masks import Mask
from fishexp.modules import attach, detach

PRODUCTS = nn.Linear | nn.Conv2d | nn.Embedding  # whose kept entries are sparse matrices
_HOOKS: MutableMapping[Tensor, RemovableHandle] = WeakTensorKeyDictionary()  # weight -> its gradient hook


class Sparse:
    """The kept entries of a model, one parameter for each tensor that holds any; made by :func:`sparsify`."""

    def __init__(self, parameters: dict[str, nn.Parameter], kept: dict[str, Kept]) -> None:
        self._parameters, self._kept = parameters, kept

    def parameters(self) -> Iterator[nn.Parameter]:
        """What to give to an optimiser: its state is as large as these, not as the model."""
        return iter(self._parameters.values())

    def positions(self) -> dict[str, Tensor]:
        """Where in its flattened weight each value of :meth:`parameters` stands."""
        return {
            name: self._kept[name].positions.long() if name in self._kept else torch.arange(p.numel(), device=p.device)
            for name, p in self._parameters.items()
        }

    def ways(self) -> dict[str, Way]:
        """How the last backward pass found the gradient of each partly kept weight of a Linear or a convolution."""
        return {name: kept.found for name, kept in self._kept.items() if kept.found is not None}


# Hooks around each step, since no version counter tells of one (fused steps raise none). The weights are what counts:
# values loaded into them after `sparsify` are where the step starts from.


def _before_step(optimiser: Optimizer, *_: object) -> None:
    for kept in owners(p for group in optimiser.param_groups for p in group["params"]):
        if isinstance(optimiser, torch.optim.LBFGS):
            raise FishexpError(
                "LBFGS looks at the loss within a step, where the model has the old weights; take another"
            )
        kept.read_()


def _after_step(optimiser: Optimizer, *_: object) -> None:
    for kept in owners(p for group in optimiser.param_groups for p in group["params"]):
        kept.write_()


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)


def sparsify(model: nn.Module, mask: Mask, way: Way | None = None) -> Sparse:
    """Make the kept entries the only weights of ``model`` that train, in place.

    The values of a partly kept weight become a parameter ``<weight>_kept.values`` beside it, which
    ``model.parameters()`` lists too; the weight itself is frozen. After ``optimiser.step()`` of any
    :class:`torch.optim.Optimizer` the weights hold the new values; entries outside ``mask`` stay bit-identical,
    whatever the optimiser's decay or momentum, since it never sees them. ``state_dict()`` has the model's own names
    only. A model can be copied, pickled and moved with its kept entries; a second call replaces the first mask.

    Args:
        model: Keeps its weights, their names and shapes. Those without a kept entry stop requiring a gradient.
        mask: name -> bool tensor of the parameter's shape, for every parameter.
        way: How the gradient of the kept entries of Linears and convolutions is found; None lets
            :func:`fishexp.rule.choose` predict the fastest for each layer.

    Returns:
        The kept entries; give :meth:`Sparse.parameters` to an optimiser.

    Raises:
        FishexpError: If ``mask`` keeps nothing, or does not fit the model, or a module reaches a weight otherwise than
            by its name.
    """
    partly = _partly_kept(model, mask)
    detach(model)
    users = {m._parameters.get("weight"): m for m in model.modules() if isinstance(m, PRODUCTS)}
    parameters: dict[str, nn.Parameter] = {}
    kept: dict[str, Kept] = {}
    for name, weight in model.named_parameters():
        _hook(weight, None)
        weight.requires_grad_(bool(mask[name].all()))
        if name in partly:
            kept[name] = Kept(weight, mask[name], users.get(weight), way)
            parameters[name] = kept[name].values
        elif weight.requires_grad:
            parameters[name] = weight
    of = {one.weight: one for one in kept.values()}
    for module in list(model.modules()):
        own = {name: of[p] for name, p in module._parameters.items() if p is not None and p in of}
        if own:
            attach(module, own)
    return Sparse(parameters, kept)


def _partly_kept(model: nn.Module, mask: Mask) -> dict[str, nn.Parameter]:
    """The weights of which some entries are kept, but not all.

    Raises:
        FishexpError: If the mask is not one for this model, or such a weight cannot be stood in for.
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
    for module in model.modules():
        if place := _out_of_reach(module, set(partly.values())):
            raise FishexpError(
                f"{place} of a {type(module).__name__} holds a weight that the mask keeps in part, where sparsify "
                "cannot stand in for it; keep it whole or not at all, or make it a plain parameter of a module"
            )
    return partly


def _out_of_reach(module: nn.Module, partly: set[nn.Parameter]) -> str | None:
    """An attribute through which ``module`` reaches a weight otherwise than by its name."""
    if isinstance(module, nn.Sequential):  # what stands beside the weight would be called, too
        return next((name for name, p in module._parameters.items() if p in partly), None)
    if isinstance(module, nn.RNNBase):
        return None  # its list is known
    for name, value in vars(module).items():
        if isinstance(value, list | tuple) and any(isinstance(p, nn.Parameter) and p in partly for p in value):
            return name
    return None


def _hook(weight: Tensor, hook: Callable[[Tensor], None] | None) -> None:
    """Replace the gradient hook of ``weight``."""
    if weight in _HOOKS:
        _HOOKS.pop(weight).remove()
    if hook is not None:
        _HOOKS[weight] = weight.register_post_accumulate_grad_hook(hook)


def mask_gradients(model: nn.Module, mask: Mask) -> list[nn.Parameter]:
    """The original's way: all weights train, with the gradient zeroed outside ``mask``; decay still reaches them.

    Returns:
        All parameters, for an optimiser with dense state.

    Source:
        The CIFAR-10 code of the paper (varunnair18/FISH, b5bff1e), which adds weight decay after masking.
    """
    detach(model)
    for name, weight in model.named_parameters():
        weight.requires_grad_(True)
        _hook(weight, _zero_outside(mask[name].to(weight)))
    return list(model.parameters())


def _zero_outside(kept: Tensor) -> Callable[[Tensor], None]:
    def zero(weight: Tensor) -> None:
        assert weight.grad is not None
        weight.grad.mul_(kept)

    return zero
