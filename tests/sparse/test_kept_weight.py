"""What is set on a partly kept ``module.weight`` reaches its kept entries, or is refused; it can be copied."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn, optim

from fishexp.sparse import Sparse, sparsify
from tests.support.checks import refusal
from tests.support.modules import built, mask_of, objective


def model_and_kept() -> tuple[nn.Linear, nn.Module, Tensor, Sparse]:
    """Build a model of Linears; return its first layer as well, its inputs and its kept entries."""
    model, inputs = built("linear on sequences")
    first = model.get_submodule("0")
    assert isinstance(first, nn.Linear)
    return first, model, inputs, sparsify(model, mask_of(model))


def assign(weight: Tensor, required: bool) -> None:
    weight.requires_grad = required


def call(weight: Tensor, required: bool) -> None:
    weight.requires_grad_(required)


@pytest.mark.parametrize("set_required", [assign, call])
def test_a_layer_is_frozen_and_trains_again(set_required: Callable[[Tensor, bool], None]) -> None:
    layer, model, inputs, sparse = model_and_kept()
    values = dict(sparse.named_parameters())["0.weight"]
    set_required(layer.weight, False)
    assert not layer.weight.requires_grad
    objective(model, inputs).backward()
    assert [name for name, p in sparse.named_parameters() if p.grad is None] == ["0.weight"]
    set_required(layer.weight, True)
    assert layer.weight.requires_grad
    before = values.detach().clone()
    objective(model, inputs).backward()
    optim.SGD(sparse.parameters(), 0.1).step()
    assert not torch.equal(values, before)


def test_a_weight_that_was_frozen_for_a_use_gets_no_gradient_by_it() -> None:
    layer, _, _, sparse = model_and_kept()
    frozen = layer.weight.requires_grad_(False)
    assert not frozen.requires_grad
    assert not layer.weight.square().requires_grad
    layer.weight.requires_grad_()
    layer.weight.square().sum().backward()
    assert dict(sparse.named_parameters())["0.weight"].grad is not None


def test_a_gradient_is_cleared_and_another_refused() -> None:
    layer, model, inputs, sparse = model_and_kept()
    objective(model, inputs).backward()
    values = dict(sparse.named_parameters())["0.weight"]
    line = refusal(setattr, layer.weight, "grad", torch.ones_like(layer.weight))
    assert line.startswith("a gradient set on 0.weight, which is partly kept, would be lost; set those of its kept")
    assert values.grad is not None
    layer.weight.grad = None
    assert values.grad is None


def test_a_gradient_of_one_use_can_be_retained() -> None:
    layer, *_ = model_and_kept()
    weight = layer.weight
    weight.retain_grad()
    weight.square().sum().backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach())


def test_a_copy_is_a_tensor_of_its_own() -> None:
    layer, *_ = model_and_kept()
    copied, again = copy.deepcopy([weight := layer.weight, weight])
    assert copied is again
    assert (type(copied), copied.is_leaf, copied.requires_grad) == (Tensor, True, True)
    assert torch.equal(copied, layer.weight)
    assert copied.data_ptr() != layer.weight.data_ptr()


def test_a_trace_by_fx_has_the_layers_and_no_weight_of_its_own() -> None:
    """A Linear is a leaf, and trains on; a weight that a module uses by itself would be a constant."""
    _, model, inputs, sparse = model_and_kept()
    traced = torch.fx.symbolic_trace(model)
    objective(traced, inputs).backward()
    optim.SGD(sparse.parameters(), 0.1).step()
    assert torch.equal(traced(inputs), model(inputs))
    bare, inputs = built("bare")
    sparse = sparsify(bare, mask_of(bare))
    line = refusal(torch.fx.symbolic_trace, bare)
    assert line == "a trace by torch.fx cannot follow scale, which is partly kept; call sparse.restore() first"
    sparse.restore()
    torch.testing.assert_close(torch.fx.symbolic_trace(bare)(inputs), bare(inputs))
