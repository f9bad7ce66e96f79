"""The random streams of workers: each its own order of the examples and its own dropout, all the same shards."""

import math
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor, nn

from fishexp.distributed.worker import Worker, worker_problem
from fishexp.training.collectives import InProcessCollectives
from fishexp.training.logger import Logger
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshots
from fishexp.training.trainer import Recipe
from tests.support.training import EXAMPLES, mlp, problem

WORKERS = 3
RECIPE: Recipe = {
    "epochs": 2, "batch_size": 4, "accumulate": 1, "lr": 0.1, "optimiser": "sgd", "weight_decay": 0.0, "warmup": 0,
    "clip": None, "drop_last": True, "evaluation_batch_size": 5, "patience": None, "best": False, "metric": None,
    "validation_fraction": 0.1,
}  # fmt: skip


class Drawing(nn.Module):
    """Remember what torch draws in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drawn = mlp(), list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.drawn.append(torch.rand(20))
        return self.body(x)


def problems(model: nn.Module, *, shard: bool) -> list[Problem]:
    whole = problem(model, (5,), collectives=InProcessCollectives(WORKERS))
    return [worker_problem(whole, rank, shard=shard) for rank in range(WORKERS)]


def order_of(ours: Problem) -> list[int]:
    return torch.randperm(EXAMPLES, generator=ours.order).tolist()


def test_each_worker_has_its_own_order_and_none_is_that_of_the_shards() -> None:
    sharded = problems(mlp(), shard=True)
    rows = problem(mlp(), (5,)).data.train.inputs.tolist()
    parts = [[rows.index(row) for row in ours.data.train.inputs.tolist()] for ours in sharded]
    dealt = [part[i] for i in range(len(parts[0])) for part in parts][:EXAMPLES]
    assert sorted(dealt) == list(range(EXAMPLES))
    orders = [order_of(ours) for ours in problems(mlp(), shard=False) for _ in range(3)]
    assert all(first != second for first, second in combinations([dealt, *orders], 2))


def test_the_shards_follow_from_the_seed_alone() -> None:
    """Processes that know nothing of each other's draws give the same examples to the same worker."""
    first, again = problems(mlp(), shard=True), problems(mlp(), shard=True)
    first[0].order.manual_seed(5)
    for ours, same in zip(first, again, strict=True):
        assert torch.equal(ours.data.train.inputs, same.data.train.inputs)


def test_each_worker_has_its_own_dropout_whatever_is_drawn_beside_it(tmp_path: Path) -> None:
    def drawn_by_workers(folder: Path, beside: int) -> list[Tensor]:
        with Logger(folder, "", {}, "disabled") as log:
            workers = []
            for rank, ours in enumerate(problems(Drawing(), shard=False)):
                worker = Worker(rank, ours, log, Snapshots(folder, math.inf), RECIPE, quiet=True)
                worker.base_values.add_whole_model()
                worker.set_mask(None, "kept")
                workers.append(worker)
            for steps in (2, 1):
                for worker in workers:
                    torch.rand(beside)
                    worker.train(steps, ends_epoch=False)
        return [torch.cat(worker.problem.model.drawn) for worker in workers]  # type: ignore[arg-type]

    found = drawn_by_workers(tmp_path / "a", beside=0)
    assert all(len(drawn.unique()) > 50 for drawn in found)
    assert not any(torch.equal(first, second) for first, second in combinations(found, 2))
    for drawn, alone in zip(found, drawn_by_workers(tmp_path / "b", beside=3), strict=True):
        assert torch.equal(drawn, alone)
