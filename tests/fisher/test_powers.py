"""Powers of products over the tokens, against the definition in float64."""

import pytest
import torch
from torch import Tensor

from fishexp.fisher import powers
from fishexp.fisher.powers import Power, add_product_powers

ROWS, COLUMNS = 11, 13


def by_definition(left: Tensor, right: Tensor, power: Power) -> Tensor:
    gradients = torch.einsum("ntr,ntc->nrc", left, right)
    return (gradients.square() if power == "square" else gradients.abs()).sum(0)


@pytest.mark.parametrize("power", ["square", "absolute"])
@pytest.mark.parametrize("tokens", range(1, 8))
@pytest.mark.parametrize("whole", [True, False])
def test_product_powers(tokens: int, power: Power, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of tokens are multiplied for a few examples at a time; blocks leave a rest of rows and of columns."""
    if not whole:
        monkeypatch.setattr(powers, "CACHED_WEIGHTS", 16)
        monkeypatch.setattr(powers, "BLOCK", (2, 5))
    torch.manual_seed(tokens)
    left, right = (torch.randn(9, tokens, n, dtype=torch.float64) for n in (ROWS, COLUMNS))
    start = torch.rand(ROWS, COLUMNS, dtype=torch.float64)
    total = start.clone()
    add_product_powers(total, left, right, power)
    torch.testing.assert_close(total, start + by_definition(left, right, power))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squares_of_parts_that_cancel_are_not_negative(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    left, right = (torch.randn(9, 1, n).to(dtype) for n in (ROWS, COLUMNS))
    total = torch.zeros(ROWS, COLUMNS)
    add_product_powers(total, torch.cat([left, -left, left], 1), torch.cat([right, 2 * right, right], 1), "square")
    assert bool((total >= 0).all())
    assert total.max() <= 1e-5 * by_definition(left.float(), right.float(), "square").max()
