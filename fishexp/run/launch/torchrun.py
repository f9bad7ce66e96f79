"""Make this process the worker of a run that torchrun started it to be.

With ``regime=distributed`` workers train apart from each other. With a regime such as ``transfer`` all train one model,
each on its share of every batch.

What torchrun does before there are workers is its own: a machine that does not come ends it after
``--rdzv-conf=timeout=SECONDS`` (15 minutes if not given), a port that is taken ends it at once, and the last line that
it writes says so. Its store, and the workers' connections, are open to whoever reaches the machines, and its rendezvous
``c10d`` unpickles what it finds there: use it in a network that you trust.
"""

import itertools
import os
import time
import uuid
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fishexp.distributed.context import Context, longest_start, redirect
from fishexp.errors import FishexpError, RunFailed, first_line
from fishexp.run.settings import Config, is_data_parallel

# seconds between looks into the store
_POLL_INTERVAL = 0.05
# seconds that a worker may be silent where the regime has no option for it
_TIMEOUT = 600

_run_numbers = itertools.count()  # of this process: all workers go through a sweep in the same order


def join(config: Config, folder: Path) -> Context:
    """Join the other workers of the next run; all of them are there when it returns.

    Args:
        folder: Where the run is carried out. All workers but the first write to their logs there, and no more to the
            screen.

    Returns:
        The part of this process in the run.

    Raises:
        FishexpError: If this is not a run of as many workers.
        RunFailed: If the others cannot be found.
    """
    rank, world_size, regime = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), config["regime"]
    if rank > 0:
        redirect(folder, rank, (1, 2))
    if not is_data_parallel(regime):
        _check_workers(regime, world_size)
    timeout, run = regime.get("timeout", _TIMEOUT), f"run{next(_run_numbers)}"
    store, start = _rendezvous(rank, world_size, longest_start(timeout))
    return Context(
        rank=rank,
        world_size=world_size,
        local_rank=int(os.environ["LOCAL_RANK"]),
        local_world_size=int(os.environ["LOCAL_WORLD_SIZE"]),
        node_rank=int(os.environ.get("GROUP_RANK", "0")),
        store=PrefixStore(run, store),
        start_store=PrefixStore(f"start{start}/{run}", store),
        resume_reason="a worker was lost" if start > 1 else "",
        may_restart=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        < int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")),
        timeout=timeout,
    )


def _check_workers(regime: Mapping[str, Any], world_size: int) -> None:
    """Refuse a regime for which torchrun has started too many workers, or too few."""
    if regime.get("backend") != "processes":
        raise FishexpError(
            f"torchrun started {world_size} workers, and this run has one process; take regime=transfer, "
            "or regime=distributed with regime.backend=processes, or leave torchrun away"
        )
    if regime["workers"] != world_size:
        raise FishexpError(
            f"regime.workers={regime['workers']}: torchrun started {world_size}; leave regime.workers away"
        )


@cache
def _rendezvous(rank: int, world_size: int, timeout: float) -> tuple[Store, int]:
    """Return the store that lasts as long as torchrun, and how often the workers have been started there."""
    limit = timedelta(seconds=timeout)
    try:
        store, _, _ = next(rendezvous("env://", timeout=limit))
        store.set_timeout(limit)
        return store, _number_start(store, world_size, timeout) if rank == 0 else _await_number(store, rank, limit)
    except RuntimeError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RunFailed(
            f"not all of {world_size} workers came to {address} within {timeout:g} s: {first_line(error)}"
        ) from error


def _number_start(store: Store, world_size: int, timeout: float) -> int:
    """Give this start of the workers a number, and send it to all others, as worker 0.

    torchrun starts workers again machine after machine, not always counted, and the store still holds what
    earlier workers left: a worker is known to be there once it has answered with the number it alone was sent.
    """
    start, end = store.add("starts", 1), time.monotonic() + timeout
    answered: dict[int, bytes] = {}
    while store.add(f"start{start}/there", 0) < world_size - 1:
        for rank in range(1, world_size):
            if store.check([f"hello{rank}"]) and (word := store.get(f"hello{rank}")) != answered.get(rank):
                store.set(word.decode(), str(start))
                answered[rank] = word
        if time.monotonic() > end:
            raise RuntimeError(f"{len(answered)} came beside worker 0")
        time.sleep(_POLL_INTERVAL)
    return start


def _await_number(store: Store, rank: int, limit: timedelta) -> int:
    """Send worker 0 a word of this process's own, and wait for the number of this start under that word."""
    word = uuid.uuid4().hex
    store.set(f"hello{rank}", word)
    store.wait([word], limit)
    start = int(store.get(word))
    store.add(f"start{start}/there", 1)
    return start
