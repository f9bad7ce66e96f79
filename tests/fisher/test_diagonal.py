"""The diagonal Fisher information against its definition, in float64."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishexp.errors import FishexpError
from fishexp.fisher import diagonal_fisher
from fishexp.fisher.diagonal import Labels
from fishexp.fisher.layer_rules import Power
from tests.support.cases import NETS, batched, brute_force, conv_net, images


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
