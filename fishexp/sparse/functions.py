"""Layers whose backward pass forms the gradient of the kept entries, not the dense one."""
# once_differentiable has no types:
# pyright: reportIncompatibleMethodOverride=false

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fishexp.sparse.gradients import Conv, convolution_gradient, embedding_gradient, linear_gradient
from fishexp.sparse.parameter import SparseParameter


class LinearKept(Function):
    """``F.linear`` whose backward pass forms the gradient of the kept entries of weight and bias, not the dense one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, of_weight: Tensor | None, of_bias: Tensor | None,
        weight_kept: SparseParameter | None, bias_kept: SparseParameter | None,
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
            if need_bias:
                found[2] = g.sum(0)
            if need_of_bias:
                found[4] = bias_kept.gather(g.sum(0))
            if need_of_weight:
                found[3] = linear_gradient(weight_kept, g, x2)
        return tuple(found)


class ConvolutionKept(Function):
    """``F.conv2d`` in the same manner."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, of_weight: Tensor | None, of_bias: Tensor | None,
        weight_kept: SparseParameter | None, bias_kept: SparseParameter | None, conv: Conv,
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
            found[0], found[1], _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, conv.stride, conv.padding, conv.dilation, False, [0, 0],
                conv.groups, [need_x, need_weight, False],
            )  # fmt: skip
            if need_bias:  # not above, where oneDNN forms the weight's gradient as well
                found[2] = gradient.sum((0, 2, 3))
            if need_of_bias:
                found[4] = bias_kept.gather(gradient.sum((0, 2, 3)))
            if need_of_weight:
                found[3] = convolution_gradient(weight_kept, gradient, x, weight, conv)
        return tuple(found)


class EmbeddingKept(Function):
    """``F.embedding`` whose backward pass adds up the rows that occur, and gathers the kept entries from them."""

    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, weight: Tensor, padding: int | None, values: Tensor, kept: SparseParameter
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding, ctx.kept = padding, kept
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (ids,), kept = ctx.saved_tensors, ctx.kept
        width = kept.weight.shape[1]
        ids, slot = ids.flatten().unique(return_inverse=True)
        sums = gradient.new_zeros(len(ids), width).index_add_(0, slot, gradient.reshape(-1, width))
        if ctx.padding is not None:
            sums[ids == ctx.padding] = 0
        return None, None, None, embedding_gradient(kept, ids, sums), None


class WholeKept(Function):
    """The weight itself, for any other use; its dense gradient is gathered from as soon as it is formed."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor, kept: SparseParameter) -> Tensor:
        ctx.kept = kept
        return weight.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient if ctx.needs_input_grad[0] else None, ctx.kept.gather(gradient), None
