"""Which worker of a run torchrun made of this process.

What torchrun does before there are workers is its own: a machine that does not come ends it after
``--rdzv-conf=timeout=SECONDS`` (15 minutes if not given), a port that is taken ends it at once, and the last line that
it writes says so. Its store, and the workers' connections, are open to whoever reaches the machines, and its rendezvous
``c10d`` unpickles what it finds there: use it in a network that you trust.
"""

import itertools
import os
import time
import uuid
from datetime import timedelta
from functools import cache
from pathlib import Path

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fishexp.errors import FishexpError, RunFailed
from fishexp.run.launch.context import Context, longest_start, redirect
from fishexp.run.settings import Config

_runs = itertools.count()  # of this process: all workers go through a sweep in the same order


def member(config: Config, folder: Path) -> Context:
    """The part of this process in the next run; all workers are there when it returns.

    Args:
        folder: Of the run. All workers but the first have nothing more to say on the screen.

    Raises:
        FishexpError: If this is not a run of as many workers.
        RunFailed: If the others cannot be found.
    """
    rank, size, regime = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), config["regime"]
    if rank > 0:
        redirect(folder, rank, (1, 2))
    if regime.get("backend") != "processes":
        raise FishexpError(
            f"torchrun started {size} workers, and this run has one process; "
            "take regime=distributed with regime.backend=processes, or leave torchrun away"
        )
    if regime["workers"] != size:
        raise FishexpError(f"regime.workers={regime['workers']}: torchrun started {size}; leave regime.workers away")
    timeout, run = regime["timeout"], f"run{next(_runs)}"
    store, start = _met(rank, size, longest_start(timeout))
    return Context(
        rank=rank,
        size=size,
        local_rank=int(os.environ["LOCAL_RANK"]),
        local_size=int(os.environ["LOCAL_WORLD_SIZE"]),
        node=int(os.environ.get("GROUP_RANK", "0")),
        store=PrefixStore(run, store),
        met=PrefixStore(f"start{start}/{run}", store),
        lost="a worker was lost" if start > 1 else "",
        retried=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        < int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")),
        timeout=timeout,
    )


@cache
def _met(rank: int, size: int, timeout: float) -> tuple[Store, int]:
    """The store that lasts as long as torchrun, and how often the workers have been started there."""
    limit = timedelta(seconds=timeout)
    try:
        store, _, _ = next(rendezvous("env://", timeout=limit))
        store.set_timeout(limit)
        return store, _lead(store, size, timeout) if rank == 0 else _follow(store, rank, limit)
    except RuntimeError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RunFailed(
            f"not all of {size} workers came to {place} within {timeout:g} s: {str(error).splitlines()[0]}"
        ) from error


def _lead(store: Store, size: int, timeout: float) -> int:
    """Give all others the number of this start.

    torchrun starts workers again one machine after the other, not always counted, and in the store there is what those
    before them left: a worker is there once it has answered what it alone was told.
    """
    start, end = store.add("starts", 1), time.monotonic() + timeout
    told: dict[int, bytes] = {}
    while store.add(f"start{start}/there", 0) < size - 1:
        for rank in range(1, size):
            if store.check([f"hello{rank}"]) and (word := store.get(f"hello{rank}")) != told.get(rank):
                store.set(word.decode(), str(start))
                told[rank] = word
        if time.monotonic() > end:
            raise RuntimeError(f"{len(told)} came beside worker 0")
        time.sleep(0.05)
    return start


def _follow(store: Store, rank: int, limit: timedelta) -> int:
    word = uuid.uuid4().hex
    store.set(f"hello{rank}", word)
    store.wait([word], limit)
    start = int(store.get(word))
    store.add(f"start{start}/there", 1)
    return start
