"""Workers that train apart: against plain loops in float64, and what each setting must and must not change."""

import json
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
from fishexp.distributed.cost import Link, MergeVolume
from fishexp.distributed.local_sgd import LocalSGD
from fishexp.distributed.worker import worker_problem
from fishexp.masks.topk import Mask
from fishexp.regimes import distributed
from fishexp.run.record import read
from fishexp.sparse.parameter import weights
from fishexp.training.collectives import InProcessCollectives
from fishexp.training.logger import Logger
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshots
from tests.support.cli import fishexp
from tests.support.training import EXAMPLES, mlp
from tests.support.training import problem as single_problem

EPOCHS, SIZE, LR, DECAY, WORKERS = 3, 4, 0.5, 0.1, 3
HEAD = ("2.weight", "2.bias")
OPTIONS: dict[str, Any] = {
    "epochs": EPOCHS, "batch_size": SIZE, "accumulate": 1, "lr": LR, "optimiser": "sgd", "weight_decay": DECAY,
    "warmup": 0, "clip": None, "drop_last": True, "evaluation_batch_size": 5, "wire": "fp32",
    "reduce": "ordered", "snapshot_steps": 1000, "bandwidth": 1, "latency": 0,
}  # fmt: skip


def problem(workers: int, **options: Any) -> Problem:
    ours = single_problem(mlp(), (5,), collectives=InProcessCollectives(workers), **options)
    return replace(ours, head=HEAD)


class Masks:
    """Stands in for a method: other random masks at every call, the head in all of them."""

    fixed, method = False, "masks"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Mask:
        return self.disjoint(1)[0]

    def check_disjoint(self) -> None:
        pass

    def count(self, workers: int) -> int:
        return 10 * workers  # for the predicted cost

    def disjoint(self, workers: int) -> list[Mask]:
        self.calls += 1
        generator = torch.Generator().manual_seed(self.calls)
        owner = {name: torch.randint(5, p.shape, generator=generator) for name, p in mlp().named_parameters()}
        return [  # not of equal size, as those of units
            {name: torch.ones_like(o) == 1 if name in HEAD else o == w for name, o in owner.items()}
            for w in range(workers)
        ]


def run(ours: Problem, folder: Path, **options: Any) -> Any:
    settings = {
        "merge": "mean",
        "masks": "same",
        "warmup_epochs": 0,
        "shard": True,
    }
    settings |= {"refresh_every": None, "sync_every": 2}
    with Logger(folder, "", {}, "disabled") as log:
        snapshots = Snapshots(folder / "snapshots", math.inf, collectives=ours.collectives)
        choose: Any = Masks()
        return distributed.train(
            ours, choose, log, snapshots, [], options.pop("decay", "kept"), **OPTIONS | settings | options
        )


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
    problems = [worker_problem(problem(workers), rank, shard=shard) for rank in range(workers)]
    models = [mlp() for _ in range(workers)]
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


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_shards_have_every_example_and_none_much_more_often(workers: int) -> None:
    whole = problem(workers)
    parts = [worker_problem(whole, rank, shard=True).data.train for rank in range(workers)]
    assert {len(part) for part in parts} == {-(-EXAMPLES // workers)}
    rows = torch.cat([part.batch(torch.arange(len(part)))[0] for part in parts])
    times = (rows[:, None] == whole.data.train.batch(torch.arange(EXAMPLES))[0]).all(-1).sum(0)
    assert int(times.min()) == 1
    assert int(times.sum()) == workers * -(-EXAMPLES // workers)
    assert int(times.max()) <= 2


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


SMALL = ("data.train_limit=160", "data.valid_limit=64", "regime.batch_size=16", "regime.epochs=2", "threads=1")
TWO = ("regime=distributed", "regime.backend=simulated", "regime.sync_every=2", *SMALL)


def trained(folder: str) -> dict[str, Tensor]:
    (found,) = Path(folder).glob("*/*/*/*")
    return library.load_run(found)[0].state_dict()


def assert_same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize(
    "more", [("method=fish",), ("method=full",), ("method=bitfit",), ("decay=all",), ("compat=fish",)]
)
def test_one_worker_is_transfer_to_the_bit(more: tuple[str, ...], here: Path) -> None:
    single = (
        "regime.workers=1",
        "regime.refresh_every=null",
        "regime.merge=sum",
        "regime.wire=bf16",
        "regime.sync_every=3",
    )
    assert fishexp(*TWO, *single, *more, "outputs=single").status == 0
    assert fishexp("regime=transfer", *SMALL, *more, "outputs=plain").status == 0
    assert_same_bits(trained("single"), trained("plain"))
    found, expected = (next(Path(outputs).glob("*/*/*/*/metrics.jsonl")).read_text() for outputs in ("single", "plain"))
    assert found == expected
    (record,), (other,) = records_of("single"), records_of("plain")
    assert record["kept"] == other["kept"]
    assert record["bytes"]["sent"] == 0


def records_of(outputs: str) -> list[dict[str, Any]]:
    return list(read(Path(outputs) / "records.jsonl"))


def merging(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[dict[str, Tensor]], dict[str, Tensor]]]:
    """Of each merge: after how many steps, what the workers had, and what all have afterwards."""
    seen = []
    original = LocalSGD._merge

    def merge(self: LocalSGD, step: int) -> None:
        models = [worker.problem.model for worker in self.workers]
        had = [{name: t.clone() for name, t in model.state_dict().items()} for model in models]
        original(self, step)
        all_have = [model.state_dict() for model in models]
        for have in all_have[1:]:
            for name, tensor in have.items():
                assert torch.equal(tensor, all_have[0][name]), name
        seen.append((step, had, {name: t.clone() for name, t in all_have[0].items()}))

    monkeypatch.setattr(LocalSGD, "_merge", merge)
    return seen


def test_running_statistics_and_the_head_are_averaged_and_all_hold_the_same(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = merging(monkeypatch)
    assert fishexp(*TWO, "regime.masks=disjoint", "regime.merge=sum", "regime.workers=3").status == 0
    assert [step for step, _, _ in seen] == [2, 4, 6]  # 54 of 160 examples each: 3 steps an epoch
    for _, had, have in seen:
        for name, tensor in have.items():
            if "running" in name or name.startswith("fc."):
                mean = torch.stack([state[name].double() for state in had]).mean(0).float()
                assert torch.equal(tensor, mean), name
                assert not torch.equal(had[0][name], had[1][name])


ORIGINAL = (
    "compat=fish",
    "data.train_limit=160",
    "regime.warmup_epochs=1",
    "regime.shard=false",
    "regime.sync_every=4",
)


def test_the_originals_traps_are_there_under_compat_only(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 steps an epoch: the empty batch counts, the mask comes from a stale model, the head's steps are added up."""
    seen = merging(monkeypatch)
    scored: list[tuple[int, dict[str, Tensor]]] = []
    original = LocalSGD._select_masks

    def remask(self: LocalSGD) -> None:
        with self.shared_state.applied():
            state = {name: t.clone() for name, t in self.problem.model.state_dict().items()}
        scored.append((self.workers[0].trainer.progress.steps, state))
        original(self)

    monkeypatch.setattr(LocalSGD, "_select_masks", remask)
    options = (*ORIGINAL, "regime.merge=sum", "method=fish", "method.samples=8")
    assert fishexp(*TWO, *options, "outputs=theirs").status == 0
    assert [step for step, _, _ in seen] == [4, 8, 11, 15, 19, 20]  # counts 4, 8, 12 ... of 11 an epoch
    (step, stale), *_ = scored
    assert step == 10
    weights_of = [name for name in stale if "num_batches" not in name]
    assert all(torch.equal(stale[name], seen[1][2][name]) for name in weights_of)
    _, had, have = seen[3]
    before = seen[2][2]["fc.weight"].double()
    doubled = before + sum(state["fc.weight"].double() - before for state in had)
    assert torch.equal(have["fc.weight"], doubled.float())
    dense = [int((seen[2][2][name] != seen[1][2][name]).sum()) for name in weights_of]
    assert sum(dense) > 300_000  # the first merge after the warm-up brings all that it moved

    seen.clear()
    scored.clear()
    assert fishexp(*TWO, *options[1:], "outputs=ours").status == 0
    assert [step for step, _, _ in seen] == [4, 8, 10, 12, 16, 20]
    (step, fresh), *_ = scored
    assert all(torch.equal(fresh[name], seen[2][2][name]) for name in fresh)
    _, had, have = seen[3]
    assert torch.equal(have["fc.weight"], torch.stack([s["fc.weight"].double() for s in had]).mean(0).float())


@pytest.mark.slow
def test_the_originals_random_masks_are_disjoint_and_their_steps_halved(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = merging(monkeypatch)
    options = ("method=random", "regime.warmup_epochs=0", "keep=0.02")
    for compat, kept in ("fish", 6_161 * 2 - 1_290), ("none", 6_161):
        seen.clear()
        assert fishexp(*TWO, *ORIGINAL, *options, f"compat={compat}", f"outputs={compat}").status == 0
        assert records_of(compat)[0]["kept"] == kept
        (_, _, before), (_, had, have), *_ = seen
        for name in [name for name, tensor in before.items() if tensor.dim() == 4]:
            rows, start = torch.stack([s[name] for s in had]), before[name]
            moved = (rows != start).sum(0)
            if compat == "fish":
                assert moved.max() <= 1
                only = rows.gather(0, (rows != start).int().argmax(0, keepdim=True))[0]
                assert torch.equal(have[name], torch.where(moved == 1, start + (only - start) / 2, start))
            else:
                assert ((moved == 0) | (moved == 2)).double().mean() > 0.999
                assert torch.equal(have[name], rows.double().mean(0).float())


def test_what_is_sent_is_the_kept_values_and_the_running_statistics(here: Path) -> None:
    """2 (n-1)/n of each, a header, nothing else; bf16 halves the values."""
    sizes = {}
    for wire in ("fp32", "bf16"):
        options = ("regime.workers=3", f"regime.wire={wire}", "method=random", "keep=0.02")
        assert fishexp(*TWO, *options, f"outputs={wire}").status == 0
        (record,) = records_of(wire)
        sizes[wire] = record["bytes"]
    network = library.load_run(next(Path("fp32").glob("*/*/*/*")))[0]
    floats = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    entries = sum(buffer.numel() for buffer in floats)
    buffers = 4 * 2 * (3 - 1) * -(-entries // 3)
    header = 2 * 8 * (4 + 1)
    own = MergeVolume(308_074, 6_161, 1_290, len(floats), entries, disjoint=False, value_bytes=4)  # as it was predicted
    assert own.cost(3, Link(1, 0)).bytes == sizes["fp32"]["per_merge"]
    assert own._replace(value_bytes=2).cost(3, Link(1, 0)).bytes == sizes["bf16"]["per_merge"]
    assert sizes["fp32"]["per_merge"] == 4 * 2 * 2 * -(-6_161 // 3) + buffers + header
    assert sizes["bf16"]["per_merge"] == 2 * 2 * 2 * -(-6_161 // 3) + buffers + header
    assert sizes["fp32"]["merges"] == 3
    assert sizes["fp32"]["sent"] == 3 * sizes["fp32"]["per_merge"] + 2 * header  # all met after epoch 1 and at the end
    total = 308_074 + entries
    assert sizes["fp32"]["dense_merge"] == pytest.approx(2 * 2 / 3 * 4 * total, rel=1e-5)


def test_mistakes(here: Path) -> None:
    assert (
        "names its weights itself; take regime.masks=same"
        in fishexp(*TWO, "method=bitfit", "regime.masks=disjoint").mistake()
    )
    assert "leaves no epoch with a mask" in fishexp(*TWO, "regime.warmup_epochs=2").mistake()
    assert "lower keep or workers" in fishexp(*TWO, "regime.masks=disjoint", "keep=0.6").mistake()
    assert "method.samples=1 leaves some of 2 workers nothing to score" in fishexp(*TWO, "method.samples=1").mistake()
    assert "raise keep" in fishexp(*TWO, "regime.masks=disjoint", "method=random", "keep=0.001").mistake()
    assert "take regime.reduce=ordered" in fishexp(*TWO, "regime.reduce=ring", "regime.merge=sum").mistake()
    few = "regime.workers=65", "data.train_limit=64"
    assert "there are only 64 training examples" in fishexp(*TWO, *few).mistake()
    assert "regime.merge=median" in fishexp(*TWO, "regime.merge=median").mistake()


def test_a_worker_that_breaks_down_is_named(here: Path) -> None:
    """At the next merge, or as the epoch ends where that is sooner: no worker trains on in vain."""
    result = fishexp(*TWO, "regime.lr=1e30")
    assert result.status == 1
    assert "worker 0: a weight is not finite after step 2; lower regime.lr" in result.err
    (record,) = records_of("outputs")
    assert record["status"] == "failed"
    result = fishexp(*TWO, "regime.lr=1e30", "regime.sync_every=1000", "outputs=rare")
    assert "worker 0: epoch 1: the loss is not finite at step" in result.err


def test_a_worker_that_holds_other_weights_is_found_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LocalSGD._merge

    def merge(self: LocalSGD, step: int) -> None:
        original(self, step)
        if step == 4:
            with torch.no_grad():
                weight = self.workers[1].problem.model.state_dict()["fc.bias"]
                weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
            self.synchronizer._update_digests()

    monkeypatch.setattr(LocalSGD, "_merge", merge)
    result = fishexp(*TWO)
    assert result.status == 1
    assert "worker 1 has other weights than worker 0" in result.err


def test_epochs_without_a_merge_report_what_all_have_in_common(here: Path) -> None:
    options = ("regime.epochs=4", "regime.sync_every=12", "regime.refresh_every=null")  # 5 steps an epoch
    assert fishexp(*TWO, *options).status == 0
    (file,) = Path("outputs").glob("*/*/*/*/metrics.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0]["loss"] == lines[1]["loss"] != lines[2]["loss"] != lines[3]["loss"]
    assert fishexp(*SMALL, "regime.epochs=0", "outputs=none").status == 0
    assert records_of("none")[0]["metrics"]["loss"] == lines[0]["loss"]
