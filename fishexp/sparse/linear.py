"""Linear layers: the backward pass forms the gradient of the kept entries of weight and bias, not the dense one."""
# once_differentiable has no types:
# pyright: reportIncompatibleMethodOverride=false

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fishexp.sparse.cost_model import gradient_method
from fishexp.sparse.forward import function_arguments, without_autocast
from fishexp.sparse.layout import LayerKind, matrix_layout
from fishexp.sparse.parameter import SparseParameter, waits_for
from fishexp.sparse.sddmm import gather_from_submatrix, sampled_zeros, submatrix_factors, transposed

# rows of the input that the sampled product takes at once, so that both factors stay in cache
BLOCK_TOKENS = 256
# rows of a gradient that are looked at; if none of them is zero, no zero rows are looked for among the others
LOOKED_AT = 16
# share of the rows that have a gradient, above which the others are not left out
MAX_ROWS_SHARE = 0.75


def linear_forward(module: Any, input: Tensor) -> Tensor:  # noqa: A002  (the name that callers know)
    """Apply a Linear with partly kept parameters."""
    plain = input.layout == torch.strided and not (input.is_complex() or input.is_nested or input.is_meta)
    if not torch.is_grad_enabled() or not plain:
        return nn.Linear.forward(module, input)
    return LinearFunction.apply(*function_arguments(module, input))


class LinearFunction(Function):
    """Compute ``F.linear``; the backward pass forms the gradient of the kept entries of weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None,
        weight_values: Tensor | None, bias_values: Tensor | None,
        weight_kept: SparseParameter | None, bias_kept: SparseParameter | None,
    ) -> Tensor:  # fmt: skip
        """Take the kept values as arguments too, since they get the gradient."""
        ctx.save_for_backward(x, weight)
        ctx.kept = weight_kept, bias_kept
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        weight_kept, bias_kept = ctx.kept
        need_x, need_weight, need_bias, need_weight_values, need_bias_values, *_ = ctx.needs_input_grad
        gradients: list[Tensor | None] = [None] * 7
        with without_autocast(gradient):
            g, x2 = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
            rows = rows_with_gradient(g)
            if rows is not None:
                g, x2 = g.index_select(0, rows), x2.index_select(0, rows)
            if need_x:
                product = g @ weight
                if rows is not None:
                    product = product.new_zeros(x.numel() // x.shape[-1], x.shape[-1]).index_copy_(0, rows, product)
                gradients[0] = product.view(x.shape)
            if need_weight:
                gradients[1] = g.t() @ x2
            if need_bias:
                gradients[2] = g.sum(0)
            if need_bias_values:
                gradients[4] = bias_kept.gather(g.sum(0))
            if need_weight_values:
                gradients[3] = linear_gradient(weight_kept, g, x2)
        return tuple(gradients)


def rows_with_gradient(g: Tensor) -> Tensor | None:
    """Return the rows of a gradient that are not zero, if they are few; None if all are to be computed with.

    The loss does not depend on padding, nor on the last layer's outputs but the first of each sentence: the rows of
    these are zero, and add nothing to any product.

    Args:
        g: (tokens, out).
    """
    if waits_for(g) or len(g) < 2 * LOOKED_AT:
        return None
    stride = len(g) // LOOKED_AT | 1  # odd, as sentences tend to have an even number of tokens
    if g[::stride].any(1).all():
        return None
    rows = g.abs().amax(1).nonzero().squeeze(1)  # faster than any(), and not zero for NaN either
    return rows if len(rows) <= MAX_ROWS_SHARE * len(g) else None


def linear_gradient(kept: SparseParameter, g: Tensor, x: Tensor) -> Tensor:
    """Return the kept entries of ``g.T @ x``, the gradient of the weight.

    Args:
        g: (tokens, out), gradient of the layer's output.
        x: (tokens, in), the layer's input.
    """
    method = gradient_method(kept, "linear", x.dtype, {"reorder": g.shape[1] + x.shape[1]})
    if method == "dense":
        return kept.gather(g.t() @ x)
    if method == "submatrix":
        g, x = submatrix_factors(kept, g, x)
        narrow_first = kept.by_column and not waits_for(g)  # the other way round MKL is up to 18 times slower
        return gather_from_submatrix(kept, (x.t() @ g).t() if narrow_first else g.t() @ x)
    total = sampled_zeros(kept, 0, g.t(), x.t())
    for block_g, block_x in zip(g.split(BLOCK_TOKENS), x.split(BLOCK_TOKENS), strict=True):
        total = torch.sparse.sampled_addmm(total, transposed(block_g), transposed(block_x).t())
    return total.values().to(kept.values.dtype)


LINEAR = LayerKind(linear_forward, matrix_layout)
