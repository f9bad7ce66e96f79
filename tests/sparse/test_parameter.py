"""Kept entries go where the model goes: files, types, devices; and each optimiser step moves the weights."""

import copy
import gc

import pytest
import torch

from fishexp.errors import FishexpError
from fishexp.sparse import parameter, sparsify
from fishexp.sparse.parameter import INDICES, SparseParameter, weights
from tests.support.cases import NETS, conv_net, images, steps, trained
from tests.support.modules import mask_of, random_mask


@pytest.mark.parametrize("net", NETS)
def test_state_dict_has_the_models_own_names_and_loads_strictly(net: str) -> None:
    build, data = NETS[net]
    model, fresh = build().eval(), build().eval()
    names = list(model.state_dict())
    sparse = sparsify(model, mask_of(model))
    moved = trained(model, list(sparse.parameters()), data())
    assert list(model.state_dict()) == names
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(dict(fresh.named_parameters()), moved, rtol=0, atol=0)
    again = build().eval()
    more = sparsify(again, mask_of(again))
    again.load_state_dict(model.state_dict(), strict=True)
    after = trained(again, list(more.parameters()), data(), n=1)
    for name, kept in mask_of(model).items():
        assert torch.equal(after[name][~kept], moved[name][~kept]), name


def test_types_and_devices_move_values_and_positions_along() -> None:
    model = conv_net().eval()
    sparse = sparsify(model, mask_of(model))
    parameters = list(sparse.parameters())
    model.float()
    assert {p.dtype for p in parameters} == {torch.float32}
    inputs, labels = images()
    trained(model, parameters, (inputs.float(), labels))
    meta = copy.deepcopy(model).to("meta")
    found = [one for one in meta.modules() if isinstance(one, SparseParameter)]
    moved = [getattr(one, name, None) for one in found for name in INDICES]
    assert {(t.dtype, t.device.type) for t in moved if t is not None} == {(torch.int32, "meta")}
    assert {t.device.type for t in [*meta.parameters(), *meta.buffers()]} == {"meta"}


def test_values_are_those_of_loaded_weights_at_once() -> None:
    model = conv_net()
    sparse = sparsify(model, mask_of(model))
    model.load_state_dict({name: torch.zeros_like(value) for name, value in model.state_dict().items()})
    assert all(not p.any() for p in sparse.parameters())


def test_values_loaded_after_sparsify_are_where_the_next_step_starts() -> None:
    model, other = conv_net(), conv_net()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2)
    mask = random_mask(model)
    optimiser = torch.optim.SGD(sparsify(model, mask).parameters(), 0.1)
    model.load_state_dict(other.state_dict())
    steps(model, optimiser, images(), n=1)
    steps(other, torch.optim.SGD(sparsify(other, mask).parameters(), 0.1), images(), n=1)
    for found, expected in zip(weights(model).values(), weights(other).values(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("loaded", [["5.bias"], ["1.running_mean"], [], ["0.weight", "1.bias"]])
def test_loading_a_part_of_the_model_leaves_the_last_step_in_the_rest(
    loaded: list[str], waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step has moved the kept values, and nothing has read the weights since."""
    monkeypatch.setattr(parameter, "waits_for", lambda tensor: waits)
    model, other = conv_net(), conv_net()
    state = {name: torch.full_like(value, 2) for name, value in model.state_dict().items() if name in loaded}
    for one in (model, other):
        steps(one, torch.optim.SGD(sparsify(one, mask_of(one)).parameters(), 0.1), images(), n=1)
    expected = {name: value.clone() for name, value in other.state_dict().items()} | state
    model.load_state_dict(state, strict=False)
    torch.testing.assert_close(dict(model.state_dict()), expected, rtol=0, atol=0)


def test_a_state_that_does_not_fit_leaves_the_last_step() -> None:
    model, other = conv_net(), conv_net()
    for one in (model, other):
        steps(one, torch.optim.SGD(sparsify(one, mask_of(one)).parameters(), 0.1), images(), n=1)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({"5.weight": torch.zeros(2, 2)}, strict=False)
    torch.testing.assert_close(dict(model.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


def test_weights_follow_although_the_sparse_object_is_gone() -> None:
    model = conv_net()
    before = copy.deepcopy(model[0].weight)  # type: ignore[index]
    mask = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    mask["0.weight"][0] = True
    optimiser = torch.optim.SGD(sparsify(model, mask).parameters(), 0.1)
    gc.collect()
    steps(model, optimiser, images(), n=1)
    assert not torch.equal(model[0].weight, before)  # type: ignore[index]


def test_numbers_of_another_type_for_one_weight_are_refused() -> None:
    model = conv_net()
    sparsify(model, mask_of(model))
    weight = next(model.parameters())
    weight.data = weight.data.half()
    with pytest.raises(FishexpError, match=r"is torch\.float16, its kept entries torch\.float64; change"):
        model(images()[0])
