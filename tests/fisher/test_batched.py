"""A batch takes one pass where its examples can be told apart, and a pass for each example where not."""

import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForSequenceClassification

from fishexp.fisher import diagonal_fisher
from fishexp.fisher.batched import batched_pass
from fishexp.fisher.layouts import Rows
from fishexp.fisher.losses import Labels
from fishexp.fisher.powers import Power
from fishexp.fisher.proof import Graph
from tests.support.cases import brute_force, conv_net, images, sentences, tiny_bert
from tests.support.fisher_cases import Custom, N, check, floats, head, made, mean, pool, tokens


def functional() -> nn.Module:
    def call(m: Any, x: Tensor) -> Tensor:
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


class OwnToken(nn.Module):
    """A class token and positions, which are put before and added to the patches: what a ViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 4, 6))
        self.scale, self.head = nn.Parameter(torch.randn(6)), head()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head((x + self.scale * x.tanh())[:, 0] + x.mean(1))


class RelativeBias(nn.Module):
    """A bias of relative positions that all examples share, which enters the attention: what a T5 does."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.bias, self.head = nn.Linear(6, 6), nn.Embedding(7, 2), head()

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        bias = self.bias(places[:, None] - places + 3).permute(2, 0, 1)[None]
        heads = self.query(x).view(*x.shape[:2], 2, 3).transpose(1, 2)
        scores = (heads @ heads.transpose(-1, -2) + bias).softmax(-1)
        return self.head((scores @ heads).transpose(1, 2).flatten(2).mean(1))


class Positional(nn.Module):
    """Positions that go through the examples' own projection before they meet them: what a DeBERTa does."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.norm = nn.Embedding(4, 6), nn.LayerNorm(6)
        self.query, self.head = nn.Linear(6, 6), head()

    def forward(self, x: Tensor) -> Tensor:
        keys = self.query(self.norm(self.places.weight)).repeat(len(x), 1, 1)
        return self.head(torch.bmm(self.query(x), keys.transpose(1, 2)).softmax(-1).bmm(x).mean(1))


def windows(m: nn.Module, x: Tensor) -> Tensor:
    """Cut (examples, 4, 6) into windows of two tokens, as a Swin does."""
    cut = x.view(len(x), 2, 2, 6).flatten(0, 1)
    return m.head(m.lin(cut).tanh().view(len(x), 4, 6).mean(1))  # type: ignore[operator]


def routed(m: nn.Module, x: Tensor) -> Tensor:
    """Send the tokens with a positive first entry to an expert: other rows, and as many as there are, in each batch."""
    hidden, chosen = x.clone(), x[..., 0] > 0
    hidden[chosen] = m.norm(m.expert(x[chosen]).tanh())  # type: ignore[operator]
    return m.head(hidden.sum(1))  # type: ignore[operator]


def packed(m: nn.Module, x: Tensor) -> Tensor:
    """Let sentences end where the first entry is negative."""
    lengths = 1 + (x[:, 1:, 0] > 0).cumprod(1).sum(1)
    together = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return m.head(m.part(together)[1][-1])  # type: ignore[operator]


def rnn(kind: Any, **more: Any) -> Callable[[], nn.Module]:
    first = "batch_first" in more
    width = 6 * (1 + bool(more.get("bidirectional")))
    return lambda: Custom(
        lambda m, x: m.head(m.part(x if first else x.transpose(0, 1))[0].mean(1 if first else 0)),
        part=kind(6, 6, **more), head=head(width),
    )  # fmt: skip


def encoder(**more: Any) -> Callable[[], nn.Module]:
    def call(m: Any, x: Tensor) -> Tensor:
        out = m.part(x) if more.get("batch_first") else m.part(x.transpose(0, 1)).transpose(0, 1)  # type: ignore[operator]
        return m.head(out.mean(1))  # type: ignore[operator]

    return lambda: Custom(call, part=nn.TransformerEncoderLayer(6, 2, 8, **more), head=head())  # type: ignore[arg-type]


def checkpointed(reentrant: bool) -> Callable[[], nn.Module]:
    return lambda: Custom(
        lambda m, x: m.head(checkpoint(m.body, m.first(x), use_reentrant=reentrant).mean(1)),
        first=nn.Linear(6, 6), body=nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 6)),
        head=head(),
    )  # fmt: skip


TOGETHER: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "functional": (functional, floats(6)),
    "token first": (lambda: Custom(token_first, lin=nn.Linear(6, 6), head=head()), floats(3, 6)),
    "token first, as many tokens as examples": (
        lambda: Custom(token_first, lin=nn.Linear(6, 6), head=head()), floats(N, 6)
    ),
    "token first, two tokens": (lambda: Custom(token_first, lin=nn.Linear(6, 6), head=head()), floats(2, 6)),
    "token first, one token": (lambda: Custom(token_first, lin=nn.Linear(6, 6), head=head()), floats(1, 6)),
    "flattened": (
        lambda: Custom(lambda m, x: m.head(m.lin(x.flatten(0, 1)).tanh().view(x.shape).mean(1)),
                       lin=nn.Linear(6, 6), head=head()),
        floats(4, 6),
    ),
    "flattened, token first": (
        lambda: Custom(lambda m, x: m.head(m.lin(x.transpose(0, 1).flatten(0, 1)).tanh().view(-1, len(x), 6).mean(0)),
                       lin=nn.Linear(6, 6), head=head()),
        floats(4, 6),
    ),
    "windows": (lambda: Custom(windows, lin=nn.Linear(6, 6), head=head()), floats(4, 6)),
    "routed": (lambda: Custom(routed, expert=nn.Linear(6, 6), norm=nn.LayerNorm(6), head=head()), floats(4, 6)),
    "bare parameter": (Bare, floats(6)),
    "class token, positions, layer scale": (OwnToken, floats(3, 6)),
    "bias of relative positions": (RelativeBias, floats(4, 6)),
    "projected positions": (Positional, floats(4, 6)),
    "attention": (
        lambda: Custom(attention, part=nn.MultiheadAttention(6, 2, batch_first=True), head=head()), floats(3, 6)
    ),
    "attention, token first": (
        lambda: Custom(lambda m, x: m.head(m.part(*[x.transpose(0, 1)] * 3)[0].mean(0)),
                       part=nn.MultiheadAttention(6, 2), head=head()),
        floats(3, 6),
    ),
    "attention over something else": (
        lambda: Custom(lambda m, x: m.head(m.part(x, x[:, :2], x[:, :2], need_weights=False)[0].mean(1)),
                       part=nn.MultiheadAttention(6, 2, batch_first=True, add_bias_kv=True), head=head()),
        floats(3, 6),
    ),
    "encoder layer": (encoder(batch_first=True), floats(3, 6)),
    "encoder layer, token first": (encoder(), floats(3, 6)),
    "encoder layer, norm first": (encoder(batch_first=True, norm_first=True), floats(3, 6)),
    "lstm": (rnn(nn.LSTM, batch_first=True), floats(3, 6)),
    "lstm, token first": (rnn(nn.LSTM, num_layers=2, bidirectional=True), floats(3, 6)),
    "gru": (rnn(nn.GRU, batch_first=True), floats(3, 6)),
    "gru, packed": (lambda: Custom(packed, part=nn.GRU(6, 6, batch_first=True), head=head()), floats(4, 6)),
    "rnn": (rnn(nn.RNN, batch_first=True), floats(3, 6)),
    "weight norm": (
        lambda: mean(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.Tanh()), floats(3, 6)
    ),
    "keyword": (
        lambda: Custom(lambda m, x: m.head(m.lin(input=x).tanh()), lin=nn.Linear(6, 6), head=head()), floats(6)
    ),
    "convolution of signals": (lambda: mean(nn.Conv1d(4, 4, 3, padding=1), nn.Tanh()), floats(4, 6)),
    "prelu": (lambda: pool(nn.PReLU(4)), floats(4, 6, 5)),
    "rms norm": (lambda: mean(nn.RMSNorm(6), nn.Tanh()), floats(4, 6)),
    "bag of words": (lambda: nn.Sequential(nn.EmbeddingBag(7, 6), head()), tokens),
    "einsum": (
        lambda: Custom(lambda m, x: m.head(torch.einsum("btd,ed->bte", x, m.lin.weight).mean(1)),
                       lin=nn.Linear(6, 6, bias=False), head=head()),
        floats(4, 6),
    ),
    "reentrant checkpoint": (checkpointed(True), floats(3, 6)),
    "checkpoint": (checkpointed(False), floats(3, 6)),
}  # fmt: skip


@pytest.mark.parametrize("power", ["square", "absolute"])
@pytest.mark.parametrize("kind", ["true_label", "expected"])
@pytest.mark.parametrize("case", TOGETHER)
def test_a_batch_in_one_pass_however_weights_are_used(
    case: str, kind: Labels, power: Power, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    check(*made(*TOGETHER[case]), kind, power)
    assert not caplog.messages


@pytest.mark.parametrize("case", TOGETHER)
def test_the_graph_proves_what_weighing_finds(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And weighing alone is as exact."""
    model, inputs, labels = made(*TOGETHER[case])
    alone = brute_force(model, inputs, labels, "true_label", "square")
    for batch in (inputs, inputs.flip(0)):
        totals = {p: torch.zeros_like(p) for p in model.parameters()}
        with batched_pass(N, model.eval(), totals, "square") as seen:
            logits = seen.forward(batch)
            graph = Graph(logits, N)
            proven = {n: graph.layout_of(end) for n, (_, end) in enumerate(seen._ends)}
            monkeypatch.setattr(Graph, "layout_of", lambda *a: None)
            wanted = labels if batch is inputs else labels.flip(0)
            seen.backward(logits, [F.cross_entropy(logits, wanted, reduction="none")])
        monkeypatch.undo()
        for n, layout in proven.items():
            weighed = seen._layouts[n]
            if layout is not None and layout.groups > 1:  # which weighing tells row by row
                assert isinstance(weighed, Rows)
                positions = weighed.numbers.view(-1, 1)
                assert torch.equal(layout.numbers_of(positions).flatten(), weighed.numbers)
            else:
                assert layout is None or layout == weighed
        for name, p in model.named_parameters():
            torch.testing.assert_close(totals[p] / N, alone[name], rtol=1e-9, atol=1e-15)


class Hidden(torch.autograd.Function):
    """A product that torch's functions do not show."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        return g @ weight, g.flatten(0, -2).t() @ x.flatten(0, -2)


def statistics(m: nn.Module, x: Tensor) -> Tensor:
    return m.head(m.lin(x) - m.lin(x).mean(0))  # type: ignore[operator]


ALONE: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str]] = {
    "hidden function": (
        lambda: Custom(lambda m, x: m.head(Hidden.apply(m.lin(x), m.lin.weight)), lin=nn.Linear(6, 6), head=head()),
        floats(6), "lin.weight is used otherwise than by functions of torch",
    ),
    "batch norm of the batch": (
        lambda: pool(nn.BatchNorm2d(4, track_running_stats=False), nn.Tanh()), floats(4, 6, 5), "0.weight",
    ),
    "overwritten": (
        lambda: Custom(lambda m, x: m.head((1 * m.lin.weight).mul_(x.mean()).sum(0) * x),
                       lin=nn.Linear(6, 6, bias=False), head=head()),
        floats(6), "lin.weight is overwritten",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ALONE)
def test_one_example_at_a_time_where_a_batch_would_be_wrong(case: str, caplog: pytest.LogCaptureFixture) -> None:
    network, data, reason = ALONE[case]
    check(*made(network, data), "true_label", "square")
    (message,) = caplog.messages
    assert message.startswith("scoring one example at a time")
    assert reason in message


def test_examples_that_have_a_part_in_each_other_are_each_scored_alone(caplog: pytest.LogCaptureFixture) -> None:
    model, inputs, labels = made(lambda: Custom(statistics, lin=nn.Linear(6, 6), head=head()), floats(6))
    found = diagonal_fisher(model, [(inputs, labels)])
    torch.testing.assert_close(dict(found), brute_force(model, inputs, labels, "true_label", "square"))
    assert "scoring one example at a time" in caplog.text


def test_bert_with_positions_that_the_examples_share(caplog: pytest.LogCaptureFixture) -> None:
    inputs, labels = sentences(N)
    inputs["position_ids"] = torch.arange(6).flip(0)[None]
    check(tiny_bert(), inputs, labels, "true_label", "square")
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


def test_the_two_that_are_checked_differ() -> None:
    """Two equal ones look alike, together or apart, to a norm with the statistics of its batch."""
    build = lambda: pool(nn.BatchNorm2d(4, track_running_stats=False), nn.Tanh())  # noqa: E731
    model, inputs, labels = made(build, floats(4, 6, 5))
    inputs[:3], labels[:3] = inputs[0].clone(), labels[0].clone()
    check(model, inputs, labels, "true_label", "square")


def test_a_later_batch_may_turn_out_to_need_a_pass_for_each_example(caplog: pytest.LogCaptureFixture) -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        return m.head((Hidden.apply(x, m.lin.weight) if x.shape[1] == 3 else F.linear(x, m.lin.weight)).mean(1))

    model, inputs, labels = made(lambda: Custom(call, lin=nn.Linear(6, 6, bias=False), head=head()), floats(4, 6))
    short = inputs[:, :3]
    found = diagonal_fisher(model, [(inputs, labels), (short, labels)])
    first, second = (brute_force(model, x, labels, "true_label", "square") for x in (inputs, short))
    for name in first:
        torch.testing.assert_close(found[name], (first[name] + second[name]) / 2, rtol=1e-9, atol=1e-15)
    (message,) = caplog.messages
    assert "lin.weight is used otherwise" in message


def test_the_routing_may_differ_from_batch_to_batch(caplog: pytest.LogCaptureFixture) -> None:
    """As many tokens as examples reach an expert, of other examples each time: no two examples are enough to see it."""

    def call(m: Any, x: Tensor, chosen: Tensor) -> Tensor:
        hidden = x.clone()
        hidden[chosen] = torch.tanh(m.expert(x[chosen]))  # type: ignore[operator]
        return m.head(hidden.sum(1))  # type: ignore[operator]

    class Routed(Custom):
        def forward(self, x: Tensor, chosen: Tensor) -> Tensor:  # type: ignore[override]
            return self.call(self, x, chosen)

    model, inputs, labels = made(lambda: Routed(call, expert=nn.Linear(6, 6), head=head()), floats(3, 6))
    batches = []
    for tokens_of in ([0, 0, 1, 2, 4], [1, 1, 1, 3, 3], [4, 3, 2, 1, 0]):  # the examples whose tokens go there
        chosen = torch.zeros(N, 3, dtype=torch.bool)
        for place, i in enumerate(tokens_of):
            chosen[i, place % 3] = True
        batches.append(({"x": inputs, "chosen": chosen}, labels))
    found = diagonal_fisher(model, batches)
    alone = [brute_force(model, x, y, "true_label", "square") for x, y in batches]
    for name, score in found.items():
        torch.testing.assert_close(score, sum(a[name] for a in alone) / 3, rtol=1e-9, atol=1e-15)
    assert not caplog.messages


def test_randomness_in_evaluation_mode_is_found_and_leaves_the_random_stream(caplog: pytest.LogCaptureFixture) -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        return m.head(F.dropout(m.lin(x), 0.5))  # type: ignore[operator]

    model, inputs, labels = made(lambda: Custom(call, lin=nn.Linear(6, 6), head=head()), floats(6))
    torch.manual_seed(3)
    found = diagonal_fisher(model, [(inputs, labels)])
    assert "would be wrong" in caplog.text
    torch.manual_seed(3)
    torch.testing.assert_close(dict(found), dict(diagonal_fisher(model, [(inputs, labels)], as_is=True)))


@pytest.mark.parametrize("size", [1, 2, N])
def test_sampled_labels_do_not_depend_on_the_cut_into_batches(size: int) -> None:
    model, (inputs, labels) = conv_net(), images(N)
    cut = list(zip(inputs.split(size), labels.split(size), strict=True))
    alone = diagonal_fisher(model.eval(), cut, "sampled", generator=torch.Generator().manual_seed(1), as_is=True)
    found = diagonal_fisher(model, cut, "sampled", generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(dict(found), dict(alone), rtol=1e-9, atol=1e-15)


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


@pytest.mark.parametrize("case", ["reentrant checkpoint", "class token, positions, layer scale", "lstm", "routed"])
def test_activations_of_a_batch_are_gone_before_the_next(case: str) -> None:
    """Without a look of the garbage collector: no hook holds its own graph."""
    model, inputs, labels = made(*TOGETHER[case])
    alive: list[weakref.ref[Tensor]] = []
    handle = model.head.register_forward_hook(  # type: ignore[operator]
        lambda module, args, output: alive.append(weakref.ref(output))
    )
    gc.collect()
    gc.disable()
    try:
        diagonal_fisher(model, [(inputs, labels)] * 2, "expected")
        assert len(alive) > 2
        assert not any(output() is not None for output in alive)
    finally:
        gc.enable()
        handle.remove()


def test_an_example_is_compared_with_its_batch_without_gradients() -> None:
    """Four examples in one pass, the second batch of which has none but that pass and the comparison."""
    seen: list[tuple[int, bool]] = []

    def call(m: Any, x: Tensor) -> Tensor:
        seen.append((len(x), torch.is_grad_enabled()))
        return m.head(x)

    model = Custom(call, head=nn.Linear(6, 3))
    batches = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    diagonal_fisher(model, batches)
    assert seen[-2:] == [(4, True), (1, False)]
