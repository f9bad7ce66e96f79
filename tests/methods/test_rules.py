"""Each rule's scores against the same, computed in float64 one example and one entry at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishexp.fisher.eval_mode import evaluating
from fishexp.masks.topk import Scores
from fishexp.methods import activation, gradient, lift, relative, snip
from fishexp.methods.lift import low_rank
from fishexp.training.collectives import InProcessCollectives
from fishexp.training.problem import Problem
from tests.support.cases import CLASSES
from tests.support.checks import refusal
from tests.support.training import EXAMPLES, mlp, problem

SAMPLES = 13


class Convolutions(nn.Module):
    """Hold the kinds of convolution that there are, with a BatchNorm that has seen batches, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 6, (3, 1), dilation=(2, 1), padding="same", padding_mode="circular", groups=2, bias=False),
            nn.Dropout(0.5),
            nn.Conv2d(6, 6, 2, groups=6),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 4, 2, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def convolutions() -> Problem:
    torch.manual_seed(0)
    model = Convolutions().double()
    ours = problem(model, (2, 9, 9))
    model.train()
    model(ours.data.train.batch(torch.arange(EXAMPLES))[0])
    return ours


PROBLEMS: dict[str, Callable[[], Problem]] = {"mlp": lambda: problem(mlp(), (5,)), "convolutions": convolutions}


def drawn(ours: Problem, samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """The examples that are going to be scored."""
    state = ours.generator.get_state()
    index = ours.sample(samples)
    ours.generator.set_state(state)
    return ours.data.train.batch(index)


def brute_gradient(ours: Problem) -> dict[str, Tensor]:
    inputs, labels = drawn(ours)
    with evaluating(ours.model):
        grads = []
        for x, y in zip(inputs, labels, strict=True):
            loss = F.cross_entropy(ours.model(x[None]), y[None])
            grads.append(torch.autograd.grad(loss, list(ours.model.parameters())))
    means = [torch.stack(column).mean(0) for column in zip(*grads, strict=True)]
    return dict(zip(dict(ours.model.named_parameters()), means, strict=True))


RULES: dict[str, tuple[Callable[..., Scores], Callable[[Tensor, Tensor], Tensor]]] = {
    "gradient": (partial(gradient.scores, samples=SAMPLES), lambda w, g: g.abs()),
    "snip": (partial(snip.scores, samples=SAMPLES), lambda w, g: (w * g).abs()),
    "relative 0": (partial(relative.scores, samples=SAMPLES, exponent=0, epsilon=1e-3), lambda w, g: g.abs()),
    "relative": (
        partial(relative.scores, samples=SAMPLES, exponent=0.7, epsilon=0.02),
        lambda w, g: g.abs() / (w.abs() + 0.02) ** 0.7,
    ),
}


@pytest.mark.parametrize("case", PROBLEMS)
@pytest.mark.parametrize("rule", RULES)
def test_scores_of_the_mean_gradient(rule: str, case: str) -> None:
    scores, formula = RULES[rule]
    ours = PROBLEMS[case]()
    before = {name: t.clone() for name, t in ours.model.state_dict().items()}
    expected = {name: formula(ours.model.get_parameter(name), g) for name, g in brute_gradient(ours).items()}
    next(ours.model.parameters()).requires_grad_(False)  # frozen ones are scored too
    found = scores(ours)
    assert list(found) == list(expected)
    for name, score in found.items():
        torch.testing.assert_close(score, expected[name], rtol=1e-9, atol=1e-15)
    assert all(t.equal(before[name]) for name, t in ours.model.state_dict().items())
    assert all(p.grad is None for p in ours.model.parameters())
    assert ours.model.training


def patches(layer: Any, x: Tensor) -> Tensor:
    """Sum of squares of all that each entry is multiplied by: from the outputs' derivatives, entry by entry."""
    weight = layer.weight
    total = torch.zeros_like(weight)
    with torch.no_grad():
        for at in range(weight.numel()):
            one = torch.zeros_like(weight)
            one.view(-1)[at] = 1
            zero_bias = {"bias": torch.zeros_like(layer.bias)} if layer.bias is not None else {}
            total.view(-1)[at] = torch.func.functional_call(layer, {"weight": one, **zero_bias}, x).square().sum()
    return total


@pytest.mark.parametrize("case", PROBLEMS)
def test_activation_scores_are_norms_of_what_each_entry_is_multiplied_by(case: str) -> None:
    ours = PROBLEMS[case]()
    inputs, _ = drawn(ours)
    seen: dict[Any, Tensor] = {}
    layers: dict[str, Any] = {
        n: m for n, m in ours.model.named_modules() if hasattr(m, "weight") and not isinstance(m, nn.BatchNorm2d)
    }
    handles = [layer.register_forward_pre_hook(lambda m, x: seen.update({m: x[0]})) for layer in layers.values()]
    with evaluating(ours.model), torch.no_grad():
        ours.model(inputs)
    for handle in handles:
        handle.remove()
    found = activation.scores(ours, samples=SAMPLES)
    weights = {
        f"{name}.weight": layer.weight.abs() * patches(layer, seen[layer]).sqrt() for name, layer in layers.items()
    }
    assert set(found) == set(dict(ours.model.named_parameters()))
    for name, score in found.items():
        expected = weights.get(name, torch.zeros_like(score))
        torch.testing.assert_close(score, expected.detach(), rtol=1e-9, atol=1e-12)
    assert not any(module._forward_pre_hooks for module in ours.model.modules())


def test_a_layer_whose_weight_is_read_past_it_is_named(caplog: pytest.LogCaptureFixture) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    ours = problem(nn.Sequential(layer, nn.Flatten(), nn.Linear(12, CLASSES)).double(), (3, 4))
    found = activation.scores(ours, samples=SAMPLES)
    unscored = [name for name, score in found.items() if name.endswith("weight") and not score.any()]
    assert [name for name in unscored if "norm" not in name] == [
        "0.self_attn.in_proj_weight",
        "0.self_attn.out_proj.weight",
    ]
    assert caplog.messages == [
        "no input is seen of 1 of 4 linear layers and convolutions, such as 0.self_attn.out_proj, which the model does "
        "not call; their weights score 0"
    ]


@pytest.mark.parametrize(("rows", "columns"), [(40, 12), (12, 40), (9, 9), (1, 5)])
def test_the_low_rank_part_is_that_of_the_singular_value_decomposition(rows: int, columns: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).double()
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    for rank in range(1, min(rows, columns) + 1):
        expected = u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]
        torch.testing.assert_close(low_rank(matrix, rank), expected, rtol=1e-8, atol=1e-10)
        single = low_rank(matrix.float(), rank)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-6)


def test_lift_scores_matrices_by_a_quarter_of_their_smaller_side() -> None:
    ours = problem(nn.Sequential(nn.Linear(5, 9), nn.Unflatten(1, (1, 9)), nn.Conv1d(1, 2, 3), nn.Flatten(),
                                 nn.Linear(14, CLASSES)).double(), (5,))  # fmt: skip
    found = lift.scores(ours, rank=None)
    for name, p in ours.model.named_parameters():
        rank = max(min(p.shape) // 4, 1)
        expected = low_rank(p.detach(), rank).abs() if p.dim() == 2 else torch.zeros_like(p)
        assert found[name].equal(expected)
    whole = lift.scores(ours, rank=99)
    torch.testing.assert_close(whole["0.weight"], ours.model.get_parameter("0.weight").detach().abs())


def test_models_that_a_rule_cannot_score_are_refused() -> None:
    ours = problem(nn.Sequential(nn.Flatten(), nn.Linear(5, CLASSES)).double(), (5,))
    ours.head = ("1.weight", "1.bias")
    assert refusal(lambda: lift.scores(ours, rank=None)) == (
        "method=lift scores matrices, and this model has none but its head; take another method"
    )

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(5, CLASSES).double())

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.scale

    assert "has neither" in refusal(lambda: activation.scores(problem(Scaled(), (5,)), samples=4))


@pytest.mark.parametrize("scores", [gradient.scores, activation.scores])
def test_fewer_examples_than_workers_are_refused_and_more_than_there_are_are_told(
    scores: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ours = problem(mlp(), (5,), collectives=InProcessCollectives(3))
    assert "leaves some of 3 workers nothing to score" in refusal(lambda: scores(ours, samples=2))
    everything = scores(problem(mlp(), (5,)), samples=EXAMPLES)
    more = scores(problem(mlp(), (5,)), samples=1000)
    assert f"method.samples=1000: there are {EXAMPLES} training examples, all are used" in caplog.text
    assert all(more[name].equal(score) for name, score in everything.items())
