"""Modules whose partly kept weights train through their kept entries, whatever uses them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fishexp.gradients import Conv, convolution_gradient, linear_gradient
from fishexp.kept import Kept

_BASES: dict[
    type, tuple[type, tuple[str, ...]]
] = {}  # a class made here -> the module's own class, the partly kept names


class LinearKept(Function):
    """``F.linear`` whose backward pass forms the gradient of the kept entries of weight and bias, not the dense one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, of_weight: Tensor | None, of_bias: Tensor | None,
        weight_kept: Kept | None, bias_kept: Kept | None,
    ) -> Tensor:  # fmt: skip
        """``of_weight`` and ``of_bias`` are the kept values: they get the gradient."""
        ctx.save_for_backward(x, weight)
        ctx.kept = weight_kept, bias_kept
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        weight_kept, bias_kept = ctx.kept
        need_x, need_weight, need_bias, need_of_weight, need_of_bias, *_ = ctx.needs_input_grad
        found: list[Tensor | None] = [None] * 7
        with torch.autocast(gradient.device.type, enabled=False):
            g, x2 = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
            if need_x:
                found[0] = (g @ weight).view(x.shape)
            if need_weight:
                found[1] = g.t() @ x2
            if need_bias or need_of_bias:
                total = g.sum(0)
                found[2] = total if need_bias else None
                found[4] = bias_kept.gather(total) if need_of_bias else None
            if need_of_weight:
                found[3] = linear_gradient(weight_kept, g, x2)
        return tuple(found)


class ConvolutionKept(Function):
    """``F.conv2d`` in the same manner."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, of_weight: Tensor | None, of_bias: Tensor | None,
        weight_kept: Kept | None, bias_kept: Kept | None, conv: Conv,
    ) -> Tensor:  # fmt: skip
        """``of_weight`` and ``of_bias`` are the kept values: they get the gradient."""
        ctx.save_for_backward(x, weight)
        ctx.kept, ctx.conv = (weight_kept, bias_kept), conv
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), conv = ctx.saved_tensors, ctx.conv
        weight_kept, bias_kept = ctx.kept
        need_x, need_weight, need_bias, need_of_weight, need_of_bias, *_ = ctx.needs_input_grad
        found: list[Tensor | None] = [None] * 8
        with torch.autocast(gradient.device.type, enabled=False):
            found[0], found[1], total = torch.ops.aten.convolution_backward(
                gradient, x, weight, [len(weight)], conv.stride, conv.padding, conv.dilation, False, [0, 0],
                conv.groups, [need_x, need_weight, need_bias or need_of_bias],
            )  # fmt: skip
            found[2] = total if need_bias else None
            found[4] = bias_kept.gather(total) if need_of_bias else None
            if need_of_weight:
                found[3] = convolution_gradient(weight_kept, gradient, x, conv)
        return tuple(found)


class EmbeddingKept(Function):
    """``F.embedding`` whose backward pass adds up the rows that occur, and gathers the kept entries from them."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None, values: Tensor, kept: Kept) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding, ctx.kept = padding, kept
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (ids,), kept = ctx.saved_tensors, ctx.kept
        size, width = kept.weight.shape
        rows, slot = ids.flatten().unique(return_inverse=True)
        sums = gradient.new_zeros(len(rows) + 1, width)  # the last row stays zero: it is that of absent ids
        sums.index_add_(0, slot, gradient.reshape(-1, width))
        place = torch.full((size,), len(rows), device=ids.device)
        place[rows] = torch.arange(len(rows), device=ids.device)
        if ctx.padding is not None:
            place[ctx.padding] = len(rows)
        positions = kept.positions.long()
        found = sums.take(place[positions // width] * width + positions % width)
        return None, None, None, found.to(kept.values.dtype), None


class WholeKept(Function):
    """The weight itself, for any other use; its dense gradient is gathered from as soon as it is formed."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor, kept: Kept) -> Tensor:
        ctx.kept = kept
        return weight.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient if ctx.needs_input_grad[0] else None, ctx.kept.gather(gradient), None


def _linear(module: Any, x: Tensor) -> Tensor:
    """The forward pass of a Linear with partly kept weights."""
    return LinearKept.apply(*_arguments(module, x))


def _convolution(module: Any, x: Tensor) -> Tensor:
    """The forward pass of a Conv2d with partly kept weights."""
    if x.dim() != 4:
        return nn.Conv2d.forward(module, x)
    padding = module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode), (0, 0)
    conv = Conv(module.kernel_size, module.stride, padding, module.dilation, module.groups)
    return ConvolutionKept.apply(*_arguments(module, x), conv)


def _arguments(module: Any, x: Tensor) -> tuple[Any, ...]:
    """Input, weight, bias, their kept values, and whose they are; under autocast in its type."""
    kept = {name: module._modules.get(f"{name}_kept") for name in ("weight", "bias")}
    weight, bias = (getattr(module, name) if one is None else module._parameters[name] for name, one in kept.items())
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    values = (None if one is None else one.values for one in kept.values())
    return x, weight, bias, *values, *kept.values()


def _embedding(module: Any, ids: Tensor) -> Tensor:
    """The forward pass of an Embedding with a partly kept weight."""
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return nn.Embedding.forward(module, ids)
    kept = module._modules["weight_kept"]
    return EmbeddingKept.apply(ids, module._parameters["weight"], module.padding_idx, kept.values, kept)


def _whole(name: str) -> property:
    """The weight as any other forward pass sees it."""

    def get(module: Any) -> Tensor:
        kept = module._modules[f"{name}_kept"]
        return WholeKept.apply(module._parameters[name], kept.values, kept)

    return property(get)


@cache
def _class_of(base: type, names: tuple[str, ...]) -> type:
    """The class of a module that is a ``base`` but for its weights ``names``, which are partly kept."""
    body: dict[str, Any] = {name: _whole(name) for name in names}
    ours = {nn.Linear.forward: _linear, nn.Conv2d.forward: _convolution}
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


def attach(module: nn.Module, kept: Mapping[str, Kept]) -> None:
    """Let the kept entries train in the place of ``module``'s own weights of these names."""
    for name, one in kept.items():
        module.add_module(f"{name}_kept", one)
    module.__class__ = _class_of(type(module), tuple(kept))


def detach(model: nn.Module) -> list[tuple[nn.Module, dict[str, Kept]]]:
    """Undo :func:`attach` in all of ``model``; what it takes to do it again."""
    attached = []
    for module in list(model.modules()):
        if type(module) in _BASES:
            module.__class__, names = _BASES[type(module)]
            attached.append((module, {name: module._modules.pop(f"{name}_kept") for name in names}))
    return attached


@contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """``model`` with all weights its own again, for as long as the context lasts."""
    attached = detach(model)
    try:
        yield
    finally:
        for module, kept in attached:
            attach(module, kept)
