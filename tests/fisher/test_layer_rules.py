"""Scores of a batch in one pass, layer by layer, against one forward and backward pass for each example and class."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForSequenceClassification

from fishexp.fisher import diagonal_fisher
from fishexp.fisher.batches import Inputs
from fishexp.fisher.diagonal import Labels
from fishexp.fisher.hooks import hooked_batch
from fishexp.fisher.layer_rules import Power
from fishexp.models.resnet import build
from tests.support.cases import CLASSES, brute_force, conv_net, images, sentences, tiny_bert
from tests.support.checks import Peak

N = 5


class Custom(nn.Module):
    """The parts by name, and how they are called."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.call = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def mean(*layers: nn.Module, width: int = 6) -> nn.Module:
    """Layers on (examples, ..., width), the mean over what is between, a classifier."""
    return Custom(lambda m, x: m.head(m.body(x).flatten(1, -2).mean(1)), body=nn.Sequential(*layers), head=head(width))


def pool(*layers: nn.Module, width: int = 4) -> nn.Module:
    """Layers on (examples, 4, 6, 5), the maximum over the map, a classifier."""
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * width, CLASSES))


def head(width: int = 6) -> nn.Linear:
    return nn.Linear(width, CLASSES)


def evaluated(norm: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """With statistics, weight and bias of its own."""
    for _ in range(3):
        norm(torch.randn(8, *shape) * 2 + 1)
    return norm


def tokens() -> Tensor:
    """Of 7 words, so that some repeat in each example; 0 is padding."""
    return torch.randint(0, 7, (N, 9))


def floats(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(N, *shape).double()


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


def functional() -> nn.Module:
    def call(m: nn.Module, x: Tensor) -> Tensor:
        return m.head(F.linear(m.lin(x).tanh(), m.lin.weight))  # type: ignore[operator,union-attr,arg-type]

    return Custom(call, lin=nn.Linear(6, 6), head=head())


def token_first(m: nn.Module, x: Tensor) -> Tensor:
    return m.head(m.lin(x.transpose(0, 1)).tanh().mean(0))  # type: ignore[operator]


def attention(m: nn.Module, x: Tensor) -> Tensor:
    return m.head(m.part(x, x, x)[0].mean(1))  # type: ignore[operator]


class Bare(nn.Module):
    """A parameter beside a module: what a ViT does with its class token."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.head = nn.Parameter(torch.randn(6)), head()

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.shift).tanh())


ALONE: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str]] = {
    "functional": (functional, floats(6), "scores of lin.weight would be wrong"),
    "token first": (lambda: Custom(token_first, lin=nn.Linear(6, 6), head=head()), floats(3, 6), "first dimension"),
    "token first, as many tokens as examples": (
        lambda: Custom(token_first, lin=nn.Linear(6, 6), head=head()), floats(N, 6), "first dimension"
    ),
    "token first, two tokens": (
        lambda: Custom(token_first, lin=nn.Linear(6, 6), head=head()), floats(2, 6), "scores of lin.weight would be"
    ),
    "token first, one token": (
        lambda: Custom(token_first, lin=nn.Linear(6, 6), head=head()), floats(1, 6), "scores of lin"
    ),
    "flattened": (
        lambda: Custom(lambda m, x: m.head(m.lin(x.flatten(0, 1)).tanh().view(x.shape).mean(1)),
                       lin=nn.Linear(6, 6), head=head()),
        floats(4, 6), "lin (Linear) does not have the examples in the first dimension",
    ),
    "bare parameter": (Bare, floats(6), "the model (Bare) uses parameters beside those of the modules in it"),
    "attention": (
        lambda: Custom(attention, part=nn.MultiheadAttention(6, 2, batch_first=True), head=head()), floats(3, 6),
        "part (MultiheadAttention)",
    ),
    "encoder layer": (
        lambda: Custom(lambda m, x: m.head(m.part(x).mean(1)),
                       part=nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), head=head()),
        floats(3, 6), "MultiheadAttention",
    ),
    "gru": (
        lambda: Custom(lambda m, x: m.head(m.part(x)[0].mean(1)), part=nn.GRU(6, 6, batch_first=True), head=head()),
        floats(3, 6), "part (GRU) takes or returns something other than tensors",
    ),
    "weight norm": (
        lambda: mean(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.Tanh()), floats(3, 6), "Parametri",
    ),
    "keyword": (
        lambda: Custom(lambda m, x: m.head(m.lin(input=x).tanh()), lin=nn.Linear(6, 6), head=head()), floats(6),
        "lin (Linear) is not called with positional inputs alone",
    ),
}  # fmt: skip


def made(build: Callable[[], nn.Module], data: Callable[[], Tensor]) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = build().double()
    with torch.no_grad():
        for name, p in model.named_parameters():  # norms with weights of their own
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.3)
            assert p.is_leaf, name
    return model, data(), torch.randint(CLASSES, (N,))


def check(model: nn.Module, inputs: Inputs, labels: Tensor, kind: Labels, power: Power) -> None:
    before = copy.deepcopy(model.state_dict())
    found = diagonal_fisher(model, [(inputs, labels)], kind, power)
    expected = brute_force(model, inputs, labels, kind, power)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-9, atol=1e-15, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of examples of the batches that took one pass."""
    sizes: list[int] = []

    def counted(examples: int, *more: object) -> object:
        sizes.append(examples)
        return hooked_batch(examples, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("fishexp.fisher.diagonal.hooked_batch", counted)
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


@pytest.mark.parametrize("kind", ["true_label", "expected"])
@pytest.mark.parametrize("case", ALONE)
def test_one_example_at_a_time_where_a_batch_would_be_wrong(
    case: str, kind: Labels, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    network, data, reason = ALONE[case]
    check(*made(network, data), kind, "square")
    (message,) = caplog.messages
    assert message.startswith("scoring one example at a time")
    assert reason in message


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


def test_bert_with_positions_that_the_examples_share(caplog: pytest.LogCaptureFixture) -> None:
    inputs, labels = sentences(N)
    inputs["position_ids"] = torch.arange(6).flip(0)[None]
    check(tiny_bert(), inputs, labels, "true_label", "square")
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


def test_rounding_of_zero_gradients_is_not_held_against_a_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Those of the biases of attention keys, in float32."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=64, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64
    )
    inputs, labels = {"input_ids": torch.randint(100, (3, 20))}, torch.tensor([0, 1, 0])
    diagonal_fisher(BertForSequenceClassification(config), [(inputs, labels)])
    assert not caplog.messages


def test_weights_in_bfloat16_are_scored_in_float32() -> None:
    torch.manual_seed(0)
    model, inputs, labels = nn.Linear(4, CLASSES), torch.randn(1, 4), torch.tensor([1])
    once = diagonal_fisher(model.bfloat16(), [(inputs.bfloat16(), labels)])["weight"]
    often = diagonal_fisher(model, [(inputs.bfloat16().expand(2000, -1), labels.expand(2000))])["weight"]
    assert often.dtype == torch.float32
    torch.testing.assert_close(often, once, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, N])
def test_sampled_labels_do_not_depend_on_the_cut_into_batches(size: int) -> None:
    model, (inputs, labels) = conv_net(), images(N)
    cut = list(zip(inputs.split(size), labels.split(size), strict=True))
    alone = diagonal_fisher(model.eval(), cut, "sampled", generator=torch.Generator().manual_seed(1), as_is=True)
    found = diagonal_fisher(model, cut, "sampled", generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(dict(found), dict(alone), rtol=1e-9, atol=1e-15)


def test_the_two_that_are_checked_differ() -> None:
    """Two equal ones look alike, together or apart, to a norm with the statistics of its batch."""
    build = lambda: pool(nn.BatchNorm2d(4, track_running_stats=False), nn.Tanh())  # noqa: E731
    model, inputs, labels = made(build, floats(4, 6, 5))
    inputs[:3], labels[:3] = inputs[0].clone(), labels[0].clone()
    check(model, inputs, labels, "true_label", "square")


def test_a_later_batch_may_turn_out_to_need_a_pass_for_each_example(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def call(m: nn.Module, x: Tensor) -> Tensor:
        return m.head(m.lin(x.transpose(0, 1)).mean(0) if x.shape[1] == 3 else m.lin(x).mean(1))  # type: ignore[operator]

    model, inputs, labels = made(lambda: Custom(call, lin=nn.Linear(6, 6), head=head()), floats(4, 6))
    short = inputs[:, :3]
    found = diagonal_fisher(model, [(inputs, labels), (short, labels)])
    first, second = (brute_force(model, x, labels, "true_label", "square") for x in (inputs, short))
    for name in first:
        torch.testing.assert_close(found[name], (first[name] + second[name]) / 2, rtol=1e-9, atol=1e-15)
    assert len(caplog.messages) == 1
    assert "a batch is scored one example at a time" in caplog.messages[0]


def test_randomness_in_evaluation_mode_is_found_and_leaves_the_random_stream(caplog: pytest.LogCaptureFixture) -> None:
    def call(m: nn.Module, x: Tensor) -> Tensor:
        return m.head(F.dropout(m.lin(x), 0.5))  # type: ignore[operator]

    model, inputs, labels = made(lambda: Custom(call, lin=nn.Linear(6, 6), head=head()), floats(6))
    torch.manual_seed(3)
    found = diagonal_fisher(model, [(inputs, labels)])
    assert "would be wrong" in caplog.text
    torch.manual_seed(3)
    torch.testing.assert_close(dict(found), dict(diagonal_fisher(model, [(inputs, labels)], as_is=True)))


@pytest.mark.parametrize("as_is", [False, True])
def test_an_error_leaves_no_trace(as_is: bool) -> None:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        if labels[0] >= 7:
            raise KeyError("no such label")
        return F.cross_entropy(logits, labels)

    model, (inputs, labels) = conv_net(), images(4)
    weight = model[0].weight  # type: ignore[index]
    weight.grad = torch.ones_like(weight)
    model[5].bias.requires_grad_(False)  # type: ignore[index]
    with pytest.raises(KeyError):
        diagonal_fisher(model, [(inputs, labels), (inputs, labels + 7)], loss=loss, as_is=as_is)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, True, False]
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


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
