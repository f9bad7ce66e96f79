"""Parameters that are exchanged while a model is sparsified: tied ones apart, converted ones, those on meta."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fishexp.sparse import sparsify
from tests.support.checks import refusal
from tests.support.modules import Tied, mask_of, numbers, objective, tokens


def tied() -> nn.Module:
    torch.manual_seed(0)
    return Tied().double()


def one_weight_for_one_module(model: Any) -> None:
    model.embed.weight = nn.Parameter(numbers(7, 4))


def two_weights(model: Any) -> None:
    state = {name: tensor.clone() for name, tensor in tied().state_dict().items()}
    model.load_state_dict(state, assign=True)


def two_passes(model: nn.Module) -> None:
    for _ in range(2):
        objective(model, tokens(2, 3)).backward()


@pytest.mark.parametrize("untie", [one_weight_for_one_module, two_weights])
def test_a_tied_weight_that_is_untied_is_refused_before_a_second_step(untie: Callable[[nn.Module], None]) -> None:
    """Its kept entries could stand in one of the two weights only, and would be undone by the other."""
    model = tied()
    sparsify(model, mask_of(model))
    objective(model, tokens(2, 3)).backward()
    untie(model)
    message = (
        "embed.weight is partly kept and was tied to another such weight, or untied from one; call sparse.restore() "
    )
    assert message in refusal(two_passes, model)


def test_two_partly_kept_weights_that_are_tied_afterwards_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7)).double()
    sparsify(model, mask_of(model))
    with torch.no_grad():
        model[1].weight = model[0].weight
    assert "1.weight is partly kept and was tied to another such weight" in refusal(model, tokens(2, 3))


def same_parameter(model: Any, state: dict[str, Tensor]) -> None:
    model.embed.weight = model.out.weight = nn.Parameter(state.pop("embed.weight"))
    model.load_state_dict(state, strict=False)


def same_memory(model: nn.Module, state: dict[str, Tensor]) -> None:
    state["out.weight"] = state["embed.weight"]
    model.load_state_dict(state, assign=True)


@pytest.mark.parametrize("assign", [same_parameter, same_memory])
def test_a_tied_weight_that_is_assigned_anew_trains_as_dense(assign: Callable[..., None]) -> None:
    model, dense = tied(), tied()
    mask = mask_of(model)
    state = {name: tensor + 0.1 for name, tensor in model.state_dict().items()}
    del state["out.weight"]
    dense.load_state_dict(state, strict=False)
    sparse = sparsify(model, mask)
    assign(model, copy.deepcopy(state))
    optimiser = torch.optim.SGD(sparse.parameters(), 0.1)
    for _ in range(3):
        for one in (model, dense):
            objective(one, tokens(2, 3)).backward()
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            for name, p in dense.named_parameters():
                assert p.grad is not None
                p -= 0.1 * p.grad * mask[name]
                p.grad = None
        torch.testing.assert_close(dict(model.state_dict()), dict(dense.state_dict()))


def test_parameters_that_a_conversion_replaced_are_those_that_train() -> None:
    model = tied()
    sparse = sparsify(model, mask_of(model))
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.float()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    trains = {id(p) for p in model.parameters() if p.requires_grad}
    assert trains == {id(p) for p in sparse.parameters()}
    objective(model, tokens(2, 3)).backward()
    assert all(p.grad is not None and p.dtype == torch.float32 for p in sparse.parameters())


def test_a_tied_weight_goes_to_meta_as_others_do() -> None:
    model = tied()
    sparsify(model, mask_of(model))
    assert model.to("meta")(tokens(2, 3).to("meta")).shape == (2, 3, 7)


def test_a_model_without_values_is_refused() -> None:
    model = nn.Linear(3, 2)
    mask = mask_of(model)
    assert "weight is on the meta device, without values to keep" in refusal(sparsify, model.to("meta"), mask)


def test_an_earlier_reader_of_a_weight_sees_assigned_data() -> None:
    model = nn.Linear(3, 2).double()
    weight = model.weight
    sparsify(model, mask_of(model))
    model.weight.data = numbers(2, 3)
    assert torch.equal(weight.detach(), numbers(2, 3))
