"""Scores of a batch in one pass, layer by layer, against one forward and backward pass for each example and class."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fishexp.fisher import diagonal_fisher
from fishexp.fisher.batched import batched_pass
from fishexp.fisher.losses import Labels
from fishexp.fisher.powers import Power
from fishexp.models.resnet import build
from tests.support.cases import CLASSES, brute_force, sentences, tiny_bert
from tests.support.checks import Peak
from tests.support.fisher_cases import Custom, N, check, floats, head, made, mean, pool, tokens


def evaluated(norm: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Give the norm statistics of its own."""
    for _ in range(3):
        norm(torch.randn(8, *shape) * 2 + 1)
    return norm


def with_positions(m: nn.Module, x: Tensor) -> Tensor:
    places = torch.arange(x.shape[1])[None]  # (1, tokens), shared by the examples
    return m.head((m.words(x) + m.places(places)).tanh().mean(1))  # type: ignore[operator]


def tied(first: nn.Module, second: nn.Linear) -> tuple[nn.Module, nn.Linear]:
    second.weight = first.weight  # type: ignore[assignment]
    return first, second


def tied_to_embedding() -> nn.Module:
    words, out = tied(nn.Embedding(7, 6, padding_idx=0), nn.Linear(6, 7))
    return Custom(lambda m, x: m.out(m.words(x).cumsum(1).tanh()).max(1).values[:, :CLASSES], words=words, out=out)


def same_norm_twice() -> nn.Module:
    return Custom(lambda m, x: m.head(m.norm(m.norm(x).exp()).mean(1)), norm=nn.LayerNorm(6), head=head())


def checkpointed() -> nn.Module:
    body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 6))
    return Custom(
        lambda m, x: m.head(checkpoint(m.body, x, use_reentrant=False).mean(1)),
        body=body,
        head=head(),  # type: ignore[union-attr]
    )


class RMS(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return x * x.square().mean(-1, keepdim=True).rsqrt() * self.scale


def conv(*arguments: Any, **more: Any) -> Callable[[], nn.Module]:
    return lambda: pool(nn.Conv2d(4, *arguments, **more), nn.ReLU(inplace=True))


BATCHED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES)), floats(6)),
    "linear without bias": (lambda: nn.Linear(6, CLASSES, bias=False), floats(6)),
    "few tokens": (lambda: mean(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), floats(4, 6)),
    "many tokens": (lambda: mean(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), floats(11, 6)),
    "one token": (lambda: mean(nn.Linear(6, 6), nn.Tanh()), floats(1, 6)),
    "several middle dimensions": (lambda: mean(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), floats(3, 2, 2, 6)),
    "relu in place": (lambda: mean(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 6)), floats(4, 6)),
    "as many tokens as examples": (lambda: mean(nn.Linear(6, 6), nn.Tanh()), floats(N, 6)),
    "conv": (conv(4, 3, padding=1), floats(4, 6, 5)),
    "conv to one position": (lambda: nn.Sequential(nn.Conv2d(4, 3, (6, 5)), nn.Flatten()), floats(4, 6, 5)),
    "conv over a large map": (conv(4, 3, stride=2, padding=2), floats(4, 20, 22)),
    "conv over a large map with a large kernel": (conv(4, 8), floats(4, 18, 18)),  # two examples a call
    "grouped conv": (conv(4, 3, padding=1, groups=2), floats(4, 6, 5)),
    "depthwise conv": (conv(4, 3, groups=4, bias=False), floats(4, 6, 5)),
    "stride and dilation": (conv(4, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(2, 1)), floats(4, 6, 5)),
    "stride that leaves a rest": (conv(4, 2, stride=4), floats(4, 9, 8)),
    "same padding": (conv(4, (4, 3), padding="same", dilation=2), floats(4, 6, 5)),
    "reflected padding": (conv(4, 3, padding=(2, 1), padding_mode="reflect"), floats(4, 6, 5)),
    "circular padding": (conv(4, 3, padding="same", padding_mode="circular"), floats(4, 12, 10)),
    "embedding": (lambda: mean(nn.Embedding(7, 6), nn.Tanh()), tokens),
    "embedding with padding": (lambda: mean(nn.Embedding(7, 6, padding_idx=0), nn.Tanh()), tokens),
    "embedding scaled by frequency": (lambda: mean(nn.Embedding(7, 6, scale_grad_by_freq=True), nn.Tanh()), tokens),
    "positions": (
        lambda: Custom(with_positions, words=nn.Embedding(7, 6), places=nn.Embedding(12, 6), head=head()), tokens
    ),
    "layer norm": (lambda: mean(nn.LayerNorm(6), nn.Tanh(), nn.LayerNorm(6)), floats(4, 6)),
    "layer norm over two": (lambda: mean(nn.LayerNorm([4, 6]), nn.Tanh()), floats(4, 6)),
    "layer norm, one token": (lambda: nn.Sequential(nn.LayerNorm(6), nn.Tanh(), head()), floats(6)),
    "group norm": (lambda: pool(nn.GroupNorm(2, 4), nn.Tanh()), floats(4, 6, 5)),
    "batch norm 1d": (lambda: nn.Sequential(evaluated(nn.BatchNorm1d(6), (6,)), nn.Tanh(), head()), floats(6)),
    "batch norm 1d, tokens": (lambda: mean(evaluated(nn.BatchNorm1d(4), (4, 6)), nn.Tanh()), floats(4, 6)),
    "batch norm 2d": (lambda: pool(evaluated(nn.BatchNorm2d(4), (4, 6, 5)), nn.ReLU(inplace=True)), floats(4, 6, 5)),
    "tied linears": (
        lambda: nn.Sequential(*(t := tied(nn.Linear(6, 6), nn.Linear(6, 6)))[:1], nn.Tanh(), t[1], head()), floats(6)
    ),
    "linear tied to embedding": (tied_to_embedding, tokens),
    "linear used twice": (lambda: mean(*[lin := nn.Linear(6, 6), nn.Tanh(), lin, nn.Tanh()]), floats(3, 6)),
    "conv used twice": (lambda: pool(*[c := nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), c]), floats(4, 6, 5)),
    "norm used twice": (same_norm_twice, floats(3, 6)),
    "checkpointed": (checkpointed, floats(3, 6)),
    "module of one's own": (lambda: mean(nn.Linear(6, 6), RMS(), nn.Tanh(), RMS()), floats(3, 6)),
    "transposed conv": (lambda: pool(nn.ConvTranspose2d(4, 4, 3), nn.ReLU(inplace=True)), floats(4, 6, 5)),
    "bilinear": (lambda: Custom(lambda m, x: m.two(x, x.sin()), two=nn.Bilinear(6, 6, CLASSES)), floats(6)),
}  # fmt: skip


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of examples of each batch that takes one pass."""
    sizes: list[int] = []

    def counted(examples: int, *more: object) -> object:
        sizes.append(examples)
        return batched_pass(examples, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("fishexp.fisher.diagonal.batched_pass", counted)
    return sizes


@pytest.mark.parametrize("power", ["square", "absolute"])
@pytest.mark.parametrize("kind", ["true_label", "expected"])
@pytest.mark.parametrize("case", BATCHED)
def test_a_batch_in_one_pass(
    case: str, kind: Labels, power: Power, caplog: pytest.LogCaptureFixture, passes: list[int]
) -> None:
    caplog.set_level(logging.INFO)
    check(*made(*BATCHED[case]), kind, power)
    assert not caplog.messages
    assert passes[0] == 2, "the two that are checked"
    assert passes[-1] == N


@pytest.mark.parametrize("power", ["square", "absolute"])
@pytest.mark.parametrize("kind", ["true_label", "expected"])
def test_resnet(kind: Labels, power: Power, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = build(CLASSES, 3, layers=8, path=None).network.double()
    model(torch.randn(16, 3, 8, 8).double())
    check(model.eval(), torch.randn(N, 3, 8, 8).double(), torch.randint(CLASSES, (N,)), kind, power)
    assert not caplog.messages


@pytest.mark.parametrize("layers", [9, 18])
def test_larger_resnets_in_float32(layers: int, caplog: pytest.LogCaptureFixture) -> None:
    """Also that rounding does not make the check of two examples fail."""
    torch.manual_seed(0)
    model = build(CLASSES, 3, layers=layers, path=None).network  # type: ignore[arg-type]
    model(torch.randn(16, 3, 32, 32))
    inputs, labels = torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 2])
    found = diagonal_fisher(model, [(inputs, labels)])
    expected = brute_force(model, inputs, labels, "true_label", "square")
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-4 * value.max(), name
    assert not caplog.messages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bert_in_single_and_under_autocast(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    """Gradients that are zero but for rounding (attention keys' biases) do not make the check of two examples fail."""
    (inputs, labels), model = sentences(N), tiny_bert()
    expected = diagonal_fisher(model, [(inputs, labels)])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = diagonal_fisher(model.float(), [(inputs, labels)])
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        if not name.endswith("key.bias"):
            assert (found[name] - value).norm() <= 8 * torch.finfo(dtype).eps ** 0.75 * value.norm(), name
    assert not caplog.messages


def test_weights_in_bfloat16_are_scored_in_float32() -> None:
    torch.manual_seed(0)
    model, inputs, labels = nn.Linear(4, CLASSES), torch.randn(1, 4), torch.tensor([1])
    once = diagonal_fisher(model.bfloat16(), [(inputs.bfloat16(), labels)])["weight"]
    often = diagonal_fisher(model, [(inputs.bfloat16().expand(2000, -1), labels.expand(2000))])["weight"]
    assert often.dtype == torch.float32
    torch.testing.assert_close(often, once, rtol=0.02, atol=1e-6)


SIZES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {  # three such layers; inputs
    "tokens": (lambda: nn.Linear(512, 512), (2, 12, 512)),
    "few tokens": (lambda: nn.Linear(512, 512), (2, 3, 512)),
    "one token": (lambda: nn.Linear(512, 512), (2, 512)),
    "small map": (lambda: nn.Conv2d(256, 256, 3, padding=1), (2, 256, 2, 2)),
    "large map": (lambda: nn.Conv2d(256, 256, 3, padding="same"), (2, 256, 9, 9)),
    "groups": (lambda: nn.Conv2d(512, 512, 3, padding=1, groups=2), (2, 512, 2, 2)),
    "unknown": (lambda: nn.Conv1d(512, 512, 3, padding=1), (2, 512, 4)),
}


@pytest.mark.parametrize("as_is", [False, True])
@pytest.mark.parametrize("power", ["square", "absolute"])
@pytest.mark.parametrize("case", SIZES)
def test_one_buffer_beside_the_scores(case: str, power: Power, as_is: bool) -> None:
    """Beside scores and activations no more than one gradient of a weight is ever there."""
    layer, shape = SIZES[case]
    body = [layer() for _ in range(3)]
    model, inputs = (
        Custom(lambda m, x: m.body(x).flatten(1)[:, :CLASSES], body=nn.Sequential(*body)),
        torch.randn(shape),
    )
    with Peak([inputs, *model.parameters()]) as peak:
        scores = diagonal_fisher(model, [(inputs, torch.tensor([0, 1]))], power=power, as_is=as_is)
    scored = 4 * sum(score.numel() for score in scores.values())
    weight = 4 * max(p.numel() for p in model.parameters())
    activations = min(4 * inputs.numel() * 24, int(0.7 * weight))  # an allowance; it hides no second buffer
    assert scored <= peak.most <= scored + weight + activations


def test_rows_of_an_embedding_that_are_not_used_take_no_memory() -> None:
    model, inputs = mean(nn.Embedding(10_000, 6)), torch.randint(100, (N, 9))
    with Peak([inputs, *model.parameters()]) as peak:
        scores = diagonal_fisher(model, [(inputs, torch.tensor([0, 1, 2, 0, 1]))])
    buffer = 4 * model.body[0].weight.numel()  # type: ignore[index,union-attr]
    assert peak.most < 4 * sum(score.numel() for score in scores.values()) + 2 * buffer
