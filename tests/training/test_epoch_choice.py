"""Which epoch is taken and when training stops, by metrics that the tests dictate; what is taken, to the bit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fishexp.data.datasets import Metrics
from fishexp.errors import FishexpError
from fishexp.masks.topk import Mask
from fishexp.regimes import Outcome, transfer
from fishexp.sparse.parameter import weights
from fishexp.training.collectives import Collectives
from fishexp.training.logger import Logger
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshots
from fishexp.training.trainable import Decay
from tests.support.training import ALL_EPOCHS, EXAMPLES, mlp, problem
from tests.support.workers import Workers

OPTIONS = {
    "epochs": 6, "batch_size": 4, "accumulate": 1, "lr": 0.3, "optimiser": "sgd", "weight_decay": 0.1, "warmup": 1.0,
    "clip": None, "drop_last": False, "evaluation_batch_size": 5, **ALL_EPOCHS,
}  # fmt: skip
HELD_OUT = 7


@dataclass
class Told:
    """Answer with metrics that are dictated, one for each epoch, and remember the model as it was then.

    Attributes:
        scores: Of the examples that choose, epoch by epoch.
        seen: Weights and buffers when these were asked for.
        reported: How often the reported examples were looked at.
    """

    scores: Sequence[float | None]
    model: nn.Module
    seen: list[dict[str, Tensor]] = field(default_factory=list)
    reported: int = 0

    def __call__(self, logits: Tensor, labels: Tensor) -> Metrics:
        if not logits.any():  # it is asked for the names
            return {"score": None}
        if len(labels) == EXAMPLES:
            self.reported += 1
            return {"score": -1.0}
        self.seen.append(state(self.model))
        return {"score": self.scores[len(self.seen) - 1]}


def state(model: nn.Module) -> dict[str, Tensor]:
    own = {name: p.detach().clone() for name, p in weights(model).items()}
    return own | {name: buffer.clone() for name, buffer in model.named_buffers()}


def with_norm() -> nn.Module:
    norm = nn.BatchNorm1d(5).double()
    return nn.Sequential(norm, mlp())


def some(model: nn.Module) -> Mask:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.rand(p.shape, generator=generator) < 0.4 for name, p in model.named_parameters()}


def everything(model: nn.Module) -> Mask:
    return {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}


def chosen(
    folder: Path,
    scores: Sequence[float | None],
    mask: Any = some,
    decay: Decay = "kept",
    collectives: Collectives | None = None,
    **options: Any,
) -> tuple[Problem, Told, Outcome]:
    """Train a small network whose epochs have these scores."""
    together = {} if collectives is None else {"collectives": collectives, "data_parallel": True}
    ours = problem(with_norm(), (5,), **together)
    told = Told(scores, ours.model)
    held_out = ours.data.with_validation(HELD_OUT / EXAMPLES)
    ours.data = replace(held_out, metrics=told)
    snapshots = Snapshots(folder / "snapshots", minutes=math.inf)
    with Logger(folder, "", {}, "disabled", rank=ours.rank) as log:
        kept = mask(ours.model)
        outcome = transfer.train(ours, lambda: kept, log, snapshots, [], decay, **OPTIONS | options)  # type: ignore[arg-type]
    return ours, told, outcome


@pytest.mark.parametrize("decay", ["kept", "all"])
@pytest.mark.parametrize("mask", [some, everything])
def test_the_run_ends_with_the_best_epoch_to_the_bit(mask: Any, decay: Decay, tmp_path: Path) -> None:
    """Running statistics too; and the examples to report on are looked at once, when all is done."""
    scores = [0.1, 0.5, 0.3, 0.4, 0.5, 0.2]
    ours, told, outcome = chosen(tmp_path, scores, mask, decay, best=True)
    assert len(told.seen) == 6
    found = state(ours.model)
    assert [name for name, tensor in found.items() if not torch.equal(tensor, told.seen[1][name])] == []
    assert not torch.equal(found["0.running_mean"], told.seen[5]["0.running_mean"])
    assert (told.reported, outcome.evaluation.metrics["score"]) == (1, -1.0)
    assert outcome.epochs == {
        "planned": 6, "trained": 6, "taken": 2, "best": 2, "metric": "score", "value": 0.5, "validation_examples": 7,
    }  # fmt: skip
    if outcome.delta is not None:
        rebuilt = with_norm()
        outcome.delta.apply_(rebuilt)
        assert [name for name, tensor in state(rebuilt).items() if not torch.equal(tensor, found[name])] == []


@pytest.mark.parametrize(
    ("scores", "options", "trained", "best"),
    [
        ([0.1, 0.5, 0.5, 0.2], {"patience": 2}, 4, 2),  # an equal one is not better
        ([0.1, 0.5, 0.4, 0.6, 0.1, 0.1], {"patience": 2}, 6, 4),  # it counts anew from the best
        ([0.3, 0.2], {"patience": 1}, 2, 1),
        ([None, None, 0.1, None], {"patience": 3}, 6, 3),  # undefined is worse than any number
        ([None, None], {"patience": 1}, 2, 1),
        ([-0.3, -0.2, -0.4], {"patience": 1}, 3, 2),
    ],
)
def test_training_stops_after_so_many_epochs_without_a_better_one(
    scores: list[float | None], options: dict[str, Any], trained: int, best: int, tmp_path: Path
) -> None:
    """And without regime.best the weights of the last epoch stay."""
    ours, told, outcome = chosen(tmp_path, [*scores, None, None], **options)
    assert (outcome.epochs["trained"], outcome.epochs["best"], outcome.epochs["taken"]) == (trained, best, trained)
    assert all(torch.equal(tensor, told.seen[-1][name]) for name, tensor in state(ours.model).items())
    assert ("regime.best=true takes the best" in (tmp_path / "log.txt").read_text()) == (best < trained)


def test_a_patience_for_which_there_are_too_few_epochs_is_said(tmp_path: Path) -> None:
    """The best of three that is the last has nothing to be recommended over it."""
    for patience, said in ((3, True), (2, True), (1, False)):
        folder = tmp_path / str(patience)
        folder.mkdir()
        chosen(folder, [0.1, 0.2, 0.3], patience=patience, epochs=3)
        log, line = (folder / "log.txt").read_text(), f"patience={patience} stops nothing in 3 epochs; it is for more"
        assert (f"regime.{line} than {patience + 1}\n" in log) == said
        assert "epoch 3 is the best by score on 7 held-out training examples, 0.3; its weights are taken\n" in log


def test_less_loss_is_better(tmp_path: Path) -> None:
    """With a rate at which it falls at first and rises in the end."""
    _, told, outcome = chosen(tmp_path, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], metric="loss", best=True, lr=3.0)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    losses = [float(line.split('"loss_validation": ')[1].split(",")[0].rstrip("}")) for line in lines]
    assert outcome.epochs["value"] == min(losses)
    assert losses.index(min(losses)) + 1 == outcome.epochs["best"] < 6 == len(told.seen)


def test_a_metric_that_there_is_not_is_refused_before_anything_trains(tmp_path: Path) -> None:
    with pytest.raises(FishexpError, match=r"regime.metric=scores is no metric of this data set; did you mean score"):
        chosen(tmp_path, [], metric="scores", best=True)


def test_held_out_examples_are_a_part_of_those_for_training_and_the_same_always() -> None:
    rows = problem(mlp(), (5,)).data
    first, second = rows.with_validation(0.3), rows.with_validation(0.3)
    assert (len(first.train), len(first.validation)) == (15, 7)  # type: ignore[arg-type]
    both = torch.cat([first.train.inputs, first.validation.inputs])  # type: ignore[union-attr]
    assert {tuple(row) for row in both.tolist()} == {tuple(row) for row in rows.train.inputs.tolist()}
    assert torch.equal(first.validation.inputs, second.validation.inputs)  # type: ignore[union-attr]
    assert first.digest() == second.digest() != rows.digest()
    with pytest.raises(FishexpError, match=r"regime.validation_fraction=0.99 leaves nothing to train on: there are 22"):
        rows.with_validation(0.99)


def disagreeing(collectives: Collectives, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Train in two processes, of which the second would find another epoch the best, and train longer."""
    scores = [0.1, 0.5, 0.4, 0.3, 0.2, 0.1] if collectives.local_ranks[0] == 0 else [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    ours, told, outcome = chosen(folder, scores, collectives=collectives, patience=2, best=True, drop_last=True)
    second = told.seen[1]
    return outcome.epochs, [name for name, found in state(ours.model).items() if not torch.equal(found, second[name])]


def test_all_processes_stop_at_the_epoch_at_which_the_first_does(tmp_path: Path) -> None:
    with Workers(2, tmp_path, disagreeing, tmp_path) as workers:
        found = workers.results()
    assert found[0] == found[1]
    epochs, differing = found[0]
    assert (epochs["trained"], epochs["taken"], differing) == (4, 2, [])
