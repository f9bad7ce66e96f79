"""Layers take inputs that are laid out otherwise than row after row, as the plain ones do."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fishexp.sparse import sparsify
from tests.support.modules import mask_of, numbers, tokens


def rows() -> Tensor:
    return torch.eye(4, 5, dtype=torch.float64)


def jagged(*parts: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(parts), layout=torch.jagged)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (lambda: nn.Linear(5, 3), lambda: rows().to_sparse()),
        (lambda: nn.Linear(5, 3), lambda: rows().to_sparse_csr()),
        (lambda: nn.Linear(5, 3), lambda: jagged(numbers(2, 5), numbers(3, 5))),
        (lambda: nn.Embedding(9, 4), lambda: jagged(tokens(2), tokens(5))),
    ],
)
def test_sparse_and_nested_inputs(build: Callable[[], nn.Module], inputs: Callable[[], Tensor]) -> None:
    torch.manual_seed(0)
    model = build().double()
    dense = copy.deepcopy(model)
    sparse = sparsify(model, mask_of(model))
    outputs = [net(inputs()) for net in (model, dense)]
    found, wanted = (out.values() if out.is_nested else out for out in outputs)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for out in (found, wanted):
        out.tanh().square().sum().backward()
    for (name, at), values in zip(sparse.positions().items(), sparse.parameters(), strict=True):
        gradient = dense.get_parameter(name).grad
        assert gradient is not None
        torch.testing.assert_close(values.grad, gradient.take(at), rtol=1e-12, atol=1e-12, msg=name)
