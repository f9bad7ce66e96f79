"""Processes that train one model together end as one process does, write one run, and end together."""

import math
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fishexp.delta import Delta
from fishexp.errors import FishexpError, RunFailed
from fishexp.masks.topk import Mask, top_k
from fishexp.methods import diff_pruning, fish, gradient, largest_change
from fishexp.regimes import transfer
from fishexp.run.record import read
from fishexp.sparse.parameter import weights
from fishexp.training.collectives import Collectives
from fishexp.training.logger import Logger
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshots
from fishexp.training.trainable import Decay
from tests.support.cases import CLASSES
from tests.support.launched import ROOT, ended, free_port, lay_out, torchrun, wait_for
from tests.support.program import Program
from tests.support.training import ALL_EPOCHS, mlp, problem
from tests.support.workers import Workers

# 22 examples in batches of 7 leave a last batch of a single one, of which the second process has none
OPTIONS = {
    "epochs": 3, "batch_size": 7, "accumulate": 1, "lr": 0.3, "optimiser": "sgd", "weight_decay": 0.1, "warmup": 1.0,
    "clip": None, "drop_last": False, "evaluation_batch_size": 5, **ALL_EPOCHS,
}  # fmt: skip
CASES: dict[str, tuple[Decay, dict[str, Any]]] = {
    "sgd": ("kept", {}),
    "every weight decays": ("all", {"weight_decay": 0.2}),
    "adamw": ("kept", {"optimiser": "adamw", "lr": 0.01}),
    "clipped": ("kept", {"accumulate": 2, "clip": 0.2}),
}


class Unused(nn.Module):
    """Compute what ``mlp`` does, and nothing with another layer, whose weights get no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = mlp(), nn.Linear(3, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class Dropping(nn.Module):
    """Drop half of the hidden units, and keep the statistics of what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.net = nn.BatchNorm1d(5).double(), mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](nn.functional.dropout(self.net[:2](self.norm(x)), training=self.training))  # type: ignore[index]


def some(model: nn.Module) -> Mask:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.rand(p.shape, generator=generator) < 0.4 for name, p in model.named_parameters()}


def together(collectives: Collectives | None, model: nn.Module) -> Problem:
    if collectives is None:
        return problem(model, (5,))
    return problem(model, (5,), collectives=collectives, data_parallel=True)


def train(
    ours: Problem,
    mask: Mask,
    folder: Path,
    decay: Decay = "kept",
    *,
    snapshots: Snapshots | None = None,
    **options: Any,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train, and return the weights and the metrics."""
    snapshots = snapshots or Snapshots(folder / "snapshots", minutes=math.inf)
    resumed = snapshots.load()
    with Logger(folder, "", {}, "disabled", rank=ours.rank) as log:
        outcome = transfer.train(ours, lambda: mask, log, snapshots, resumed, decay, **OPTIONS | options)  # type: ignore[arg-type]
    found = {name: p.detach().clone() for name, p in weights(ours.model).items()}
    return found | {name: buffer.clone() for name, buffer in ours.model.named_buffers()}, outcome.evaluation.metrics


def every_case(collectives: Collectives | None, folder: Path) -> None:
    """Train in every way, and score; what was found is written to a file of the process."""
    found: dict[str, Any] = {}
    for name, (decay, options) in CASES.items():
        ours = together(collectives, Unused())
        found[name] = train(ours, some(ours.model), folder, decay, **options)
    ours = together(collectives, mlp())
    found["fish"] = top_k(fish.scores(ours, samples=13, labels="true_label", power="square"), 0.3)
    ours = together(collectives, mlp())
    found["gradient"] = top_k(gradient.scores(ours, samples=13), 0.3)
    options = {key: OPTIONS[key] for key in ("epochs", "lr", "optimiser", "batch_size", "accumulate", "weight_decay")}
    options |= {key: OPTIONS[key] for key in ("warmup", "clip", "drop_last")}
    ours = together(collectives, mlp())
    found["change"] = dict(largest_change.scores(ours, **{f"full_{key}": value for key, value in options.items()}))
    stage_1 = {f"stage1_{key}": OPTIONS[key] for key in ("epochs", "lr", "batch_size", "accumulate", "drop_last")}
    learned = diff_pruning.scores(
        together(collectives, mlp()), structured=True, penalty="code", penalty_weight=1e-3, **stage_1
    )
    found["gates"] = dict(learned) | {f"start of {name}": start for name, start in learned.start.items()}
    torch.save(found, folder / f"{ours.rank}.pt")


def test_processes_end_as_one_does(tmp_path: Path) -> None:
    every_case(None, tmp_path)
    expected = torch.load(tmp_path / "0.pt")
    with Workers(3, tmp_path, every_case, tmp_path) as workers:
        workers.results()
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    _, *gates = (found.pop("gates") for found in (expected, *results))  # one process alone draws others
    assert all(torch.equal(own[name], score) for own in gates for name, score in gates[0].items())
    for found in results:
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        for name in CASES:  # the same bits in every process
            assert all(torch.equal(p, results[0][name][0][weight]) for weight, p in found[name][0].items())
    assert torch.equal(results[1]["sgd"][0]["unused.weight"], Unused().unused.weight)  # no gradient, so no decay


def bytes_of_a_step(collectives: Collectives, folder: Path) -> list[int]:
    """Train for 4 steps with few and with many entries, and count what a worker sends."""
    sent = []
    for share in (0.1, 0.9):
        torch.manual_seed(0)
        ours = together(collectives, nn.Linear(5, CLASSES).double())
        mask = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in ours.model.named_parameters()}
        mask["weight"].flatten()[: int(share * mask["weight"].numel())] = True
        before = collectives.bytes_sent
        train(ours, mask, folder, epochs=1)
        sent += [collectives.bytes_sent - before]
    return sent


def test_only_kept_entries_travel(tmp_path: Path) -> None:
    with Workers(2, tmp_path, bytes_of_a_step, tmp_path) as workers:
        few, many = workers.results()[0]
    entries = int(0.9 * 5 * CLASSES) - int(0.1 * 5 * CLASSES)
    assert abs(many - few - 4 * 8 * entries) <= 4 * 8  # 4 steps of 8 bytes an entry; rounding


def resumes(collectives: Collectives, folder: Path) -> None:
    """Train with dropout and BatchNorm, and once more from the last snapshot but one."""
    found = []
    for _ in range(2):
        ours = together(collectives, Dropping())
        snapshots = Snapshots(folder / "snapshots", minutes=math.inf if ours.rank else 0)
        found.append(train(ours, some(ours.model), folder, snapshots=snapshots, batch_size=8)[0])
        collectives.all_gather([torch.zeros(1)])
        if ours.rank == 0:
            shutil.rmtree(max((folder / "snapshots").iterdir()))
        collectives.all_gather([torch.zeros(1)])
    torch.save([*found, torch.get_rng_state()], folder / f"{collectives.local_ranks[0]}.pt")


def test_processes_resume_to_the_bit_from_one_snapshot(tmp_path: Path) -> None:
    with Workers(2, tmp_path, resumes, tmp_path) as workers:
        workers.results()
    (first, again, stream), (other, other_again, other_stream) = (torch.load(tmp_path / f"{n}.pt") for n in (0, 1))
    for found in (again, other, other_again):  # running statistics too
        assert [name for name, tensor in first.items() if not torch.equal(found[name], tensor)] == []
    assert not torch.equal(stream, other_stream)  # each drops other units


def differing(collectives: Collectives, folder: Path) -> str:
    """Train with a mask of its own, or a first value of its own; in batches too small."""
    ours = together(collectives, mlp())
    mask, said = some(ours.model), []
    if ours.rank == 1:
        mask["0.weight"][0] = ~mask["0.weight"][0]
    with pytest.raises(RunFailed) as error:
        train(ours, mask, folder)
    said.append(str(error.value))
    ours = together(collectives, mlp())
    if ours.rank == 1:
        nn.init.zeros_(ours.model[0].weight)  # type: ignore[index]
    with pytest.raises(RunFailed) as error:
        train(ours, some(ours.model), folder)
    said.append(str(error.value))
    with pytest.raises(FishexpError) as mistake:
        train(together(collectives, mlp()), some(ours.model), folder, batch_size=1)
    said.append(str(mistake.value))
    with pytest.raises(FishexpError) as mistake:
        train(together(collectives, Dropping()), some(Dropping()), folder, batch_size=3, drop_last=True)
    return "\n".join([*said, str(mistake.value)])


def test_what_cannot_be_trained_together_is_refused_by_all(tmp_path: Path) -> None:
    with Workers(2, tmp_path, differing, tmp_path) as workers:
        first, second = workers.results()
    assert first == second
    mask, values, small, alone = first.split("\n")
    assert mask.startswith("process 1 has another mask than process 0 as training begins")
    assert values.startswith("process 1 has other values than process 0 as training begins")
    assert small == ("regime.batch_size=1 leaves some of 2 processes without an example; raise it, or start at most 1")
    assert alone.startswith("regime.batch_size=3 leaves batches of 1 for one of 2 processes, whose variance BatchNorm")


TINY = (
    "--config-dir=conf", "data=tiny", "model=tiny", "keep=0.2", "threads=1", "method.samples=16", "regime.epochs=3",
    "regime.batch_size=8", "regime.lr=0.05",
)  # fmt: skip


@contextmanager
def processes(folder: Path, *arguments: str) -> Iterator[tuple[Program, Program]]:
    """Start two processes of the command line, with variables as torchrun or srun sets them; kill them in the end."""
    port, size = str(free_port()), "2"
    common = {"PYTHONPATH": str(ROOT), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    common |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    variables = [os.environ | common | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    command = ("fishexp", *TINY, *arguments)
    with (
        Program(*command, folder=folder, environment=variables[0]) as first,
        Program(*command, folder=folder, environment=variables[1]) as second,
    ):
        yield first, second


def ended_well(folder: Path, *arguments: str) -> str:
    """Run two processes to their end, and return what they print."""
    with processes(folder, *arguments) as (first, second):
        (status, out, err), (other, quiet, quiet_err) = ended(first), ended(second)
    assert (status, other) == (0, 0), err + quiet_err
    assert quiet == quiet_err == ""
    assert "fishexp:" not in err
    return out


def only_run(folder: Path) -> Path:
    (found,) = (folder / "outputs").glob("tiny/*/*/*")
    return found


def test_processes_write_one_run(tmp_path: Path) -> None:
    """And its record says how many there were; the same command skips it."""
    lay_out(tmp_path)
    out = ended_well(tmp_path)
    assert "2 processes with a share of every batch" in out
    assert out.count("epoch 3:") == 1
    (record,) = read(tmp_path / "outputs" / "records.jsonl")
    assert (record["status"], record["processes"]) == ("finished", 2)
    assert len((only_run(tmp_path) / "metrics.jsonl").read_text().splitlines()) == 3
    assert not (only_run(tmp_path) / "snapshots").exists()
    assert Delta.load(only_run(tmp_path) / "delta.safetensors")
    assert "is done already" in ended_well(tmp_path, "resume=true")
    assert len(list(read(tmp_path / "outputs" / "records.jsonl"))) == 1


def test_a_killed_process_ends_the_other_and_both_resume(tmp_path: Path) -> None:
    lay_out(tmp_path)
    arguments = ("model.pause=0.02", "snapshot_minutes=0", "resume=true")
    ended_well(tmp_path, *arguments, "outputs=whole")
    with processes(tmp_path, *arguments) as (first, second):
        assert wait_for(lambda: list((tmp_path / "outputs").glob("tiny/*/*/*/snapshots/00000002*")), 60)
        os.kill(second.pid, signal.SIGKILL)
        status, _, err = ended(first, within=60)
    assert status == 1
    assert err.splitlines()[-1].startswith("fishexp: another worker of the run is gone")
    assert err.count("fishexp:") == 1
    (record,) = read(tmp_path / "outputs" / "records.jsonl")
    assert record["status"] == "failed"
    assert "continued from a snapshot after" in ended_well(tmp_path, *arguments)
    whole, resumed = (next((tmp_path / folder).glob("tiny/*/*/*")) for folder in ("whole", "outputs"))
    assert (whole / "delta.safetensors").read_bytes() == (resumed / "delta.safetensors").read_bytes()


@pytest.mark.slow
def test_torchrun_starts_processes_that_train_together(tmp_path: Path) -> None:
    lay_out(tmp_path)
    command = torchrun(0, free_port(), 1)
    command = tuple("--nproc-per-node=2" if part.startswith("--nproc") else part for part in command)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with Program(*command, *TINY, folder=tmp_path, environment=environment) as process:
        status, out, err = ended(process)
    assert status == 0, err
    assert out.count("epoch 3:") == 1
    (record,) = read(tmp_path / "outputs" / "records.jsonl")
    assert (record["status"], record["processes"]) == ("finished", 2)
