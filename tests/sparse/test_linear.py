"""The gradient of a Linear's kept entries, by every method."""

import copy
import math

import pytest
import torch
from torch import nn

from fishexp.sparse import sparsify
from fishexp.sparse.calibration import known
from fishexp.sparse.linear import BLOCK_TOKENS, linear_gradient, rows_with_gradient
from fishexp.sparse.modules import sparse_parameter
from fishexp.sparse.parameter import GradientMethod
from tests.support.modules import numbers


@pytest.mark.parametrize("way", ["sddmm", "submatrix", "dense"])
@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (200, 200)])
def test_many_tokens_and_few_rows_or_columns_with_kept_entries(way: GradientMethod, shape: tuple[int, int]) -> None:
    few = 0.001 + 6 / (shape[0] * shape[1])
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < few
    kept = sparse_parameter("weight", nn.Parameter(numbers(*shape)), mask, nn.Linear(1, 1), way, known())
    assert kept.submatrix_lines is not None
    g, x = numbers(2 * BLOCK_TOKENS + 5, shape[0]), numbers(2 * BLOCK_TOKENS + 5, shape[1])
    torch.testing.assert_close(linear_gradient(kept, g, x), kept.gather(g.t() @ x), rtol=1e-12, atol=1e-11)
    assert kept.last_method == way


@pytest.mark.parametrize("way", ["sddmm", "submatrix", "dense"])
@pytest.mark.parametrize("rows", [[], [0], [3], list(range(0, 1024, 64)), list(range(700)), list(range(1024))])
def test_rows_without_a_gradient_are_left_out_and_nothing_else(way: GradientMethod, rows: list[int]) -> None:
    """As of padding, and of all but the first tokens in BERT's last layer; a row of NaN is none."""
    torch.manual_seed(0)
    dense = nn.Linear(24, 16).double()
    model, x = copy.deepcopy(dense), numbers(16, 64, 24).requires_grad_()
    mask = {name: torch.rand(p.shape) < 0.3 for name, p in dense.named_parameters()}
    sparse = sparsify(model, mask, way)
    g = torch.zeros(16, 64, 16, dtype=torch.float64)
    g.view(-1, 16)[rows] = numbers(len(rows), 16)
    (model(x) * g).sum().backward()
    found, x.grad = x.grad, None
    (dense(x) * g).sum().backward()
    torch.testing.assert_close(found, x.grad, rtol=1e-12, atol=1e-12)
    for name, values in sparse.named_parameters():
        torch.testing.assert_close(values.grad, dense.get_parameter(name).grad[mask[name]], rtol=1e-12, atol=1e-12)  # type: ignore[index]


def test_which_rows_have_a_gradient() -> None:
    g = torch.zeros(1024, 8)
    g[[5, 70], [0, 7]] = torch.tensor([1e-45, math.nan])
    g[900] = -0.0
    assert rows_with_gradient(g).tolist() == [5, 70]  # type: ignore[union-attr]
    assert rows_with_gradient(torch.ones(1024, 8)) is None
    assert rows_with_gradient(torch.zeros(1024, 8)).tolist() == []  # type: ignore[union-attr]
    assert rows_with_gradient(g[:20]) is None
