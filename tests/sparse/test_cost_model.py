"""The cost model takes a sparse method where it pays, and what it took is told."""

import pytest
import torch
from torch import Tensor, nn

from fishexp.sparse import sparsify
from fishexp.sparse.cost_model import choose
from fishexp.sparse.costs import by_instruction_set
from fishexp.sparse.modules import sparse_parameter
from fishexp.sparse.parameter import GradientMethod
from tests.support.modules import built, mask_of, objective


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_a_sparse_method_is_taken_only_where_it_pays(capability: str) -> None:
    costs = by_instruction_set(capability)

    def method(shape: tuple[int, int], mask: Tensor, dtype: torch.dtype) -> GradientMethod:
        kept = sparse_parameter("weight", nn.Parameter(torch.zeros(shape)), mask, nn.Linear(1, 1), None, costs)
        return choose(kept, "linear", dtype, {"reorder": sum(shape)})

    generator = torch.Generator().manual_seed(0)
    spread = torch.rand((768, 768), generator=generator) < 0.005
    column = torch.zeros((768, 768), dtype=torch.bool)
    column[:, 3] = True
    for dtype in (torch.float32, torch.bfloat16):
        assert method((768, 768), spread, dtype) == "sddmm"
        assert method((768, 768), column, dtype) == "submatrix"
        assert method((768, 768), ~column, dtype) == "dense"
        assert method((2, 2), torch.tensor([[True, False], [False, True]]), dtype) == "dense"
    assert method((768, 768), spread, torch.complex64) == "dense"


def test_ways_are_told() -> None:
    model, inputs = built("linear on sequences")
    sparse = sparsify(model, mask_of(model), "sddmm")
    assert sparse.ways() == {}
    objective(model, inputs).backward()
    assert sparse.ways() == {"0.weight": "sddmm", "2.weight": "sddmm"}
