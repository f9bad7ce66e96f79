"""The change by full training, against full training by the ordinary regime."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fishexp.errors import FishexpError
from fishexp.masks.topk import Scores
from fishexp.methods import full, largest_change
from fishexp.regimes import transfer
from fishexp.sparse import sparsify
from fishexp.sparse.modules import plain
from fishexp.sparse.parameter import weights
from fishexp.training.collectives import InProcessCollectives
from fishexp.training.logger import Logger
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshots
from fishexp.training.streams import seed_torch, stream
from tests.support.cases import conv_net
from tests.support.cli import QUICK, fishexp, records
from tests.support.training import ALL_EPOCHS, mlp, problem

OPTIONS: dict[str, Any] = {
    "epochs": 3, "batch_size": 4, "accumulate": 2, "lr": 0.05, "weight_decay": 0.1, "warmup": 2, "clip": 0.5,
    "drop_last": False, "optimiser": "sgd",
}  # fmt: skip


def score(of: Problem, **more: Any) -> Scores:
    return largest_change.scores(of, **{f"full_{key}": value for key, value in {**OPTIONS, **more}.items()})


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {"mlp": (mlp, (5,)), "conv": (conv_net, (2, 4, 4))}


@pytest.mark.parametrize("more", [{}, {"optimiser": "adamw", "clip": None, "accumulate": 1, "drop_last": True}])
@pytest.mark.parametrize("net", NETS)
def test_scores_are_what_full_training_changes_to_the_bit(net: str, more: dict[str, Any], tmp_path: Path) -> None:
    make, shape = NETS[net]
    scores = score(problem(make(), shape), **more)

    seed = int(torch.randint(2**62, (), generator=problem(make(), shape).generator))
    dense = replace(problem(make(), shape), order=stream(seed, "order"))
    seed_torch(seed, "dropout")
    recipe = {**OPTIONS, **ALL_EPOCHS, **more, "evaluation_batch_size": 5}
    with Logger(tmp_path, "", {}, "disabled") as log:
        snapshots = Snapshots(tmp_path / "snapshots", minutes=math.inf)
        transfer.train(dense, lambda: full.mask(dense), log, snapshots, [], "kept", **recipe)
    before = weights(make())
    assert list(scores) == list(before)
    for name, p in weights(dense.model).items():
        assert torch.equal(scores[name], (p - before[name]).detach().abs()), name
        assert scores[name].any()


def everything(of: Problem) -> list[Tensor]:
    streams = [*of.random_streams().values(), of.order.get_state()]
    return [*(tensor.clone() for tensor in of.model.state_dict().values()), *streams]


def test_model_and_streams_stay_as_they_are_and_scores_follow_from_the_seed() -> None:
    ours = problem(conv_net(), (2, 4, 4))
    before = everything(ours)
    first = score(ours)
    assert all(torch.equal(old, new) for old, new in zip(before, everything(ours), strict=True))
    torch.rand(1)
    ours.generator.manual_seed(0)
    again = score(ours)
    other = score(ours)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_scores_of_a_model_with_a_mask_are_those_of_the_plain_model(kept: float) -> None:
    """For later masks of a run; what the model trains goes on training."""
    expected = score(problem(mlp(), (5,)))
    ours = problem(mlp(), (5,))
    generator = torch.Generator().manual_seed(3)
    mask = {name: torch.rand(p.shape, generator=generator) < kept for name, p in ours.model.named_parameters()}
    mask["2.bias"][:] = True
    sparse = sparsify(ours.model, mask)
    with plain(ours.model):
        found = score(ours)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    inputs, labels = next(ours.batches(4))
    ours.loss(ours.logits(inputs), labels).backward()
    assert all(p.grad is not None for p in sparse.parameters())


def test_several_workers_are_refused() -> None:
    with pytest.raises(FishexpError, match="trains a copy, alone, got 2 workers; take regime=transfer"):
        score(problem(mlp(), (5,), collectives=InProcessCollectives(2)))


RUN = (*QUICK[:3], "method=largest_change", "keep=0.02")


def test_a_run_trains_as_the_regime_does_and_shares_its_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    read = []
    for more in ("lr=0.05", "lr=0.1", "keep=0.03", "full_lr=0.1", "batch_size=32", "full_epochs=2"):
        assert fishexp(*RUN, more).status == 0
        read.append(records(tmp_path)[-1]["scores_read"])
    assert read == [False, True, True, False, False, False]
    config = records(tmp_path)[4]["config"]
    assert (config["method"]["full_lr"], config["method"]["full_batch_size"]) == (0.2, 32)  # of method=full
    assert fishexp(*RUN, "regime=checkpointing", "mask=every_epoch", "epochs=2").status == 0


def test_training_that_breaks_down_names_the_rate_of_the_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = fishexp(*RUN, "full_lr=1e30", "full_epochs=4")
    assert result.status == 1
    assert "the loss is not finite" in result.err
    assert result.err.rstrip().endswith("lower method.full_lr")
    message = fishexp(*RUN, "data=digits", "train_limit=129", "drop_last=false", "full_batch_size=128")
    assert message.status == 0, message  # the model takes a single image
