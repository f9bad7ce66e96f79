"""Embeddings: the backward pass adds up the rows that occur, and gathers the kept entries from them."""
# once_differentiable has no types:
# pyright: reportIncompatibleMethodOverride=false

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fishexp.sparse.forward import entries_in_use
from fishexp.sparse.layout import LayerKind, matrix_layout
from fishexp.sparse.parameter import SparseParameter, waits_for


def embedding_forward(module: Any, input: Tensor) -> Tensor:  # noqa: A002  (the name that callers know)
    """Look up ``input`` in an Embedding with a partly kept weight."""
    dense = module.scale_grad_by_freq or module.sparse or input.is_nested
    if not torch.is_grad_enabled() or dense or waits_for(input):  # which rows occur is a question to the device
        return nn.Embedding.forward(module, input)
    kept = entries_in_use(module, "weight")
    return EmbeddingFunction.apply(input, kept.weight.detach(), module.padding_idx, kept.values, kept)


class EmbeddingFunction(Function):
    """Compute ``F.embedding``; the backward pass forms the gradient of the rows that occur only."""

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


def embedding_gradient(kept: SparseParameter, ids: Tensor, sums: Tensor) -> Tensor:
    """Return the kept entries of the gradient of an embedding's weight, of which few rows are looked at.

    Args:
        ids: (rows that occur,), ascending.
        sums: (rows that occur, width), their gradients.
    """
    starts = kept.crow_indices[0].long()
    first, counts = starts[ids], starts[ids + 1] - starts[ids]
    row = torch.repeat_interleave(counts)  # of each kept entry in rows that occur, as a number into ``ids``
    entry = torch.arange(len(row), device=row.device) + (first - counts.cumsum(0) + counts)[row]
    gradient = kept.values.new_zeros(len(kept.values))
    gradient[entry] = sums[row, kept.col_indices[entry]].to(gradient.dtype)
    return gradient


EMBEDDING = LayerKind(embedding_forward, matrix_layout)
