"""The gradient of the kept entries equals the dense one's there, whatever the module."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fishexp.masks.topk import count
from fishexp.sparse import sparsify
from fishexp.sparse.cost_model import choose
from fishexp.sparse.gradients import TOKENS, linear_gradient
from fishexp.sparse.parameter import GradientMethod, SparseParameter, weights
from tests.support.modules import CASES, built, mask_of, numbers, objective

WAYS: list[GradientMethod | None] = ["sampled", "touched", "dense", None]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_the_dense_one_at_the_kept_entries(case: str, way: GradientMethod | None) -> None:
    """Added up over two backward passes; the gradient below the module is the dense one too."""
    (model, inputs), (dense, _) = built(case), built(case)
    if inputs.is_floating_point():
        inputs.requires_grad_()
    mask = mask_of(model)
    sparse = sparsify(model, mask, way)
    below = []
    for net in (model, dense):
        for _ in range(2):
            objective(net, inputs).backward()
        below.append(inputs.grad)
        inputs.grad = None
    assert sum(p.numel() for p in sparse.parameters()) == count(mask)
    for (name, p), values in zip(
        ((n, p) for n, p in dense.named_parameters() if mask[n].any()), sparse.parameters(), strict=True
    ):
        gradient = torch.zeros_like(p) if p.grad is None else p.grad.to_dense()
        found = torch.zeros_like(values) if values.grad is None else values.grad
        at = sparse.positions()[name]
        assert torch.equal(at.sort().values, mask[name].flatten().nonzero().squeeze(1))
        torch.testing.assert_close(found.flatten(), gradient.take(at), rtol=1e-12, atol=1e-12, msg=name)
    if below[1] is not None:
        torch.testing.assert_close(below[0], below[1], rtol=1e-12, atol=1e-12)
    assert all(p.grad is None for name, p in weights(model).items() if not mask[name].all())


@pytest.mark.parametrize("way", ["sampled", "touched", "dense"])
@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (200, 200)])
def test_many_tokens_and_few_touched_rows_or_columns(way: GradientMethod, shape: tuple[int, int]) -> None:
    few = 0.001 + 6 / (shape[0] * shape[1])
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < few
    kept = SparseParameter(nn.Parameter(numbers(*shape)), mask, nn.Linear(1, 1), way)
    assert kept.touched is not None
    g, x = numbers(2 * TOKENS + 5, shape[0]), numbers(2 * TOKENS + 5, shape[1])
    torch.testing.assert_close(linear_gradient(kept, g, x), kept.gather(g.t() @ x), rtol=1e-12, atol=1e-11)
    assert kept.found == way


def test_the_rule_takes_a_sparse_way_only_where_it_pays() -> None:
    def way(shape: tuple[int, int], mask: Tensor, dtype: torch.dtype) -> GradientMethod:
        kept = SparseParameter(nn.Parameter(torch.zeros(shape)), mask, nn.Linear(1, 1), None)
        return choose(kept, dtype, 1024, 1024 * (mask.any(0).sum().item() + shape[0]))

    generator = torch.Generator().manual_seed(0)
    spread = torch.rand((768, 768), generator=generator) < 0.005
    column = torch.zeros((768, 768), dtype=torch.bool)
    column[:, 3] = True
    for dtype in (torch.float32, torch.bfloat16):
        assert way((768, 768), spread, dtype) == "sampled"
        assert way((768, 768), column, dtype) == "touched"
        assert way((768, 768), ~column, dtype) == "dense"
        assert way((2, 2), torch.tensor([[True, False], [False, True]]), dtype) == "dense"
    assert way((768, 768), spread, torch.complex64) == "dense"


def test_ways_are_told() -> None:
    model, inputs = built("linear on sequences")
    sparse = sparsify(model, mask_of(model), "sampled")
    assert sparse.ways() == {}
    objective(model, inputs).backward()
    assert sparse.ways() == {"0.weight": "sampled", "2.weight": "sampled"}


@pytest.mark.parametrize("way", WAYS)
def test_autocast_computes_in_bf16_and_moves_values_in_float32(way: GradientMethod | None) -> None:
    """As near to the float64 gradient as the dense one under autocast is."""
    model, inputs = built("linear on sequences")
    exact = copy.deepcopy(model)
    objective(exact, inputs).backward()
    mask = mask_of(model)
    model = model.float()
    dense = copy.deepcopy(model)
    sparse = sparsify(model, mask, way)
    for net in (model, dense):
        with torch.autocast("cpu", torch.bfloat16):
            out = net(inputs.float())
        assert out.dtype == torch.bfloat16
        out.float().tanh().square().sum().backward()
    moving = ((name, p) for name, p in exact.named_parameters() if mask[name].any())
    for (name, p), values in zip(moving, sparse.parameters(), strict=True):
        wanted, reference = p.grad[mask[name]], dense.get_parameter(name).grad[mask[name]]  # type: ignore[index]
        assert values.grad is not None
        assert values.grad.dtype == torch.float32
        assert (values.grad - wanted).norm() <= 1.5 * (reference - wanted).norm() + 1e-3 * wanted.norm(), name
