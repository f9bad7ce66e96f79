"""The bookkeeping of CUDA graphs, with a stand-in that computes on the CPU; the graphs themselves: tests/cuda."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fishexp.fisher import cuda_graphs, diagonal, diagonal_fisher
from tests.support.cases import CLASSES, NETS, batched, brute_force, conv_net, images
from tests.support.graphs import StandIn


def stand_in_for(model: nn.Module, patch: pytest.MonkeyPatch, stand_in: StandIn) -> None:
    """Let examples alone be scored by it, as on a GPU."""

    def graphs(model: nn.Module, totals: dict[nn.Parameter, Tensor], passes: cuda_graphs.Passes) -> Any:
        say: Any = lambda line: None  # noqa: E731
        return cuda_graphs.GraphedPasses(
            model, torch.device("cpu"), passes, list(totals), 0.01, say, stand_in.capture, list(totals.values())
        )

    patch.setattr(diagonal, "_graphs", graphs)


@pytest.mark.parametrize("power", ["square", "absolute"])
@pytest.mark.parametrize("kind", ["true_label", "expected"])
@pytest.mark.parametrize("case", NETS)
def test_replayed_scores_equal_the_definition(
    case: str, kind: Any, power: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, data = NETS[case]
    model, (inputs, labels) = build().eval(), data()
    stand_in = StandIn(model)
    stand_in_for(model, monkeypatch, stand_in)
    monkeypatch.setattr(cuda_graphs, "OFTEN", 1)
    expected = brute_force(model, inputs, labels, kind, power)
    frozen = next(model.parameters()).requires_grad_(False)
    found = diagonal_fisher(model, batched(inputs, labels), kind, power, as_is=True, cuda_graphs=True)
    assert stand_in.captures == 1
    assert stand_in.replays == len(labels) - 1
    assert not frozen.requires_grad
    assert all(p.grad is None for p in model.parameters())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-15)


def test_what_can_be_scored_in_batches_still_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To find that out, scores of examples alone are taken from those of a batch, which no graph does."""
    model, (inputs, labels) = conv_net().eval(), images()
    stand_in = StandIn(model)
    stand_in_for(model, monkeypatch, stand_in)
    monkeypatch.setattr(cuda_graphs, "OFTEN", 0)
    diagonal_fisher(model, [(inputs, labels)], cuda_graphs=True)
    assert stand_in.captures == 0
    assert "one example at a time" not in caplog.text


class LessTheMean(nn.Module):
    """Tell no examples of a batch apart."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) / 2


def test_examples_that_cannot_be_told_apart_are_scored_by_replays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, (inputs, labels) = nn.Sequential(LessTheMean(), conv_net()).eval(), images()
    expected = brute_force(model, inputs, labels, "true_label", "square")
    stand_in = StandIn(model)
    stand_in_for(model, monkeypatch, stand_in)
    monkeypatch.setattr(cuda_graphs, "OFTEN", 1)
    found = diagonal_fisher(model, batched(inputs, labels), cuda_graphs=True)
    assert "one example at a time" in caplog.text
    assert stand_in.captures == 1
    assert stand_in.replays == len(labels) - 1
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-15)


def test_labels_are_drawn_as_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a generator of the caller's, which an attempt to capture would move on."""
    model, (inputs, labels) = conv_net().eval(), images()
    stand_in_for(model, monkeypatch, StandIn(model))
    monkeypatch.setattr(cuda_graphs, "OFTEN", 1)
    found, plain = (
        diagonal_fisher(model, [(inputs, labels)], "sampled", as_is=True, cuda_graphs=graphs)
        for graphs in (True, False)
    )
    assert all(torch.equal(score, plain[name]) for name, score in found.items())


def test_running_statistics_move_once_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the original has it, in training mode; to the bit as without graphs."""
    model = nn.Sequential(*(layer for layer in conv_net().children() if not isinstance(layer, nn.Dropout))).train()
    plain, (inputs, labels) = copy.deepcopy(model), images()
    stand_in_for(model, monkeypatch, StandIn(model))
    monkeypatch.setattr(cuda_graphs, "OFTEN", 2)
    found = diagonal_fisher(model, [(inputs, labels)], as_is=True, cuda_graphs=True)
    for name, score in diagonal_fisher(plain, [(inputs, labels)], as_is=True).items():
        assert torch.equal(found[name], score)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))


def test_a_graph_with_other_scores_is_not_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (inputs, labels) = conv_net().eval(), images()
    stand_in = StandIn(model, lambda gradient: gradient * 1.1)
    stand_in_for(model, monkeypatch, stand_in)
    monkeypatch.setattr(cuda_graphs, "OFTEN", 1)
    found = diagonal_fisher(model, [(inputs, labels)], as_is=True, cuda_graphs=True)
    expected = brute_force(model, inputs, labels, "true_label", "square")
    assert stand_in.replays == 1
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-15)


def test_memory_of_graphs_and_scores_goes_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the device's, whose want Python's garbage collector knows nothing of."""
    model, (inputs, labels) = conv_net().eval(), images()
    stand_in = StandIn(model)
    stand_in_for(model, monkeypatch, stand_in)
    monkeypatch.setattr(cuda_graphs, "OFTEN", 1)
    gc.disable()
    try:
        found = diagonal_fisher(model, [(inputs, labels)], as_is=True, cuda_graphs=True)
        alive = [weakref.ref(score) for score in found.values()]
        del found
        assert stand_in.replays
        assert not any(score() is not None for score in alive)
    finally:
        gc.enable()


def test_without_memory_for_two_copies_of_the_scores_nothing_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large model they are more than an example's passes take."""
    model, (inputs, labels) = conv_net().eval(), images()
    wanted: list[int] = []
    monkeypatch.setattr(cuda_graphs, "_memory_for_two", lambda device, copies: wanted.append(copies))
    stand_in = StandIn(model)
    stand_in_for(model, monkeypatch, stand_in)
    monkeypatch.setattr(cuda_graphs, "OFTEN", 1)
    diagonal_fisher(model, [(inputs, labels)], as_is=True, cuda_graphs=True)
    assert stand_in.captures == 0
    assert wanted[0] == 2 * sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize(("copies", "fits"), [(29, True), (30, False)])
def test_memory_for_two(copies: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (50, 100))
    for name, value in {"memory_allocated": 20, "memory_reserved": 40, "max_memory_allocated": 40}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert cuda_graphs._memory_for_two(torch.device("cuda"), copies) == fits


def test_inputs_that_are_no_tensors_are_no_part_of_a_graph() -> None:
    labels, cpu = torch.zeros(2), torch.device("cpu")
    assert cuda_graphs._shape((torch.zeros(2, CLASSES), "mean"), labels, cpu) is None
    assert cuda_graphs._shape({"x": torch.zeros(2, 3)}, labels, cpu) is not None
    assert cuda_graphs._shape(torch.zeros(2, 3), labels, cpu) != cuda_graphs._shape(torch.zeros(3, 2).T, labels, cpu)


def test_tensors_on_the_host_are_no_part_of_a_graph() -> None:
    """A model may take the length of a sequence from one, as a number that every replay would have."""
    there, meta = torch.zeros(2, 3, device="meta"), torch.device("meta")
    assert cuda_graphs._shape((there, there), there, meta) is not None
    assert cuda_graphs._shape((there, torch.tensor([3, 2])), there, meta) is None
    assert cuda_graphs._shape({"x": there, "scale": torch.tensor(2.0)}, there, meta) is None
    assert cuda_graphs._shape((there, there), torch.zeros(2), meta) is None


@pytest.mark.parametrize(("small", "wrong"), [(0.5, False), (0.499, False), (0.75, True)])
def test_a_small_gradient_is_compared_by_itself(small: float, wrong: bool) -> None:
    """It is a four-thousandth of all gradients' square, so that in their norm it would be lost."""
    loss, large = torch.ones(()), torch.ones(1000)
    found = cuda_graphs._difference(loss, [large, torch.tensor([0.5])], loss, [large, torch.tensor([small])], [], 0.01)
    assert bool(found) == wrong


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("sums", [False, True])
def test_small_and_large_scores_are_compared_as_others_are(size: float, sums: bool) -> None:
    """A score is a square, and what is compared the square of scores."""
    logits, score = torch.ones(3), torch.full((1000,), size)
    before = [torch.zeros(1000)] if sums else []
    assert not cuda_graphs._difference(logits, [score], logits, [score.clone()], before, 0.01)
    assert cuda_graphs._difference(logits, [score], logits, [1.1 * score], before, 0.01)
