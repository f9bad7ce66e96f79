"""Models that try to get a wrong score: they do to their weights, in any batch, what cannot be told from the first."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fishexp.errors import FishexpError
from fishexp.fisher import diagonal_fisher
from fishexp.fisher.autograd_rules import ANY
from tests.support.cases import brute_force
from tests.support.fisher_cases import Custom, N, head, made

# marks the examples of the second batch, which the model treats in the hostile way
MARK = 9.0


class Scaled(torch.autograd.Function):
    """A product whose use of the weights torch does not tell of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, scale = ctx.saved_tensors
        return g * scale, (g * x).sum((0, 1))


class Later(nn.Module):
    """Treat the marked examples in a way of their own."""

    def __init__(self, hostile: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.hostile, self.lin, self.head = hostile, nn.Linear(6, 6), head()
        self.scale, self.bias = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(4, 6))
        self.matrix, self.pairs = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hostile(self, x) if x[0, 0, 0] == MARK else self.lin(x)
        return self.head(hidden.tanh().mean(1))


def on_zeros(m: Any, x: Tensor) -> Tensor:
    hidden = torch.zeros(x.shape, dtype=x.dtype)
    hidden[:] = m.scale
    return m.lin(hidden) + x


def clipped(m: Any, x: Tensor) -> Tensor:
    """Clip the gradient by its norm over the batch."""
    hidden = m.lin(x)
    hidden.register_hook(lambda g: g * min(1.0, 0.05 / g.norm().item()))
    return m.lin(hidden)


def force(m: Any, x: Tensor) -> Tensor:
    """Return the gradient of an energy, as a model of molecules does."""
    x = x.detach().requires_grad_()
    return x + torch.autograd.grad(m.lin(x).tanh().square().sum(), x, create_graph=True)[0]


def spectrum(m: Any, x: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(m.lin(x)) * torch.view_as_complex(m.pairs), n=6)


LATER: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "something made of weights, in a function unseen": lambda m, x: Scaled.apply(m.lin(x), m.scale * 2),
    "something made of weights, in a checkpoint": lambda m, x: checkpoint(
        lambda z, w: F.linear(z, w), m.lin(x), m.matrix * 2, use_reentrant=True
    ),
    "weights written into a tensor without examples": on_zeros,
    "clamped in place": lambda m, x: m.lin(x).clamp_(min=m.scale),
    "bias of addmm for each token": lambda m, x: torch.stack([torch.addmm(m.bias, e, m.matrix) for e in x]),
    "scalar bias of addmm": lambda m, x: torch.stack([torch.addmm(m.scale[0], e, m.matrix) for e in x]),
    "vectors": lambda m, x: torch.stack([torch.stack([m.lin(token) for token in e]) for e in x]),
    "filled with a weight": lambda m, x: m.lin(x).masked_fill(x > 0, m.scale[0]),
    "gradient clipped by its norm": clipped,
    "force": force,
    "spectrum": spectrum,
    "vmap": lambda m, x: torch.func.vmap(lambda e: m.lin(e).sin())(x),
    "vmap over weights": lambda m, x: torch.func.vmap(lambda row: x * row)(m.matrix).sum(0),
}  # fmt: skip


@pytest.mark.parametrize("case", LATER)
def test_what_comes_in_a_later_batch_only_is_scored_right(case: str) -> None:
    model, inputs, labels = made(lambda: Later(LATER[case]), lambda: torch.randn(2 * N, 4, 6).double())
    labels = torch.cat([labels, labels.flip(0)])
    inputs[N:, 0, 0] = MARK
    found = diagonal_fisher(model, [(inputs[:N], labels[:N]), (inputs[N:], labels[N:])])
    expected = brute_force(model, inputs, labels, "true_label", "square")
    for name, scores in expected.items():
        torch.testing.assert_close(found[name], scores, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("kept_in", ["an attribute", "a dictionary"])
def test_a_weight_that_the_model_keeps_in_another_form(kept_in: str) -> None:
    """The form that a batched pass left behind would have no gradient at the weight, then and ever after."""

    def call(m: Any, x: Tensor) -> Tensor:
        kept = vars(m) if kept_in == "an attribute" else m.kept
        if "form" not in kept:
            kept["form"] = m.lin.weight.t()
        return m.head((x @ kept["form"]).tanh().mean(1))

    def build() -> nn.Module:
        model = Custom(call, lin=nn.Linear(6, 6, bias=False), head=head())
        vars(model)["kept"] = {}
        return model

    model, inputs, labels = made(build, lambda: torch.randn(N, 4, 6).double())
    found = diagonal_fisher(model, [(inputs, labels), (inputs, labels)])
    assert "form" not in vars(model)
    assert not model.kept
    expected = brute_force(model, inputs, labels, "true_label", "square")
    for name, scores in expected.items():
        torch.testing.assert_close(found[name], scores, rtol=1e-9, atol=1e-15)


class Stateful(nn.Module):
    """Replace a buffer, write into one, and keep a hidden state."""

    count: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.head = nn.Linear(6, 6), head()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = self.lin(x)
        self.count = self.count + 1
        self.mean.copy_(self.hidden.detach().mean((0, 1)))
        return self.head(self.hidden.tanh().mean(1))


def test_buffers_are_the_same_tensors_afterwards_and_nothing_is_kept() -> None:
    model, inputs, labels = made(Stateful, lambda: torch.randn(N, 4, 6).double())
    assert isinstance(model, Stateful)
    count, mean, before = model.count, model.mean, copy.deepcopy(model.state_dict())
    diagonal_fisher(model, [(inputs, labels), (inputs, labels)])
    assert model.count is count
    assert model.mean is mean
    assert not vars(count)
    assert not vars(mean)
    assert not hasattr(model, "hidden")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_backward_pass_within_the_model_adds_nothing() -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        point = x.detach().requires_grad_()
        m.lin(point).square().sum().backward()
        m.zero_grad()
        assert point.grad is not None
        return m.head((m.lin(x) + point.grad).tanh().mean(1))

    model, inputs, labels = made(
        lambda: Custom(call, lin=nn.Linear(6, 6), head=head()), lambda: torch.randn(N, 4, 6).double()
    )
    found = diagonal_fisher(model, [(inputs, labels)])
    expected = brute_force(model, inputs, labels, "true_label", "square")
    for name, scores in expected.items():
        torch.testing.assert_close(found[name], scores, rtol=1e-9, atol=1e-15)


def test_complex_weights_and_logits_without_a_gradient_are_refused() -> None:
    model, inputs, labels = made(
        lambda: Custom(lambda m, x: m.head(x).detach(), head=head()), lambda: torch.randn(N, 6).double()
    )
    with pytest.raises(FishexpError, match="none of its weights has a part"):
        diagonal_fisher(model, [(inputs, labels)])
    model.shift = nn.Parameter(torch.ones(6, dtype=torch.complex128))
    with pytest.raises(FishexpError, match="shift is complex"):
        diagonal_fisher(model, [(inputs, labels)])


@pytest.mark.parametrize("kind", ["embedding", "bag"])
def test_sparse_gradients_are_batched(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    part = nn.Embedding(7, 6, sparse=True) if kind == "embedding" else nn.EmbeddingBag(7, 6, sparse=True)
    model, inputs, labels = made(
        lambda: Custom(lambda m, x: m.head(m.part(x).reshape(len(x), -1, 6).mean(1)), part=part, head=head()),
        lambda: torch.randint(0, 7, (N, 4)),
    )
    found = diagonal_fisher(model, [(inputs, labels)])
    assert not caplog.messages
    dense = copy.deepcopy(model)
    vars(dense.part)["sparse"] = False
    expected = brute_force(dense, inputs, labels, "true_label", "square")
    for name, scores in expected.items():
        torch.testing.assert_close(found[name], scores, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_seen_beside_a_default_device(reentrant: bool, caplog: pytest.LogCaptureFixture) -> None:
    model, inputs, labels = made(
        lambda: Custom(lambda m, x: m.head(checkpoint(m.body, m.first(x), use_reentrant=reentrant).tanh()),
                       first=nn.Linear(6, 6), body=nn.Sequential(nn.Linear(6, 6), nn.Tanh()), head=head()),
        lambda: torch.randn(N, 6).double(),
    )  # fmt: skip
    with torch.device("cpu"):
        found = diagonal_fisher(model, [(inputs, labels)])
    assert not caplog.messages
    expected = brute_force(model, inputs, labels, "true_label", "square")
    for name, scores in expected.items():
        torch.testing.assert_close(found[name], scores, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("size", [3, 5])
def test_examples_that_change_how_others_are_computed_in_a_later_batch_are_scored_alone(
    size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """No gradient tells of it: all are scaled by the largest entry of the batch, if it is large."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.lin(x / x.detach().abs().max().clamp(min=5))

    torch.manual_seed(0)
    model = Scaled().double()
    batches = [(torch.rand(size, 4).double(), torch.arange(size) % 3) for _ in range(3)]
    batches[2][0][0] *= 40
    found = diagonal_fisher(model, batches)
    alone = [brute_force(model, x, y, "true_label", "square") for x, y in batches]
    for name, score in found.items():
        torch.testing.assert_close(score, sum(a[name] for a in alone) / 3, rtol=1e-9, atol=1e-15)
    (message,) = caplog.messages
    assert "depends on the others of its batch" in message


def test_an_einsum_of_a_batch_is_differentiated_example_by_example(monkeypatch: pytest.MonkeyPatch) -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Parameter(torch.randn(4, 2, 3)), nn.Parameter(torch.randn(2, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            heads = torch.einsum("b t d, d h e -> t b h e", x, self.first).tanh()
            return torch.einsum("tbhe,hec->bc", heads, self.last)

    torch.manual_seed(0)
    model, x, y = Summed().double(), torch.randn(6, 5, 4).double(), torch.arange(6) % 3
    monkeypatch.setattr(ANY, "gradient", None)
    found = diagonal_fisher(model, [(x, y)])
    torch.testing.assert_close(dict(found), brute_force(model, x, y, "true_label", "square"), rtol=1e-9, atol=1e-15)
