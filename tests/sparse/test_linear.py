"""The gradient of a Linear's kept entries, by every method."""

import pytest
import torch
from torch import nn

from fishexp.sparse.linear import BLOCK_TOKENS, linear_gradient
from fishexp.sparse.modules import sparse_parameter
from fishexp.sparse.parameter import GradientMethod
from tests.support.modules import numbers


@pytest.mark.parametrize("way", ["sddmm", "submatrix", "dense"])
@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (200, 200)])
def test_many_tokens_and_few_rows_or_columns_with_kept_entries(way: GradientMethod, shape: tuple[int, int]) -> None:
    few = 0.001 + 6 / (shape[0] * shape[1])
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < few
    kept = sparse_parameter("weight", nn.Parameter(numbers(*shape)), mask, nn.Linear(1, 1), way)
    assert kept.submatrix_lines is not None
    g, x = numbers(2 * BLOCK_TOKENS + 5, shape[0]), numbers(2 * BLOCK_TOKENS + 5, shape[1])
    torch.testing.assert_close(linear_gradient(kept, g, x), kept.gather(g.t() @ x), rtol=1e-12, atol=1e-11)
    assert kept.last_method == way
