"""Workers that train apart: against plain loops in float64, and what each setting must and must not change."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fishexp as library
from fishexp.crew import Together
from fishexp.kept import weights
from fishexp.masks import Mask
from fishexp.problem import Problem
from fishexp.regimes import distributed
from fishexp.snapshots import Snapshots
from fishexp.tracking import Log
from fishexp.worker import problem_of
from tests import test_training as plain
from tests.cli import fishexp

EPOCHS, SIZE, LR, DECAY, WORKERS = 3, 4, 0.5, 0.1, 3
HEAD = ("2.weight", "2.bias")
OPTIONS: dict[str, Any] = {
    "epochs": EPOCHS, "batch_size": SIZE, "accumulate": 1, "lr": LR, "optimiser": "sgd", "weight_decay": DECAY,
    "warmup": 0, "clip": None, "drop_last": True, "evaluation_batch_size": 5, "backend": "simulated", "wire": "fp32",
    "reduce": "ordered", "snapshot_steps": 1000, "restarts": 0, "timeout": 1, "bandwidth": 1, "latency": 0,
}  # fmt: skip


class Rows(plain.Rows):
    def subset(self, index: Tensor) -> "Rows":
        return Rows(self.inputs[index], self.labels[index])


def problem(workers: int, **options: Any) -> Problem:
    ours = plain.problem(plain.mlp(), (5,), crew=Together(workers), **options)
    rows = Rows(ours.data.train.inputs, ours.data.train.labels)
    return replace(ours, head=HEAD, data=replace(ours.data, train=rows))


class Masks:
    """Stands in for a method: other random masks at every call, the head in all of them."""

    fixed, method = False, "masks"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Mask:
        return self.disjoint(1)[0]

    def disjoint(self, workers: int) -> list[Mask]:
        self.calls += 1
        generator = torch.Generator().manual_seed(self.calls)
        owner = {name: torch.randint(5, p.shape, generator=generator) for name, p in plain.mlp().named_parameters()}
        masks = [
            {name: torch.ones_like(o) == 1 if name in HEAD else o == w for name, o in owner.items()}
            for w in range(workers)
        ]
        if workers > 1:  # the regime relies on masks of equal size, as `split` makes them
            fewest = min(sum(int(m[n].sum()) for n in m) for m in masks)
            for mask in masks:
                over = sum(int(kept.sum()) for kept in mask.values()) - fewest
                flat = mask["0.weight"].view(-1)
                flat[flat.nonzero().flatten()[:over]] = False
        return masks


def run(ours: Problem, folder: Path, **options: Any) -> Any:
    settings = {"workers": ours.crew.size, "merge": "mean", "masks": "same", "warmup_epochs": 0, "shard": True}
    settings |= {"refresh_every": None, "sync_every": 2}
    with Log(folder, "", {}, "disabled") as log:
        snapshots = Snapshots(folder / "snapshots", math.inf, crew=ours.crew)
        return distributed.train(
            ours, Masks(), log, snapshots, options.pop("decay", "kept"), **OPTIONS | settings | options
        )  # type: ignore[arg-type]


def reference(
    workers: int,
    *,
    sync_every: int,
    merge: str,
    masks: str,
    warmup_epochs: int,
    refresh_every: int | None,
    shard: bool,
    decay: str = "kept",
) -> nn.Module:
    """The regime spelled out: models that take turns, dense gradients times masks, merges of whole tensors."""
    problems = [problem_of(problem(workers), rank, shard=shard) for rank in range(workers)]
    models = [plain.mlp() for _ in range(workers)]
    common = {name: p.detach().clone() for name, p in models[0].named_parameters()}
    momentum = [{name: torch.zeros_like(p) for name, p in common.items()} for _ in range(workers)]
    used = len(problems[0].data.train) // SIZE * SIZE
    steps = used // SIZE
    source = Masks()

    def new_masks() -> list[Mask]:
        found = source.disjoint(workers) if masks == "disjoint" else [source()] * workers
        for worker, mask in enumerate(found):
            for name in common if decay == "kept" else ():
                momentum[worker][name] *= mask[name]
        return found

    everything = [{name: torch.ones_like(p) == 1 for name, p in common.items()}] * workers
    current = everything if warmup_epochs else new_masks()
    merges = 0
    orders: list[Sequence[Tensor]] = []
    for t in range(EPOCHS * steps):
        if t % steps == 0:
            orders = [torch.randperm(len(p.data.train), generator=p.order)[:used].split(SIZE) for p in problems]
        for worker, model in enumerate(models):
            index = orders[worker][t % steps]
            rows = problems[worker].data.train
            model.zero_grad()
            F.cross_entropy(model(rows.inputs[index]), rows.labels[index]).backward()
            with torch.no_grad():
                for name, p in model.named_parameters():
                    mask = current[worker][name]
                    assert p.grad is not None
                    gradient = p.grad * mask + DECAY * p * (mask if decay == "kept" else 1)
                    momentum[worker][name].mul_(0.9).add_(gradient)
                    p -= LR * (1 - t / (EPOCHS * steps)) * (gradient + 0.9 * momentum[worker][name])
        done = t + 1
        if done % sync_every and done != warmup_epochs * steps and done != EPOCHS * steps:
            continue
        for name, before in common.items():
            rows_of = torch.stack([dict(model.named_parameters())[name].detach() for model in models])
            if masks == "disjoint" and current is not everything and name not in HEAD and decay == "kept":
                new = before + (rows_of - before).sum(0)  # each entry moved on one worker at most
            elif merge == "mean" or name in HEAD:
                new = rows_of.mean(0)
            else:
                new = before + (rows_of - before).sum(0)
            common[name] = new
        with torch.no_grad():
            for model in models:
                for name, p in model.named_parameters():
                    p.copy_(common[name])
        if done == warmup_epochs * steps:
            current = new_masks()
        elif current is not everything:
            merges += 1
            if refresh_every and merges % refresh_every == 0 and done < EPOCHS * steps:
                current = new_masks()
    return models[0]


@pytest.mark.parametrize("decay", ["kept", "all"])
@pytest.mark.parametrize("warmup_epochs", [0, 1])
@pytest.mark.parametrize("masks", ["same", "disjoint"])
@pytest.mark.parametrize("merge", ["mean", "sum"])
def test_training_equals_the_plain_loop(merge: str, masks: str, warmup_epochs: int, decay: str, tmp_path: Path) -> None:
    shard = merge == "mean"
    settings: dict[str, Any] = {
        "merge": merge,
        "masks": masks,
        "warmup_epochs": warmup_epochs,
        "shard": shard,
        "decay": decay,
    }
    settings |= {"sync_every": 2 if shard else 4, "refresh_every": 1 if shard else None}
    ours = problem(WORKERS)
    run(ours, tmp_path, **settings)
    for found, expected in zip(weights(ours.model).values(), reference(WORKERS, **settings).parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


SMALL = ("data.train_limit=160", "data.valid_limit=64", "regime.batch_size=16", "regime.epochs=2", "threads=1")
TWO = ("regime=distributed", "regime.backend=simulated", "regime.sync_every=2", *SMALL)


def trained(folder: str) -> dict[str, Tensor]:
    (found,) = Path(folder).glob("*/*/*/*")
    return library.load_run(found)[0].state_dict()


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(
    "more", [("method=fish",), ("method=full",), ("method=bitfit",), ("decay=all",), ("compat=fish",)]
)
def test_one_worker_is_transfer_to_the_bit(more: tuple[str, ...], here: Path) -> None:
    one = ("regime.workers=1", "regime.refresh_every=null", "regime.merge=sum", "regime.wire=bf16")
    assert fishexp(*TWO, *one, *more, "outputs=one").status == 0
    assert fishexp("regime=transfer", *SMALL, *more, "outputs=plain").status == 0
    assert_same_bits(trained("one"), trained("plain"))
    (found,) = [[line.read_text() for line in Path(o).glob("*/*/*/*/metrics.jsonl")] for o in ("one",)]
    (expected,) = [[line.read_text() for line in Path(o).glob("*/*/*/*/metrics.jsonl")] for o in ("plain",)]
    assert found == expected
    record, other = (next(iter(plain_records)) for plain_records in (records_of("one"), records_of("plain")))
    assert record["kept"] == other["kept"]
    assert record["bytes"]["sent"] == 0


def records_of(outputs: str) -> list[dict[str, Any]]:
    from fishexp.record import read

    return list(read(Path(outputs) / "records.jsonl"))
