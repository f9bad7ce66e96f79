"""A batch takes one pass where its examples can be told apart, and a pass for each example where not."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from fishexp.fisher import diagonal_fisher
from fishexp.fisher.diagonal import Labels
from tests.support.cases import brute_force, conv_net, images, sentences, tiny_bert
from tests.support.fisher_cases import Custom, N, check, floats, head, made, mean, pool


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
