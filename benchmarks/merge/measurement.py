"""Measurement of merges: the time that workers take to have the mean of their kept values, and of all weights."""

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

from benchmarks.merge.case import MergeCase
from benchmarks.timing import Effort, interleave, quartiles, single_thread
from fishexp.distributed.torch_collectives import TorchCollectives
from fishexp.errors import FishexpError
from fishexp.system import hardware

MANY = 10_000_000  # values of a contender above which there are few rounds
FEW = 5  # rounds
TIMEOUT = 120.0  # seconds that a worker may be silent


@dataclass(frozen=True)
class MergeResult:
    """Hold the time and the traffic of a merge.

    Attributes:
        values: Number of float32 values that are merged.
        sent_bytes: Bytes that each worker sends.
        seconds: Lower quartile, median and upper quartile of the slowest worker's time.
        cores: Number of cores that the workers share.
    """

    contender: str
    values: int
    sent_bytes: int
    seconds: list[float]
    rounds: int
    cores: int

    def __str__(self) -> str:
        return f"{self.contender:12} {1e3 * self.seconds[1]:.2f} ms, {self.sent_bytes:,} bytes; {self.rounds} rounds"


def measure(case: MergeCase, device: torch.device, effort: Effort) -> Iterator[MergeResult]:
    """Start the workers, each with one thread, check that they get the mean, and time all contenders.

    Raises:
        FishexpError: If a result is wrong, or a worker ends early.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.merge.measurement"])
    with single_thread(), TemporaryDirectory() as folder:
        store = f"file://{Path(folder, 'store')}"
        receiver, sender = context.Pipe(duplex=False)
        processes = [
            context.Process(target=_work, args=(case, device, effort, store, rank, sender))
            for rank in range(case.workers)
        ]
        try:
            for process in processes:
                process.start()
            sender.close()  # so that the pipe ends when the worker of rank 0 does
            results = receiver.recv()
        except EOFError:
            raise FishexpError(f"merge: a worker of {case.workers} ended; nothing was timed") from None
        finally:
            for process in processes:
                process.join()
        if isinstance(results, FishexpError):
            raise results
        yield from results


def _work(case: MergeCase, device: torch.device, effort: Effort, store: str, rank: int, connection: Connection) -> None:
    """Run a worker. The worker of rank 0 sends the results, or the error."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    hardware.keep_freed_memory()  # as in every run of fishexp
    timeout = timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=case.workers, timeout=timeout)
    try:
        results = time_merges(case, device, effort, TorchCollectives(TIMEOUT))
    except FishexpError as error:
        results = error
    if rank == 0:
        connection.send(results)
    dist.destroy_process_group()


def time_merges(
    case: MergeCase, device: torch.device, effort: Effort, collectives: TorchCollectives
) -> list[MergeResult]:
    """Check and time all contenders, in a worker.

    Raises:
        FishexpError: If a contender does not give the mean.
    """
    size = collectives.world_size
    rows = {
        name: torch.full((case.values(name),), 1.0 + collectives.local_ranks.start, device=device)
        for name in case.contenders
    }
    calls: dict[str, Callable[[], object]] = {}
    sent = {}
    for name, row in rows.items():
        before = collectives.bytes_sent
        if not (CONTENDERS[name](collectives, row) == (size + 1) / 2).all():
            raise FishexpError(f"merge: {name} of {size} workers is not the mean; nothing was timed")
        sent[name] = collectives.bytes_sent - before
        calls[f"before {name}"] = dist.barrier
        calls[name] = partial(CONTENDERS[name], collectives, row)
    rounds = min(effort.least, FEW) if max(map(len, rows.values())) > MANY else effort.least
    fixed = Effort(0.0, least=rounds, warmup=1)  # so that all workers run equally many rounds
    times = interleave(calls, fixed, device)
    slowest = {name: collectives.all_gather([torch.tensor(times[name])]).amax(0).tolist() for name in rows}
    return [
        MergeResult(name, len(row), sent[name], quartiles(slowest[name]), rounds, len(os.sched_getaffinity(0)))
        for name, row in rows.items()
    ]


def _ours(collectives: TorchCollectives, row: Tensor) -> Tensor:
    return collectives.ordered_all_reduce([row], _mean)


def _mean(values: Tensor, _: slice) -> Tensor:
    total = values[0].clone()
    for row in values[1:]:
        total += row
    return total.div_(len(values))


def _ring(collectives: TorchCollectives, row: Tensor) -> Tensor:
    return collectives.all_reduce([row]).div_(collectives.world_size)


def _dense(collectives: TorchCollectives, row: Tensor) -> Tensor:
    """Average in place, as there is no room for a copy of all weights."""
    dist.all_reduce(row)
    collectives.bytes_sent += 2 * (collectives.world_size - 1) * -(-row.nbytes // collectives.world_size)
    return row.div_(collectives.world_size)


CONTENDERS: dict[str, Callable[[TorchCollectives, Tensor], Tensor]] = {"ours": _ours, "ring": _ring, "dense": _dense}
