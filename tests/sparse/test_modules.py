"""Modules train through their kept entries, whatever the module: gradients, copies, pickles, and back again."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fishexp.fisher import diagonal_fisher
from fishexp.masks.topk import count
from fishexp.sparse import sparsify
from fishexp.sparse.layout import LayerKind, matrix_layout
from fishexp.sparse.linear import linear_forward
from fishexp.sparse.modules import REGISTRY, plain
from fishexp.sparse.parameter import GradientMethod, weights
from fishexp.sparse.sparsify import mask_gradients
from tests.support.cases import NETS, conv_net, images, sentences, tiny_bert, trained
from tests.support.modules import CASES, built, mask_of, numbers, objective

WAYS: list[GradientMethod | None] = ["sddmm", "submatrix", "dense", None]


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


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("padding", [0, "same"])
@pytest.mark.parametrize(
    "changed", [{"dilation": 2, "stride": 1}, {"dilation": (2, 1), "padding": "same"}, {"padding": 2}]
)
def test_a_convolution_whose_numbers_are_set_anew_computes_with_them(
    changed: dict[str, Any], padding: Any, way: GradientMethod | None
) -> None:
    """As where a backbone is dilated: also by plain integers, which torch takes."""
    torch.manual_seed(0)
    model, inputs = nn.Conv2d(2, 3, (3, 2), padding=padding).double(), numbers(2, 2, 7, 6)
    dense = copy.deepcopy(model)
    sparse = sparsify(model, mask_of(model), way)
    for net in (model, dense):
        vars(net).update(changed)
        objective(net, inputs).backward()
    torch.testing.assert_close(model(inputs), dense(inputs), rtol=1e-12, atol=1e-12)
    for (name, at), values in zip(sparse.positions().items(), sparse.parameters(), strict=True):
        gradient = dense.get_parameter(name).grad
        assert gradient is not None
        torch.testing.assert_close(values.grad, gradient.take(at), rtol=1e-12, atol=1e-12)


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


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch 2.11 itself
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # which dynamo reads
@pytest.mark.parametrize("case", ["parametrised", "convolution with same"])
def test_a_compiled_layer_forms_the_dense_gradient(case: str) -> None:
    """Of weights that a kind's own pass takes, and of those that only their module shows."""
    (model, inputs), (dense, _) = built(case), built(case)
    sparse = sparsify(model, mask_of(model))
    torch.compiler.reset()
    compiled: Any = torch.compile(model, backend="aot_eager")
    for net in (compiled, dense):
        objective(net, inputs).backward()
    for (name, at), values in zip(sparse.positions().items(), sparse.parameters(), strict=True):
        gradient = dense.get_parameter(name).grad
        assert gradient is not None
        torch.testing.assert_close(values.grad, gradient.take(at), rtol=1e-12, atol=1e-12, msg=name)


def test_a_kind_of_layer_is_registered_by_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the same class gathers from the dense gradient."""
    for registered in (False, True):

        class Doubled(nn.Linear):
            def forward(self, input: Tensor) -> Tensor:  # noqa: A002
                return 2 * super().forward(input)

        if registered:
            kind = LayerKind(lambda module, x: 2 * linear_forward(module, x), matrix_layout)
            monkeypatch.setitem(REGISTRY, Doubled, kind)
        model, inputs = Doubled(5, 3, bias=False).double(), numbers(4, 5)
        dense = copy.deepcopy(model)
        sparse = sparsify(model, mask_of(model), "sddmm")
        for net in (model, dense):
            objective(net, inputs).backward()
        for (name, p), values in zip(dense.named_parameters(), sparse.parameters(), strict=True):
            assert p.grad is not None
            torch.testing.assert_close(values.grad, p.grad.take(sparse.positions()[name]), rtol=1e-12, atol=1e-12)
        assert sparse.ways() == ({"weight": "sddmm"} if registered else {})


def test_a_class_that_lists_its_subclasses_gets_no_other() -> None:
    """Else a model that is built by name would be built of ours."""
    listed: dict[str, type] = {}

    class Block(nn.Linear):
        def __init_subclass__(cls, *, key: str) -> None:
            listed[key] = cls

    class Mixing(Block, key="mix"):
        pass

    model, inputs = nn.Sequential(Mixing(5, 3)).double(), numbers(4, 5)
    sparse = sparsify(model, mask_of(model))
    objective(copy.deepcopy(model), inputs).backward()
    assert listed == {"mix": Mixing}
    sparse.restore()
    assert type(model[0]) is Mixing


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
        sparse = sparsify(model, mask, "sddmm")
        for net in (model, dense):
            net(inputs).abs().square().sum().backward()
        for (name, p), values in zip(dense.named_parameters(), sparse.parameters(), strict=True):
            assert p.grad is not None
            torch.testing.assert_close(values.grad, p.grad.take(sparse.positions()[name]), rtol=1e-12, atol=1e-12)
    model = nn.Linear(32, 32)
    sparse = sparsify(model, mask_of(model), "sddmm")
    model(torch.zeros(0, 32)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in sparse.parameters())


def test_activation_checkpointing_recomputes_the_same() -> None:
    (model, inputs), (other, _) = built("linear on sequences"), built("linear on sequences")
    first, second = sparsify(model, mask_of(model)), sparsify(other, mask_of(other))
    inputs.requires_grad_()
    objective(model, inputs).backward()
    checkpoint(other, inputs, use_reentrant=False).tanh().square().sum().backward()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]


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


def test_an_unpickled_model_trains_in_a_process_that_knows_nothing_of_us(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    sparsify(model, {"weight": torch.eye(2, 3) > 0, "bias": torch.zeros(2) > 0})
    torch.save(model, tmp_path / "model.pt")
    code = f"""import torch
model = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
before = model.state_dict()["weight"].clone()
optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
model(torch.ones(1, 3)).sum().backward()
optimiser.step()
print((model.state_dict()["weight"] != before).sum().item())"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"


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


def test_scores_of_a_sparsified_model_are_those_of_the_model() -> None:
    """A regime may score again; the kept entries train on afterwards."""
    model, data = tiny_bert().eval(), sentences()
    wanted = diagonal_fisher(model, [data])
    sparse = sparsify(model, mask_of(model))
    torch.testing.assert_close(dict(diagonal_fisher(model, [data])), dict(wanted))
    before = {name: p.clone() for name, p in weights(model).items()}
    moved = trained(model, list(sparse.parameters()), data)
    assert any(not torch.equal(moved[name], before[name]) for name in moved)


def test_scores_after_masked_gradients_are_those_of_the_model() -> None:
    model, data = conv_net().eval(), images()
    wanted = diagonal_fisher(model, [data])
    mask_gradients(model, mask_of(model))
    torch.testing.assert_close(dict(diagonal_fisher(model, [data])), dict(wanted))
    F.cross_entropy(model(data[0]), data[1]).backward()
    assert all(not p.grad[~mask_of(model)[name]].any() for name, p in model.named_parameters())  # type: ignore[index]


@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_nothing_is_computed_below_the_lowest_kept_entry(layer: str) -> None:
    """Neither the gradient of that layer's input, nor anything of the layers under it."""
    torch.manual_seed(0)
    make = (lambda: nn.Linear(4, 4)) if layer == "linear" else (lambda: nn.Conv2d(4, 4, 3, padding=1))
    model = nn.Sequential(make(), nn.ReLU(), make(), nn.ReLU(), make()).double()
    mask = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in model.named_parameters()}
    for name in ("2.weight", "4.weight"):
        mask[name].view(-1)[3] = True
    sparse = sparsify(model, mask)
    x = numbers(*((5, 4) if layer == "linear" else (2, 4, 6, 6)))
    hidden = model[:2](x)
    assert not hidden.requires_grad
    out = model[2:](hidden)
    lowest = out.grad_fn.next_functions[0][0].next_functions[0][0]
    assert lowest.next_functions[0][0] is None  # no gradient of its input is asked for
    out.square().sum().backward()
    assert [p.grad is not None for p in sparse.parameters()] == [True, True]
