"""The gradient of the kept entries equals the dense one's there, whatever the module, and goes where the model goes."""

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
from fishexp.gradients import TOKENS, linear_gradient
from fishexp.kept import INDICES, Kept, Way, weights
from fishexp.masks import Mask, count
from fishexp.modules import plain
from fishexp.rule import choose
from fishexp.sparse import mask_gradients, sparsify
from tests.cases import conv_net, images, sentences, tiny_bert

WAYS: list[Way | None] = ["sampled", "touched", "dense", None]


def mask_of(model: nn.Module, density: float = 0.3) -> Mask:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.rand(p.shape, generator=generator) < density for name, p in weights(model).items()}


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def tokens(*shape: int) -> Tensor:
    return torch.randint(7, shape, generator=torch.Generator().manual_seed(3))


class Tied(nn.Module):
    """One weight as an embedding, as a Linear's, and by itself, as language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4, padding_idx=2)
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, 7)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.tanh(self.mix(self.embed(ids)))
        return self.out(hidden) + F.linear(hidden, self.embed.weight).flip(-1)


class Bare(nn.Module):
    """Parameters of its own, in a list and a dict of the sorts that torch has, and a weight used without its module."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(numbers(5))
        self.rows = nn.ParameterList([numbers(5), numbers(5, 5)])
        self.named = nn.ParameterDict({"shift": numbers(5)})
        self.inner = nn.Linear(5, 5)
        self.twice = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = (x * self.scale + self.rows[0]) @ self.rows[1] + self.named["shift"]
        return self.twice(torch.tanh(self.twice(F.linear(x, self.inner.weight, self.inner.bias))))


class Sequence(nn.Module):
    """Recurrent layers keep a second list of their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.lstm(x)[0]
        return self.attention(hidden, hidden, hidden)[0]


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear on sequences": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), lambda: numbers(2, 3, 4, 5)
    ),
    "linear of many": (lambda: nn.Linear(32, 48), lambda: numbers(2, 9, 32)),
    "linear on one vector": (lambda: nn.Linear(5, 3), lambda: numbers(5)),
    "linear without bias": (lambda: nn.Linear(5, 3, bias=False), lambda: numbers(4, 5)),
    "embedding": (lambda: nn.Embedding(9, 4), lambda: tokens(3, 6)),
    "embedding with padding": (lambda: nn.Embedding(9, 4, padding_idx=2), lambda: tokens(3, 6)),
    "embedding of many": (lambda: nn.Embedding(300, 4), lambda: torch.cat([tokens(3, 6), tokens(2, 6) + 290])),
    "embedding by frequency": (lambda: nn.Embedding(9, 4, scale_grad_by_freq=True), lambda: tokens(3, 6)),
    "sparse embedding": (lambda: nn.Embedding(9, 4, sparse=True), lambda: tokens(3, 6)),
    "convolution": (lambda: nn.Conv2d(3, 5, 3, padding=1), lambda: numbers(3, 3, 6, 7)),
    "convolution with stride": (
        lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False), lambda: numbers(3, 3, 8, 7)
    ),
    "convolution in groups": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 3), groups=2, dilation=(2, 1), padding=(0, 3)),
        lambda: numbers(2, 4, 9, 9),
    ),
    "convolution by depth": (lambda: nn.Conv2d(4, 8, 5, stride=3, groups=4, padding=4), lambda: numbers(2, 4, 9, 8)),
    "convolution of points": (lambda: nn.Conv2d(4, 6, 1, stride=2), lambda: numbers(2, 4, 5, 5)),
    "convolution with same": (lambda: nn.Conv2d(3, 4, 4, padding="same", dilation=2), lambda: numbers(2, 3, 9, 9)),
    "convolution that reflects": (
        lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="reflect"), lambda: numbers(2, 3, 5, 5)
    ),
    "convolution of one image": (lambda: nn.Conv2d(3, 4, 3), lambda: numbers(3, 5, 5)),
    "wide convolution channels last": (
        lambda: nn.Conv2d(16, 32, 3, stride=2, padding=1),
        lambda: numbers(2, 16, 6, 5).contiguous(memory_format=torch.channels_last),
    ),
    "convolution channels last": (
        lambda: nn.Conv2d(3, 4, 3, padding=1), lambda: numbers(2, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    ),
    "transposed": (lambda: nn.ConvTranspose1d(4, 2, 3), lambda: numbers(2, 4, 9)),
    "norms": (
        lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.BatchNorm1d(4), nn.LayerNorm(5), nn.PReLU()),
        lambda: numbers(3, 4, 5),
    ),
    "tied": (Tied, lambda: tokens(3, 6)),
    "bare": (Bare, lambda: numbers(3, 5)),
    "sequence": (Sequence, lambda: numbers(6, 2, 3)),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), lambda: numbers(2, 5, 8)
    ),
    "parametrised": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)), lambda: numbers(4, 5)),
}  # fmt: skip


def built(case: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, data = CASES[case]
    return build().double(), data()


def objective(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs).tanh().square().sum()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_the_dense_one_at_the_kept_entries(case: str, way: Way | None) -> None:
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
def test_many_tokens_and_few_touched_rows_or_columns(way: Way, shape: tuple[int, int]) -> None:
    few = 0.001 + 6 / (shape[0] * shape[1])
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < few
    kept = Kept(nn.Parameter(numbers(*shape)), mask, nn.Linear(1, 1), way)
    assert kept.touched is not None
    g, x = numbers(2 * TOKENS + 5, shape[0]), numbers(2 * TOKENS + 5, shape[1])
    torch.testing.assert_close(linear_gradient(kept, g, x), kept.gather(g.t() @ x), rtol=1e-12, atol=1e-11)
    assert kept.found == way


def test_the_rule_takes_a_sparse_way_only_where_it_pays() -> None:
    def way(shape: tuple[int, int], mask: Tensor, dtype: torch.dtype) -> Way:
        kept = Kept(nn.Parameter(torch.zeros(shape)), mask, nn.Linear(1, 1), None)
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
def test_autocast_computes_in_bf16_and_moves_values_in_float32(way: Way | None) -> None:
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
    found = [one for one in meta.modules() if isinstance(one, Kept)]
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
