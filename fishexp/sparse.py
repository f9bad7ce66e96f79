"""Kept entries become the only weights that train."""

import weakref
from collections.abc import Callable, Iterator, MutableMapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from fishexp.errors import FishexpError
from fishexp.masks import Mask

_HOOKS: MutableMapping[Tensor, RemovableHandle] = WeakTensorKeyDictionary()  # weight -> its gradient hook
_TARGETS: MutableMapping[Tensor, "tuple[weakref.ref[Tensor], Tensor]"] = WeakTensorKeyDictionary()  # packed -> where to


class Sparse:
    """The kept entries of a model, one packed parameter per tensor that holds any; made by :func:`sparsify`."""

    def __init__(self, model: nn.Module, mask: Mask) -> None:
        self._parameters: list[nn.Parameter] = []
        for name, weight in model.named_parameters():
            kept = mask[name].to(weight.device)
            weight.requires_grad_(bool(kept.any()))
            _hook(weight, None)
            if bool(kept.all()):
                self._parameters.append(weight)
            elif weight.requires_grad:
                self._parameters.append(_pack(weight, kept))

    def parameters(self) -> Iterator[nn.Parameter]:
        """What to give to an optimiser: its state is as large as these, not as the model."""
        return iter(self._parameters)


def _pack(weight: nn.Parameter, kept: Tensor) -> nn.Parameter:
    """A parameter of the kept values that receives their gradient, and whose optimiser step moves ``weight``."""
    positions = kept.nonzero(as_tuple=True)
    packed = nn.Parameter(weight.detach()[positions])

    def gather(weight: Tensor) -> None:
        """Keep the gradient of the kept entries; the dense one is freed before the next layer's is formed."""
        assert weight.grad is not None
        gradient = weight.grad[positions]
        packed.grad = gradient if packed.grad is None else packed.grad.add_(gradient)
        weight.grad = None

    _hook(weight, gather)
    strides = torch.tensor(weight.stride(), device=weight.device)
    _TARGETS[packed] = weakref.ref(weight), (torch.stack(positions, 1) * strides).sum(1)
    return packed


def _hook(weight: Tensor, hook: Callable[[Tensor], None] | None) -> None:
    """Replace the gradient hook of ``weight``: a second mask takes the place of the first."""
    if weight in _HOOKS:
        _HOOKS.pop(weight).remove()
    if hook is not None:
        _HOOKS[weight] = weight.register_post_accumulate_grad_hook(hook)


def _kept(optimiser: Optimizer) -> Iterator[tuple[nn.Parameter, Tensor, Tensor]]:
    """Packed values, the storage they come from, and where in it, of this optimiser's parameters."""
    for packed in (p for group in optimiser.param_groups for p in group["params"] if p in _TARGETS):
        reference, offsets = _TARGETS[packed]
        weight = reference()
        if weight is not None:
            yield packed, weight.data.as_strided((weight.numel(),), (1,), weight.storage_offset()), offsets


# Hooks around each step, since no version counter tells of one (fused steps raise none). The weights are what counts:
# values loaded into them after `sparsify` are where the step starts from.


@torch.no_grad()
def _before_step(optimiser: Optimizer, *_: object) -> None:
    for packed, storage, offsets in _kept(optimiser):
        packed.copy_(storage[offsets])


@torch.no_grad()
def _after_step(optimiser: Optimizer, *_: object) -> None:
    for packed, storage, offsets in _kept(optimiser):
        storage[offsets] = packed


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)


def sparsify(model: nn.Module, mask: Mask) -> Sparse:
    """Make the kept entries the only weights of ``model`` that train, in place.

    After ``optimiser.step()`` of any :class:`torch.optim.Optimizer` the weights hold the new values; entries outside
    ``mask`` stay bit-identical, whatever the optimiser's decay or momentum, since it never sees them. Gradients are
    those of :meth:`Sparse.parameters`: clear them with ``optimiser.zero_grad()`` and clip them there, not in the model.

    Args:
        model: Keeps its parameters, names and shapes. Those without a kept entry stop requiring a gradient.
        mask: name -> bool tensor of the parameter's shape, for every parameter.

    Returns:
        The kept entries; give :meth:`Sparse.parameters` to an optimiser.

    Raises:
        FishexpError: If ``mask`` keeps nothing, or does not fit the model.
    """
    parameters = dict(model.named_parameters())
    for name in sorted(parameters.keys() ^ mask.keys()):
        where = "the mask" if name in mask else "the model"
        raise FishexpError(f"{name} is in {where} only; a mask names every parameter of its model")
    for name, weight in parameters.items():
        if mask[name].shape != weight.shape:
            raise FishexpError(f"{name} has shape {tuple(weight.shape)}, its mask {tuple(mask[name].shape)}")
    if not any(bool(kept.any()) for kept in mask.values()):
        raise FishexpError("the mask keeps no weight, so nothing could train")
    return Sparse(model, mask)


def mask_gradients(model: nn.Module, mask: Mask) -> list[nn.Parameter]:
    """The original's way: all weights train, with the gradient zeroed outside ``mask``; decay still reaches them.

    Returns:
        All parameters, for an optimiser with dense state.

    Source:
        The CIFAR-10 code of the paper (varunnair18/FISH, b5bff1e), which adds weight decay after masking.
    """
    for name, weight in model.named_parameters():
        weight.requires_grad_(True)
        _hook(weight, _zero_outside(mask[name].to(weight)))
    return list(model.parameters())


def _zero_outside(kept: Tensor) -> Callable[[Tensor], None]:
    def zero(weight: Tensor) -> None:
        assert weight.grad is not None
        weight.grad.mul_(kept)

    return zero
