"""A merge of workers on this machine: what it takes to have the mean of their kept values, and of all weights."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.merge_cases import MergeCase
from benchmarks.timing import Effort, interleave, quartiles
from fishexp.distributed.torch_collectives import TorchCollectives
from fishexp.errors import FishexpError
from fishexp.system import hardware

MANY, FEW = 10_000_000, 5  # with more values than these, few rounds
TIMEOUT = 120.0  # seconds


@dataclass(frozen=True)
class MeasuredMerge:
    """One way to a merge.

    Attributes:
        values: That are merged, float32.
        sent_bytes: By each worker.
        seconds: Of the slowest worker: lower quartile, median, upper quartile.
        cores: That the workers share.
    """

    contender: str
    values: int
    sent_bytes: int
    seconds: list[float]
    rounds: int
    cores: int

    def __str__(self) -> str:
        return f"{self.contender:12} {1e3 * self.seconds[1]:.2f} ms, {self.sent_bytes:,} bytes; {self.rounds} rounds"


def measure_merges(case: MergeCase, effort: Effort) -> Iterator[MeasuredMerge]:
    """Start the workers, check that they get the mean, and time all contenders.

    Raises:
        FishexpError: If a result is wrong, or a worker ends early.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.merges"])
    with TemporaryDirectory() as folder:
        store = f"file://{Path(folder, 'store')}"
        ours, theirs = context.Pipe(duplex=False)
        processes = [
            context.Process(target=_worker, args=(case, effort, store, rank, theirs)) for rank in range(case.workers)
        ]
        try:
            for process in processes:
                process.start()
            theirs.close()  # so that the end of the first worker is the end of the pipe
            found = ours.recv()
        except EOFError:
            raise FishexpError(f"merge: a worker of {case.workers} ended; nothing was timed") from None
        finally:
            for process in processes:
                process.join()
    if isinstance(found, FishexpError):
        raise found
    yield from found


def _worker(case: MergeCase, effort: Effort, store: str, rank: int, connection: Connection) -> None:
    """One worker. The first sends what was measured, or what was wrong."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    hardware.keep_freed_memory()  # as in every run of ours
    timeout = timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=case.workers, timeout=timeout)
    try:
        found = _measured(case, effort, TorchCollectives(TIMEOUT))
    except FishexpError as error:
        found = error
    if rank == 0:
        connection.send(found)
    dist.destroy_process_group()


def _measured(case: MergeCase, effort: Effort, crew: TorchCollectives) -> list[MeasuredMerge]:
    rows = {name: torch.full((case.values(name),), 1.0 + crew.local.start) for name in case.contenders}
    calls: dict[str, Callable[[], object]] = {}
    sent = {}
    for name, row in rows.items():
        before = crew.sent
        if not (WAYS[name](crew, row) == (crew.size + 1) / 2).all():
            raise FishexpError(f"merge: {name} of {crew.size} workers is not the mean; nothing was timed")
        sent[name] = crew.sent - before
        calls[f"before {name}"] = dist.barrier
        calls[name] = partial(WAYS[name], crew, row)
    rounds = min(effort.least, FEW) if max(map(len, rows.values())) > MANY else effort.least
    same = Effort(0.0, least=rounds, warmup=1)  # as many rounds at every worker
    times = interleave(calls, same, torch.device("cpu"))
    slowest = {name: crew.gather([torch.tensor(times[name])]).amax(0).tolist() for name in rows}
    return [
        MeasuredMerge(name, len(row), sent[name], quartiles(slowest[name]), rounds, len(os.sched_getaffinity(0)))
        for name, row in rows.items()
    ]


def _ours(crew: TorchCollectives, row: Tensor) -> Tensor:
    return crew.combine([row], _mean)


def _mean(values: Tensor, _: slice) -> Tensor:
    total = values[0].clone()
    for row in values[1:]:
        total += row
    return total.div_(len(values))


def _ring(crew: TorchCollectives, row: Tensor) -> Tensor:
    return crew.add([row]).div_(crew.size)


def _dense(crew: TorchCollectives, row: Tensor) -> Tensor:
    """In place, as there is no room for a copy of all weights."""
    dist.all_reduce(row)
    crew.sent += 2 * (crew.size - 1) * -(-row.nbytes // crew.size)
    return row.div_(crew.size)


WAYS: dict[str, Callable[[TorchCollectives, Tensor], Tensor]] = {"ours": _ours, "ring": _ring, "dense": _dense}
