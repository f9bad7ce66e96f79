"""Kept entries go where the model goes: copies, pickles, files, types, other masks; and what is refused."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fishexp.errors import FishexpError
from fishexp.fisher import diagonal_fisher
from fishexp.sparse import sparsify
from fishexp.sparse.modules import plain
from fishexp.sparse.parameter import INDICES, SparseParameter, weights
from fishexp.sparse.sparsify import mask_gradients
from tests.support.cases import conv_net, images, sentences, tiny_bert
from tests.support.modules import built, mask_of, numbers, objective


def trained(model: nn.Module, parameters: list[nn.Parameter], data: tuple, n: int = 3) -> dict[str, Tensor]:
    optimiser = torch.optim.AdamW(parameters, 0.01)
    inputs, labels = data
    for _ in range(n):
        out = model(**inputs).logits if isinstance(inputs, dict) else model(inputs)
        F.cross_entropy(out, labels).backward()
        optimiser.step()
        model.zero_grad()
    assert all(p.grad is None for p in parameters)
    return {name: p.detach().clone() for name, p in weights(model).items()}


NETS = {"conv": (conv_net, images), "bert": (tiny_bert, sentences)}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "pair"])
def test_a_copy_trains_as_the_original_does_and_apart_from_it(net: str, how: str) -> None:
    build, data = NETS[net]
    model = build().eval()
    sparse = sparsify(model, mask_of(model))
    if how == "pair":
        copied, others = copy.deepcopy((model, sparse))
        parameters = list(others.parameters())
    else:
        if how == "deepcopy":
            copied = copy.deepcopy(model)
        elif how == "pickle":
            copied = pickle.loads(pickle.dumps(model))
        else:
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            copied = torch.load(file, weights_only=False)
        parameters = [p for p in copied.parameters() if p.requires_grad]
    assert [type(module).__name__ for module in copied.modules()] == [type(m).__name__ for m in model.modules()]
    before = {name: p.clone() for name, p in weights(model).items()}
    other = trained(copied, parameters, data())
    assert all(torch.equal(p, before[name]) for name, p in weights(model).items())
    found = trained(model, list(sparse.parameters()), data())
    assert any(not torch.equal(found[name], before[name]) for name in found)
    torch.testing.assert_close(other, found, rtol=0, atol=0)


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


def test_activation_checkpointing_recomputes_the_same() -> None:
    (model, inputs), (other, _) = built("linear on sequences"), built("linear on sequences")
    first, second = sparsify(model, mask_of(model)), sparsify(other, mask_of(other))
    inputs.requires_grad_()
    objective(model, inputs).backward()
    checkpoint(other, inputs, use_reentrant=False).tanh().square().sum().backward()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]


def test_scores_of_a_sparsified_model_are_those_of_the_model() -> None:
    """A regime may score again; the kept entries train on afterwards."""
    model, data = tiny_bert().eval(), sentences()
    wanted = diagonal_fisher(model, [data])
    sparse = sparsify(model, mask_of(model))
    torch.testing.assert_close(dict(diagonal_fisher(model, [data])), dict(wanted))
    before = {name: p.clone() for name, p in weights(model).items()}
    moved = trained(model, list(sparse.parameters()), data)
    assert any(not torch.equal(moved[name], before[name]) for name in moved)


def test_plain_gives_the_model_back_for_a_while() -> None:
    model = conv_net()
    names, kinds = list(dict(model.named_parameters())), [type(module) for module in model.modules()]
    sparsify(model, mask_of(model))

    def look() -> None:
        with plain(model):
            assert list(dict(model.named_parameters())) == names
            assert [type(module) for module in model.modules()] == kinds
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look()
    assert "0.weight_kept.values" in dict(model.named_parameters())


def test_a_weight_that_is_assigned_anew_is_the_one_that_trains() -> None:
    model, other = conv_net().eval(), conv_net().eval()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2)
    mask = mask_of(model)
    first, second = sparsify(model, mask), sparsify(other, mask)
    model.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)
    found, expected = (trained(net, list(one.parameters()), images()) for net, one in ((model, first), (other, second)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Scaled(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 2))
        self.scale = nn.Parameter(torch.ones(2))


def hidden(hide: Callable[[nn.Linear], object]) -> nn.Module:
    model = nn.Linear(2, 2)
    object.__setattr__(model, "also", hide(model))
    return model


def tied(weight: Tensor) -> nn.Module:
    other = nn.Linear(2, 2)
    other.weight = weight  # type: ignore[assignment]
    return other


@pytest.mark.parametrize(
    ("model", "place"),
    [
        (hidden(lambda m: [m.weight]), "also of a Linear"),
        (hidden(lambda m: {"w": m.weight}), "also of a Linear"),
        (hidden(lambda m: m.weight), "also of a Linear"),
        (hidden(lambda m: [tied(m.weight)]), "also of a Linear"),
        (Scaled(), "scale of a Scaled"),
    ],
)
def test_a_weight_that_is_out_of_reach_is_refused_and_nothing_has_changed(model: nn.Module, place: str) -> None:
    with pytest.raises(FishexpError, match=f"{place} holds a weight that the mask keeps in part"):
        sparsify(model, {name: torch.arange(p.numel()).view(p.shape) > 0 for name, p in weights(model).items()})
    assert all(p.requires_grad for p in model.parameters())


def test_an_unpickled_model_trains_in_a_process_that_knows_nothing_of_us(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    sparsify(model, {"weight": torch.eye(2, 3) > 0, "bias": torch.zeros(2) > 0})
    torch.save(model, tmp_path / "model.pt")
    code = f"""import torch
model = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
before = model.weight_kept.weight.clone()
optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
model(torch.ones(1, 3)).sum().backward()
optimiser.step()
print((model.weight_kept.weight != before).sum().item())"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"


def test_gradients_of_an_earlier_dense_pass_are_gone() -> None:
    model, inputs = built("linear on sequences")
    objective(model, inputs).backward()
    mask = mask_of(model)
    mask["0.bias"][:] = True
    sparsify(model, mask)
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"0.bias"}


def test_an_optimiser_of_an_earlier_mask_is_refused() -> None:
    model, inputs = built("linear on sequences")
    optimiser = torch.optim.SGD(sparsify(model, mask_of(model)).parameters(), 0.1)
    objective(model, inputs).backward()
    sparsify(model, mask_of(model, 0.5))
    with pytest.raises(FishexpError, match="an optimiser of an earlier mask cannot step"):
        optimiser.step()


def test_a_step_between_forward_and_backward_is_noticed() -> None:
    """As in dense training: the weights that the gradient needs are no more."""
    model, inputs = built("linear on sequences")
    optimiser = torch.optim.SGD(sparsify(model, mask_of(model)).parameters(), 0.1)
    first, second = objective(model, inputs), objective(model, inputs)
    first.backward()
    optimiser.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        second.backward()


def test_values_are_those_of_loaded_weights_at_once() -> None:
    model = conv_net()
    sparse = sparsify(model, mask_of(model))
    model.load_state_dict({name: torch.zeros_like(value) for name, value in model.state_dict().items()})
    assert all(not p.any() for p in sparse.parameters())


def test_complex_layers_shared_weights_of_other_groups_and_no_tokens() -> None:
    """Where a fast way does not hold, the dense gradient is gathered from."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, groups=2, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).tanh())

    torch.manual_seed(0)
    cases = [(Shared().double(), numbers(2, 2, 5, 5)), (nn.Linear(6, 8, dtype=torch.complex128), numbers(3, 6) + 1j)]
    for model, inputs in cases:
        dense, mask = copy.deepcopy(model), mask_of(model)
        sparse = sparsify(model, mask, "sampled")
        for net in (model, dense):
            net(inputs).abs().square().sum().backward()
        for (name, p), values in zip(dense.named_parameters(), sparse.parameters(), strict=True):
            assert p.grad is not None
            torch.testing.assert_close(values.grad, p.grad.take(sparse.positions()[name]), rtol=1e-12, atol=1e-12)
    model = nn.Linear(32, 32)
    sparse = sparsify(model, mask_of(model), "sampled")
    model(torch.zeros(0, 32)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in sparse.parameters())


def test_integers_are_no_weights_and_an_unknown_way_is_refused() -> None:
    model = nn.Linear(2, 2)
    model.counter = nn.Parameter(torch.zeros(3, dtype=torch.long), requires_grad=False)
    assert list(weights(model)) == ["weight", "bias"]
    sparsify(model, mask_of(model, 0.5))
    with pytest.raises(FishexpError, match="way='fast' is none of sampled, touched, dense"):
        sparsify(model, mask_of(model, 0.5), "fast")  # type: ignore[arg-type]


def test_scores_after_masked_gradients_are_those_of_the_model() -> None:
    model, data = conv_net().eval(), images()
    wanted = diagonal_fisher(model, [data])
    mask_gradients(model, mask_of(model))
    torch.testing.assert_close(dict(diagonal_fisher(model, [data])), dict(wanted))
    F.cross_entropy(model(data[0]), data[1]).backward()
    assert all(not p.grad[~mask_of(model)[name]].any() for name, p in model.named_parameters())  # type: ignore[index]


def test_data_parallel_training(tmp_path: Path) -> None:
    """Of one process; values and their gradients are all that it would exchange."""
    inputs, labels = images()
    model, alone = conv_net().eval(), conv_net().eval()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        sparse = sparsify(model, mask_of(model))
        found = trained(nn.parallel.DistributedDataParallel(model), list(sparse.parameters()), (inputs, labels))
    finally:
        torch.distributed.destroy_process_group()
    expected = trained(alone, list(sparsify(alone, mask_of(alone)).parameters()), (inputs, labels))
    torch.testing.assert_close(list(found.values()), list(expected.values()), rtol=0, atol=0)
