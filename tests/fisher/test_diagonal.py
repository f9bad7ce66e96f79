"""The diagonal Fisher information against its definition, in float64."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishexp.errors import FishexpError
from fishexp.fisher import diagonal_fisher
from fishexp.fisher.layer_rules import LINEAR
from fishexp.fisher.losses import Labels
from fishexp.fisher.powers import Power
from tests.support.cases import CLASSES, NETS, batched, brute_force, conv_net, images


@pytest.mark.parametrize("power", ["square", "absolute"])
@pytest.mark.parametrize("kind", ["true_label", "expected"])
@pytest.mark.parametrize("case", NETS)
def test_equals_the_definition(case: str, kind: Labels, power: Power) -> None:
    build, data = NETS[case]
    model, (inputs, labels) = build(), data()
    found = diagonal_fisher(model, batched(inputs, labels), kind, power)
    expected = brute_force(model, inputs, labels, kind, power)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("power", ["square", "absolute"])
def test_sampled_labels_converge_to_expected(power: Power) -> None:
    model, (inputs, labels) = conv_net(), images(4)
    draws = 2_000
    repeated = inputs.repeat(draws, 1, 1, 1), labels.repeat(draws)
    sampled = diagonal_fisher(model, [repeated], "sampled", power, generator=torch.Generator().manual_seed(3))
    expected = diagonal_fisher(model, [(inputs, labels)], "expected", power)
    found, wanted = (torch.cat([value.flatten() for value in scores.values()]) for scores in (sampled, expected))
    assert (found - wanted).norm() < 0.03 * wanted.norm()
    empirical = diagonal_fisher(model, [(inputs, labels)], "true_label", power)
    assert (torch.cat([value.flatten() for value in empirical.values()]) - wanted).norm() > 0.1 * wanted.norm()


def test_sampled_labels_follow_the_generator() -> None:
    model, (inputs, labels) = conv_net(), images()
    first, again, other = (
        diagonal_fisher(model, [(inputs, labels)], "sampled", generator=torch.Generator().manual_seed(seed))["5.bias"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_squaring_a_batch_gradient_would_be_something_else() -> None:
    """The mean of squares, not the square of the mean: two examples whose gradients cancel still count."""
    model = nn.Linear(1, 2, bias=False).double()
    nn.init.zeros_(model.weight)
    inputs, labels = torch.ones(2, 1).double(), torch.tensor([0, 1])
    fisher = diagonal_fisher(model, [(inputs, labels)])["weight"]
    torch.testing.assert_close(fisher, torch.full((2, 1), 0.25).double())
    F.cross_entropy(model(inputs), labels).backward()
    assert model.weight.grad is not None
    assert model.weight.grad.abs().max() == 0


def test_a_loss_of_ones_own_and_a_regression() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    inputs, targets = torch.randn(5, 3).double(), torch.randn(5).double()
    fisher = diagonal_fisher(model, [(inputs, targets)], loss=lambda out, y: F.mse_loss(out.squeeze(-1), y))
    residual = 2 * (model(inputs).squeeze(-1) - targets).detach()
    torch.testing.assert_close(fisher["weight"][0], (residual[:, None] * inputs).square().mean(0))
    torch.testing.assert_close(fisher["bias"][0], residual.square().mean())
    for kind in ("expected", "sampled"):
        with pytest.raises(
            FishexpError, match=f"labels={kind} needs classes to draw from, but the model has one output"
        ):
            diagonal_fisher(model, [(inputs, targets)], kind)


def test_tied_weights_are_scored_once_and_unused_ones_with_zero() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)
            self.b = nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight
            self.unused = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).tanh())

    torch.manual_seed(0)
    model = Tied().double()
    inputs, labels = torch.randn(5, 3).double(), torch.tensor([0, 1, 2, 0, 1])
    fisher = diagonal_fisher(model, [(inputs, labels)])
    torch.testing.assert_close(dict(fisher), brute_force(model, inputs, labels, "true_label", "square"))
    assert list(fisher) == ["unused", "a.weight"]
    assert fisher["unused"].abs().sum() == 0


def test_frozen_parameters_are_scored_and_stay_frozen() -> None:
    model, (inputs, labels) = conv_net(), images()
    expected = brute_force(model, inputs, labels, "true_label", "square")
    model[0].requires_grad_(False)  # type: ignore[index]
    found = diagonal_fisher(model, [(inputs, labels)])
    torch.testing.assert_close(dict(found), expected)
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True]


@pytest.mark.parametrize("as_is", [False, True])
def test_progress_is_told_of_every_example(as_is: bool) -> None:
    told: list[int] = []
    diagonal_fisher(conv_net(), batched(*images()), as_is=as_is, advance=told.append)
    assert told == [3, 3, 1]


def test_as_is_scores_in_training_mode_one_example_at_a_time() -> None:
    model, (inputs, labels) = conv_net(), images(3)
    model[3].p = 0.0  # type: ignore[index]
    reference = copy.deepcopy(model).train()
    expected = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    for i in range(3):
        reference.zero_grad()
        F.cross_entropy(reference(inputs[i : i + 1]), labels[i : i + 1]).backward()
        for name, p in reference.named_parameters():
            assert p.grad is not None
            expected[name] += p.grad.square() / 3
    found = diagonal_fisher(model.train(), [(inputs, labels)], as_is=True)
    torch.testing.assert_close(dict(found), expected)
    torch.testing.assert_close(model[1].running_mean, reference[1].running_mean)  # type: ignore[index]


def test_no_examples() -> None:
    with pytest.raises(FishexpError, match="needs at least one example"):
        diagonal_fisher(conv_net(), [])


@pytest.mark.parametrize("last", [False, True])
def test_an_example_with_several_labels_has_the_sum_of_their_losses(last: bool) -> None:
    """Those that are ignored count for nothing; the classes may come last or second; a loss of torch agrees."""
    torch.manual_seed(0)
    model = nn.Linear(4, CLASSES).double()
    network = model if last else nn.Sequential(model, Swapped())
    x, y = torch.randn(3, 6, 4).double(), torch.randint(CLASSES, (3, 6))
    y[0, 2:], y[1, 0] = -100, -100
    wanted = torch.zeros_like(model.weight)
    for i in range(3):
        loss = F.cross_entropy(model(x[i]), y[i], reduction="sum")
        wanted += torch.autograd.grad(loss, model.weight)[0].square() / 3
    name = "weight" if last else "0.weight"
    torch.testing.assert_close(diagonal_fisher(network, [(x, y)])[name], wanted)
    if not last:
        for loss in (
            F.cross_entropy,
            nn.CrossEntropyLoss(),
            nn.CrossEntropyLoss(reduction="sum"),
            partial(F.cross_entropy),
        ):
            torch.testing.assert_close(diagonal_fisher(network, [(x, y)], loss=loss)[name], wanted)


class Swapped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


@pytest.mark.parametrize("last", [False, True])
def test_the_expectation_over_the_labels_of_several_tokens(last: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, CLASSES).double()
    network = model if last else nn.Sequential(model, Swapped())
    x, y = torch.randn(3, 5, 4).double(), torch.zeros(3, 5, dtype=torch.long)
    y[0, 3:] = -100
    wanted = torch.zeros_like(model.weight)
    for i, t in zip(*torch.where(y >= 0), strict=True):
        log_probs = model(x)[i, t].log_softmax(-1)
        for c in range(CLASSES):
            gradient = torch.autograd.grad(log_probs[c], model.weight, retain_graph=True)[0]
            wanted += log_probs[c].exp().detach() * gradient.square() / 3
    name = "weight" if last else "0.weight"
    torch.testing.assert_close(diagonal_fisher(network, [(x, y)], "expected")[name], wanted)
    many = [(x.repeat(2000, 1, 1), y.repeat(2000, 1))]
    sampled = diagonal_fisher(network, many, "sampled")[name]
    assert (sampled - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("kind", ["true_label", "expected", "sampled"])
def test_a_model_that_returns_nan_has_scores_of_nan(kind: Labels) -> None:
    model = nn.Linear(4, CLASSES)
    with torch.no_grad():
        model.bias[0] = torch.nan
    assert diagonal_fisher(model, [(torch.ones(3, 4), torch.tensor([0, 1, 2]))], kind)["bias"].isnan().all()


@pytest.mark.parametrize("kind", ["true_label", "expected", "sampled"])
def test_an_example_that_is_ignored_counts_for_nothing_whatever_its_shape(kind: Labels) -> None:
    """As the tokens of padding do, of sentences that were flattened to tokens."""
    torch.manual_seed(0)
    model = nn.Linear(4, CLASSES).double()
    x, y = torch.randn(5, 4).double(), torch.tensor([0, 1, -100, 2, -100])
    found = diagonal_fisher(model, [(x, y)], kind)
    torch.testing.assert_close(found, diagonal_fisher(model, [(x[:, None], y[:, None])], kind))
    if kind != "sampled":
        counted = diagonal_fisher(model, [(x[y >= 0], y[y >= 0])], kind)
        torch.testing.assert_close(found["weight"], counted["weight"] * 3 / 5)
    if kind != "true_label":
        with pytest.raises(FishexpError, match="all labels are -100"):
            diagonal_fisher(model, [(x, torch.full_like(y, -100))], kind)


@pytest.mark.parametrize("kind", ["true_label", "expected", "sampled"])
@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((2, 3, 3), (2, 3), r"logits \(2, 3, 3\) and labels \(2, 3\) do not tell which dimension has the classes"),
        ((2, 4, 3), (2,), "do not tell which dimension"),
        ((3, 5, 1), (2, 3), r"the model returns \(3, 5, 1\) for 2 labels"),
    ],
)
def test_logits_of_which_the_classes_are_not_known(
    kind: Labels, shape: tuple[int, ...], labels: tuple[int, ...], message: str
) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * torch.ones(shape if len(x) == 2 else (1, *shape[1:]))

    with pytest.raises(FishexpError, match=message):
        diagonal_fisher(Fixed(), [(torch.ones(2, 1), torch.zeros(labels, dtype=torch.long))], kind)


@pytest.mark.parametrize(("tokens", "classes", "power"), [(200, 60, "square"), (2, 3, "absolute")])
def test_expectations_that_are_refused(tokens: int, classes: int, power: Power) -> None:
    x, y = torch.randn(2, tokens, 2), torch.zeros(2, tokens, dtype=torch.long)
    with pytest.raises(FishexpError, match=r"labels=expected .* use sampled"):
        diagonal_fisher(nn.Linear(2, classes), [(x, y)], "expected", power)


def test_a_weight_of_a_class_counts_and_a_mean_over_the_batch_by_it_is_refused() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 3).double(), torch.randn(9, 5).double(), torch.arange(9) % 3
    weight = torch.tensor([1.0, 10.0, 0.1]).double()
    wanted = torch.zeros_like(model.weight)
    for i in range(9):
        loss = weight[y[i]] * F.cross_entropy(model(x[i]), y[i])
        wanted += torch.autograd.grad(loss, model.weight)[0].square() / 9
    batches = [(x[i : i + 3], y[i : i + 3]) for i in range(0, 9, 3)]
    losses = [
        nn.CrossEntropyLoss(weight=weight),
        partial(F.cross_entropy, weight=weight),
        lambda out, y: F.cross_entropy(out, y, weight=weight, reduction="none"),
        lambda out, y: F.cross_entropy(out, y, weight=weight, reduction="sum"),
    ]
    for loss in losses:
        for cut in (batches, [(x, y)], [(x[i : i + 1], y[i : i + 1]) for i in range(9)]):
            torch.testing.assert_close(diagonal_fisher(model, cut, loss=loss)["weight"], wanted)
    for cut in (batches, [(x[i : i + 1], y[i : i + 1]) for i in range(9)]):
        with pytest.raises(FishexpError, match="it divides by a sum over the batch"):
            diagonal_fisher(model, cut, loss=lambda out, y: F.cross_entropy(out, y, weight=weight))


def test_a_loss_that_returns_something_else_is_refused() -> None:
    with pytest.raises(FishexpError, match=r"loss returns \(1,\) for 2 examples"):
        diagonal_fisher(
            nn.Linear(2, 3), [(torch.ones(2, 2), torch.tensor([0, 1]))], loss=lambda out, y: out.sum().reshape(1)
        )


def test_inputs_that_the_examples_share_though_they_are_as_long() -> None:
    """An attention mask (tokens, tokens) beside as many examples, and one that is not used at all where it is cut."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
            x = self.lin(x)
            return self.head(F.scaled_dot_product_attention(x, x, x, attn_mask=mask).mean(1)) * scale[:CLASSES].sum()

    torch.manual_seed(0)
    model, count = Masked().double(), 5
    x, y = torch.randn(count, count, 4).double(), torch.arange(count) % CLASSES
    mask, scale = torch.ones(count, count).tril().bool(), torch.rand(count).double()
    wanted = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(count):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1], mask, scale), y[i : i + 1]).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            wanted[name] += p.grad.square() / count
    model.zero_grad()
    inputs = {"x": x, "mask": mask, "scale": scale}
    for as_is in (False, True):
        found = diagonal_fisher(model.eval(), [(inputs, y)], as_is=as_is)
        torch.testing.assert_close(dict(found), wanted)
    torch.testing.assert_close(dict(diagonal_fisher(model, [((x, mask, scale), y)])), wanted)


def test_a_wrong_use_in_bf16_does_not_hide_behind_rounding(caplog: pytest.LogCaptureFixture) -> None:
    """Weights are as before to the bit, though the check widens them."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.head = nn.Linear(16, 16), nn.Linear(16, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lin(x).tanh() + 0.1 * x.detach() @ self.lin.weight.tanh().T)

    torch.manual_seed(0)
    model = Beside().bfloat16()
    before = copy.deepcopy(model.state_dict())
    x, y = torch.randn(8, 16), torch.arange(8) % CLASSES
    found = diagonal_fisher(model, [(x.bfloat16(), y)])
    assert not caplog.messages, "nor does rounding look like a wrong score"
    wide = copy.deepcopy(model).double()
    wanted = brute_force(wide, x.bfloat16().double(), y, "true_label", "square")
    for name, score in wanted.items():
        assert (found[name] - score).norm() < 0.05 * score.norm(), name
    assert all(torch.equal(p, before[name]) and p.dtype == torch.bfloat16 for name, p in model.state_dict().items())


def test_a_rule_that_is_wrong_by_a_fifth_is_found_in_bf16(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(16, CLASSES).bfloat16(), torch.randn(8, 16).bfloat16(), torch.arange(8) % CLASSES
    right = diagonal_fisher(model, [(x, y)])
    assert not caplog.messages
    add = LINEAR.add_weight_powers
    monkeypatch.setattr(LINEAR, "add_weight_powers", lambda total, call, layout, g, power: add(
        total, call, layout, 1.1 * g, power
    ))  # fmt: skip
    torch.testing.assert_close(dict(diagonal_fisher(model, [(x, y)])), dict(right), rtol=0.05, atol=1e-6)
    assert "in a batch the scores of weight would be wrong" in caplog.text
