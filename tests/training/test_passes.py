"""Training by CUDA graphs, with a stand-in that computes on the CPU; the graphs themselves: tests/cuda."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fishexp.fisher import cuda_graphs
from fishexp.fisher.cuda_graphs import TOLERANCE, Captured, GraphedPasses, OwnPasses
from fishexp.masks.topk import Mask
from fishexp.regimes import transfer
from fishexp.sparse.parameter import weights
from fishexp.training.logger import Logger
from fishexp.training.passes import run_passes
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshots
from tests.support.cases import conv_net
from tests.support.graphs import StandIn
from tests.support.training import ALL_EPOCHS, mlp, problem

EPOCHS, SHORT = 14, 2  # of 5 batches of 4 examples and one of 2


def graphed_passes(ours: Problem, stand_in: StandIn) -> GraphedPasses:
    run, parameters = partial(run_passes, ours), list(ours.model.parameters())
    return GraphedPasses(ours.model, ours.device, run, parameters, TOLERANCE["fp32"], print, stand_in.capture)


def some(model: nn.Module) -> Mask:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.rand(p.shape, generator=generator) < 0.4 for name, p in model.named_parameters()}


def trained(
    model: nn.Module, shape: tuple[int, ...], folder: Path, stand_in: StandIn | None, **recipe: object
) -> tuple[dict[str, Tensor], str]:
    """Train with graphs if there is a stand-in; return the weights and buffers, and what was said."""
    ours = problem(model, shape, cuda_graphs=stand_in is not None)
    options = {"epochs": EPOCHS, "batch_size": 4, "accumulate": 1, "lr": 0.1, "optimiser": "sgd", "weight_decay": 0.1}
    options |= {"warmup": 1, "clip": 0.2, "evaluation_batch_size": 5, "drop_last": False, **ALL_EPOCHS, **recipe}
    with pytest.MonkeyPatch.context() as patch, Logger(folder, "", {}, "disabled") as log:
        if stand_in is not None:
            patch.setattr(cuda_graphs.CudaCapture, "capture", lambda self, passes: stand_in.capture(passes))
        snapshots = Snapshots(folder / "snapshots", minutes=math.inf)
        transfer.train(ours, lambda: some(model), log, snapshots, [], "kept", **options)  # type: ignore[arg-type]
    tensors = {name: p.detach().clone() for name, p in weights(model).items()} | dict(model.named_buffers())
    return tensors, (folder / "log.txt").read_text()


def batch_norm() -> nn.Module:
    return nn.Sequential(*(layer for layer in conv_net().children() if not isinstance(layer, nn.Dropout)))


@pytest.mark.parametrize(("build", "shape"), [(mlp, (5,)), (batch_norm, (2, 4, 4))])
def test_training_is_to_the_bit_as_without_graphs(
    build: Callable[[], nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Each shape of batch is captured when it has come often, also in the middle of an epoch."""
    model = build()
    stand_in = StandIn(model)
    found, said = trained(model, shape, tmp_path / "graphs", stand_in)
    expected, _ = trained(build(), shape, tmp_path / "plain", None)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert stand_in.captures == 2
    often = cuda_graphs.OFTEN  # then one capture, whose first replay is only compared
    assert stand_in.replays == 5 * EPOCHS - often + EPOCHS - often
    assert said.count("passes are CUDA graphs from here on") == 1


def test_a_replay_is_of_the_batch_that_it_is_given() -> None:
    model = mlp()
    ours = problem(model, (5,))
    graphed = graphed_passes(ours, StandIn(model))
    found = []
    for passes in [graphed] * (cuda_graphs.OFTEN + 3) + [partial(run_passes, ours)] * 2:
        inputs, labels = ours.data.train.batch(torch.arange(4) + 4 * (len(found) % 2))
        found.append(
            [passes(inputs, labels).clone(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
        model.zero_grad()
    *_, odd, even, expected_odd, expected_even = found
    assert all(torch.equal(a, b) for a, b in zip(odd, expected_odd, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(even, expected_even, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(odd, even, strict=True))


def test_graphs_of_all_shapes_have_one_set_of_gradients() -> None:
    """A dense model's are as large as it is."""
    model = mlp()
    ours = problem(model, (5,))
    graphed = graphed_passes(ours, StandIn(model))
    places = []
    for count in (4, 3):
        inputs, labels = ours.data.train.batch(torch.arange(count))
        for _ in range(cuda_graphs.OFTEN + 2):
            graphed(inputs, labels)
            places.append([p.grad.data_ptr() for p in model.parameters() if p.grad is not None])
            model.zero_grad()
    assert places[-1] == places[cuda_graphs.OFTEN + 1]


def test_batches_that_share_a_step_are_no_graphs(tmp_path: Path) -> None:
    """Their gradients add up, where a replay writes over them."""
    model = mlp()
    stand_in = StandIn(model)
    found, _ = trained(model, (5,), tmp_path / "graphs", stand_in, accumulate=2)
    expected, _ = trained(mlp(), (5,), tmp_path / "plain", None, accumulate=2)
    assert stand_in.captures == 0
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_without_the_memory_nothing_is_captured_and_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "_memory_for_two", lambda device, copies: False)
    model = mlp()
    stand_in = StandIn(model)
    _, said = trained(model, (5,), tmp_path, stand_in)
    assert stand_in.captures == 0
    assert said.count("has not twice the memory that they take") == 1


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(()).double()


class Counts(nn.Module):
    """Fade slowly, so that passes in a row have nearly the same gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training
        return x * (1 - self.passes / 1000)


class Averages(nn.Module):
    """Follow the mean, which no gradient depends on, in a new buffer each time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(5).double())

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return x


BEGIN = {"draws": Draws, "counts": Counts, "averages": Averages}


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("draws", "the model draws random numbers on the host"),
        ("counts", "each pass puts something else into passes of the model"),
        ("averages", "each pass puts something else into mean of the model"),
        ("waits", "operation not permitted when stream is capturing"),
        ("gradient", "a replay of the same batch has another gradient"),
        ("one gradient", "a replay of the same batch has another gradient"),
        ("left out", "a replay brings gradients to other weights"),
    ],
)
def test_what_a_graph_would_do_otherwise_is_found_and_nothing_is_replayed(wrong: str, why: str, tmp_path: Path) -> None:
    """A line says so, and training is as without graphs."""

    def build() -> nn.Module:
        return nn.Sequential(BEGIN[wrong](), *mlp()) if wrong in BEGIN else mlp()  # type: ignore[misc]

    def fails(passes: OwnPasses) -> tuple[Captured, Tensor]:
        passes()
        try:
            raise RuntimeError(f"CUDA error: {why}\nCompile with so and so")
        finally:
            raise RuntimeError("CUDA error: a capture has failed")  # as torch does

    model = build()
    changed = {"gradient": lambda g: g * 1.1, "one gradient": lambda g: g * 1.2 if g.numel() < 5 else g}
    stand_in = StandIn(model, changed.get(wrong, lambda gradient: gradient))
    if wrong == "waits":
        stand_in.capture = fails  # type: ignore[method-assign]
    elif wrong == "left out":
        original = stand_in.capture

        def capture(passes: OwnPasses) -> tuple[Captured, Tensor]:
            result = original(passes)
            next(p for p in model.parameters() if p.grad is not None).grad = None
            return result

        stand_in.capture = capture  # type: ignore[method-assign]
    torch.manual_seed(3)
    found, said = trained(model, (5,), tmp_path / "graphs", stand_in)
    plain = build()
    torch.manual_seed(3)
    expected, _ = trained(plain, (5,), tmp_path / "plain", None)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert stand_in.replays <= 1
    assert said.count("passes are no CUDA graphs") == 1
    assert why in said
