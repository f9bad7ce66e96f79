"""Modules whose partly kept weights train through their kept entries, whatever uses them."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from fishexp.sparse.functions import ConvolutionKept, EmbeddingKept, LinearKept, WholeKept
from fishexp.sparse.gradients import Conv
from fishexp.sparse.parameter import SparseParameter

_BASES: dict[type, tuple[type, tuple[str, ...]]] = {}  # a class made here -> the module's own, the partly kept names

_HOOKS: MutableMapping[Tensor, Any] = WeakTensorKeyDictionary()  # weight -> (handle, hook)


def _linear(module: Any, x: Tensor) -> Tensor:
    """The forward pass of a Linear with partly kept weights."""
    if x.is_complex() or x.is_nested:
        return nn.Linear.forward(module, x)
    return LinearKept.apply(*_arguments(module, x))


def _convolution(module: Any, x: Tensor) -> Tensor:
    """The forward pass of a Conv2d with partly kept weights."""
    kept = _kept(module, "weight")
    if x.dim() != 4 or x.is_complex() or (kept is not None and kept.groups != module.groups):
        return nn.Conv2d.forward(module, x)
    padding = module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode), (0, 0)
    conv = Conv(module.kernel_size, module.stride, padding, module.dilation, module.groups)
    return ConvolutionKept.apply(*_arguments(module, x), conv)


def _arguments(module: Any, x: Tensor) -> tuple[Any, ...]:
    """Input, weight, bias, their kept values, and whose they are; under autocast in its type."""
    kept = {name: _kept(module, name) for name in ("weight", "bias")}
    weight, bias = (getattr(module, name) if one is None else module._parameters[name] for name, one in kept.items())
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    values = (None if one is None else one.values for one in kept.values())
    return x, weight, bias, *values, *kept.values()


def _embedding(module: Any, ids: Tensor) -> Tensor:
    """The forward pass of an Embedding with a partly kept weight."""
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse or ids.device.type != "cpu":
        return nn.Embedding.forward(module, ids)  # on a GPU, which would have to wait for the rows that occur
    kept = _kept(module, "weight")
    return EmbeddingKept.apply(ids, kept.weight, module.padding_idx, kept.values, kept)


def _kept(module: Any, name: str) -> Any:
    """The kept entries of the module's own weight of that name, which may have been assigned anew; None if whole."""
    kept = module._modules.get(f"{name}_kept")
    if kept is not None and kept.weight is not module._parameters[name]:
        kept.weight = module._parameters[name]
    return kept


def _whole(name: str) -> property:
    """The weight as any other forward pass sees it."""

    def get(module: Any) -> Tensor:
        kept = _kept(module, name)
        return WholeKept.apply(kept.weight, kept.values, kept) if torch.is_grad_enabled() else kept.weight

    return property(get)


@cache
def _class_of(base: type, names: tuple[str, ...]) -> type:
    """The class of a module that is a ``base`` but for its weights ``names``, which are partly kept."""
    body: dict[str, Any] = {name: _whole(name) for name in names}
    ours: dict[Any, Any] = {nn.Linear.forward: _linear, nn.Conv2d.forward: _convolution}
    if "weight" in names:
        ours[nn.Embedding.forward] = _embedding
    if base.forward in ours:
        body["forward"] = ours[base.forward]
    if issubclass(base, nn.RNNBase):  # it keeps its weights in a list as well
        body["_flat_weights"] = property(_flat_weights, lambda module, value: None)
    body |= {"__reduce_ex__": _reduce_ex, "__module__": base.__module__, "__qualname__": base.__qualname__}
    made = type(base.__name__, (base,), body)
    _BASES[made] = base, names
    return made


def _flat_weights(module: Any) -> list[Tensor]:
    return [getattr(module, name) for name in module._flat_weights_names]


def _reduce_ex(module: Any, protocol: Any) -> tuple[Any, ...]:
    """For copy and pickle, to which a class made at run time has no name."""
    made = type(module)
    base, names = _BASES[made]
    function, (_, *arguments), *rest = super(made, module).__reduce_ex__(protocol)
    return _new, (base, names, function, *arguments), *rest


def _new(base: type, names: tuple[str, ...], function: Any, *arguments: Any) -> Any:
    return function(_class_of(base, names), *arguments)


def attach(module: nn.Module, kept: Mapping[str, SparseParameter]) -> None:
    """Let the kept entries train in the place of ``module``'s own weights of these names."""
    for name, one in kept.items():
        module.add_module(f"{name}_kept", one)
    module.__class__ = _class_of(type(module), tuple(kept))


def detach(model: nn.Module) -> list[tuple[nn.Module, dict[str, SparseParameter]]]:
    """Undo :func:`attach` in all of ``model``; what it takes to do it again."""
    attached = []
    for module in list(model.modules()):
        if type(module) in _BASES:
            module.__class__, names = _BASES[type(module)]
            attached.append((module, {name: module._modules.pop(f"{name}_kept") for name in names}))
    return attached


def add_hook(weight: Tensor, hook: Callable[[Tensor], None]) -> None:
    """Call ``hook`` when a gradient of the weight has been formed."""
    _HOOKS[weight] = weight.register_post_accumulate_grad_hook(hook), hook


def remove_hook(weight: Tensor) -> Callable[[Tensor], None] | None:
    """Undo :func:`add_hook`; the hook, if there was one."""
    handle, hook = _HOOKS.pop(weight, (None, None))
    if handle is not None:
        handle.remove()
    return hook


@contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """``model`` with all weights its own again and no gradient hook of ours, for as long as the context lasts."""
    attached = detach(model)
    hooks = {weight: hook for weight in model.parameters() if (hook := remove_hook(weight)) is not None}
    try:
        yield
    finally:
        for module, kept in attached:
            attach(module, kept)
        for weight, hook in hooks.items():
            add_hook(weight, hook)
