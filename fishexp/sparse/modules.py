"""Modules whose partly kept weights train through their kept entries, whatever uses them."""
# once_differentiable has no types:
# pyright: reportIncompatibleMethodOverride=false

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fishexp.sparse.conv import CONV2D
from fishexp.sparse.embedding import EMBEDDING
from fishexp.sparse.gradient_hooks import add_gradient_hook, remove_gradient_hook
from fishexp.sparse.linear import LINEAR
from fishexp.sparse.parameter import GradientMethod, LayerKind, SparseParameter, kept_entries

# type of a module, and of those that inherit its forward pass -> how they train; all others gather from dense gradients
REGISTRY: dict[type[nn.Module], LayerKind] = {
    nn.Linear: LINEAR,
    nn.Conv2d: CONV2D,
    nn.Embedding: EMBEDDING,
}

# class made here -> the module's own class, names of its partly kept weights
_BASES: dict[type, tuple[type, tuple[str, ...]]] = {}


def kind_of(module: nn.Module) -> LayerKind | None:
    """Return the kind of layer that the module is, or inherits from; None if it is not registered."""
    return next((REGISTRY[base] for base in type(module).__mro__ if base in REGISTRY), None)


def sparse_parameter(
    weight: nn.Parameter, mask: Tensor, user: nn.Module | None, way: GradientMethod | None
) -> SparseParameter:
    """Build the kept entries of ``weight``, indexed as the kind of layer that uses it needs them.

    Args:
        mask: bool, of the weight's shape.
        user: The layer of a registered kind, if any, whose weight it is.
        way: The method that forms the gradient; None for :func:`fishexp.sparse.cost_model.choose`.
    """
    positions = mask.to(weight.device).flatten().nonzero().squeeze(1)
    kind = None if user is None else kind_of(user)
    layout = None if kind is None else kind.layout(user, positions, weight.shape)
    return SparseParameter(weight, positions, layout, way)


class WeightFunction(Function):
    """Return the weight itself, for any use; its dense gradient is gathered from as soon as it is formed."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor, kept: SparseParameter) -> Tensor:
        ctx.kept = kept
        return weight.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient if ctx.needs_input_grad[0] else None, ctx.kept.gather(gradient), None


def _weight_property(name: str) -> property:
    """Make the property through which all but a kind's own forward pass see the weight."""

    def get(module: Any) -> Tensor:
        kept = kept_entries(module, name)
        return WeightFunction.apply(kept.weight, kept.values, kept) if torch.is_grad_enabled() else kept.weight

    return property(get)


@cache
def _class_of(base: type[nn.Module], names: tuple[str, ...]) -> type:
    """Make the class of a module that is a ``base`` but for its weights ``names``, which are partly kept."""
    body: dict[str, Any] = {name: _weight_property(name) for name in names}
    for layer, kind in REGISTRY.items():
        if base.forward is layer.forward:
            body["forward"] = kind.forward
    if issubclass(base, nn.RNNBase):  # it keeps its weights in a list as well
        body["_flat_weights"] = property(_flat_weights, lambda module, value: None)
    body |= {"__reduce_ex__": _reduce_ex, "__module__": base.__module__, "__qualname__": base.__qualname__}
    made = type(base.__name__, (base,), body)
    _BASES[made] = base, names
    return made


def _flat_weights(module: Any) -> list[Tensor]:
    return [getattr(module, name) for name in module._flat_weights_names]


def _reduce_ex(module: Any, protocol: Any) -> tuple[Any, ...]:
    """Reduce for copy and pickle, to which a class made at run time has no name."""
    made = type(module)
    base, names = _BASES[made]
    function, (_, *arguments), *rest = super(made, module).__reduce_ex__(protocol)
    return _new, (base, names, function, *arguments), *rest


def _new(base: type[nn.Module], names: tuple[str, ...], function: Any, *arguments: Any) -> Any:
    return function(_class_of(base, names), *arguments)


def attach(module: nn.Module, kept: Mapping[str, SparseParameter]) -> None:
    """Let the kept entries train in the place of ``module``'s own weights of these names."""
    for name, parameter in kept.items():
        module.add_module(f"{name}_kept", parameter)
    module.__class__ = _class_of(type(module), tuple(kept))


def detach(model: nn.Module) -> list[tuple[nn.Module, dict[str, SparseParameter]]]:
    """Undo :func:`attach` in all of ``model``, which is up to date then; return the arguments to do it again."""
    attached = []
    for module in list(model.modules()):
        if type(module) in _BASES:
            own = {name: kept_entries(module, name) for name in _BASES[type(module)][1]}
            module.__class__ = _BASES[type(module)][0]
            for name in own:
                del module._modules[f"{name}_kept"]
            attached.append((module, own))
    return attached


@contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """Give ``model`` all weights of its own again, without our gradient hooks, for as long as the context lasts."""
    attached = detach(model)
    hooks = {weight: hook for weight in model.parameters() if (hook := remove_gradient_hook(weight)) is not None}
    try:
        yield
    finally:
        for module, kept in attached:
            attach(module, kept)
        for weight, hook in hooks.items():
            add_gradient_hook(weight, hook)
