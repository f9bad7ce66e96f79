"""The part of a process in a run: the whole run, or a worker that joins others, agrees with them and ends with them."""

import json
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, ParamSpec, TypedDict, TypeVar

import torch
import torch.distributed as dist
from annotated_types import Ge, Gt
from torch.distributed.distributed_c10d import Store

from fishexp.distributed import failures
from fishexp.distributed.failures import Facts
from fishexp.distributed.torch_collectives import TorchCollectives
from fishexp.errors import WorkerLost, first_line
from fishexp.training.collectives import Collectives, InProcessCollectives
from fishexp.training.logger import log_file

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# key of a store: the status in the record that the main process has written
STATUS_KEY = "recorded"
# errors after which the workers are restarted, and resume from a snapshot
RECOVERABLE = (WorkerLost, torch.AcceleratorError)
# how long a worker waits for what the first worker of its machine downloads
_DOWNLOAD_LIMIT = timedelta(hours=6)
# seconds that workers may differ by as they start: imports take time, however small regime.timeout is
_SHORTEST_START = 60
# seconds that the main process waits for the others to read what ends them, at most
_LONGEST_END = 10
# seconds between looks into a store
_POLL_INTERVAL = 0.05


class LaunchSettings(TypedDict):
    """Say how the workers of a run are started, before its regime is called.

    A regime for several workers has these keys in its yaml, and this class as ``RUN_SETTINGS`` in its module.

    Attributes:
        workers: Number of workers.
        backend: ``processes``: each worker is a process. ``simulated``: they take turns in one.
        restarts: How often workers are restarted after one was lost.
        timeout: Seconds that a worker may be silent.
    """

    workers: Annotated[int, Ge(1)]
    backend: Literal["processes", "simulated"]
    restarts: Annotated[int, Ge(0)]
    timeout: Annotated[float, Gt(0)]


@dataclass(frozen=True)
class Context:
    """Describe the part of a process in a run.

    Attributes:
        rank: Rank among all workers. Rank 0 is the main process, which writes what the run leaves behind.
        world_size: Number of all workers.
        local_rank: Rank among the workers on this machine.
        local_world_size: Number of the workers on this machine.
        node_rank: Number of this machine.
        store: Store of this run's workers, however often they are started; None if this process is alone.
        start_store: Store of the workers that were started together with this process.
        resume_reason: Why the run resumes by itself: which worker was lost, and how; empty if none was.
        may_restart: Whether the workers are restarted when a worker is lost, so that no record is due then.
        has_agent: Whether our own agent started this process, not torchrun: an interrupt without a reported failure
            then means that another worker was lost.
        timeout: Seconds that another worker may be silent.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0
    store: Store | None = None
    start_store: Store | None = None
    resume_reason: str = ""
    may_restart: bool = False
    has_agent: bool = False
    timeout: float = 0

    @property
    def is_main(self) -> bool:
        """Tell whether this process writes the record, and everything else but the other workers' logs."""
        return self.rank == 0

    def threads(self, wanted: int | None, usual: int) -> int:
        """Return the number of CPU threads: ``wanted``, or ``usual``, or this worker's share of the machine's cores."""
        return wanted or (usual if self.local_world_size == 1 else max(1, _cores() // self.local_world_size))

    def collectives(self, world_size: int) -> Collectives:
        """Connect the ``world_size`` workers of a run: all in this process, or those of the process group."""
        return InProcessCollectives(world_size) if self.store is None else TorchCollectives(self.timeout)

    @contextmanager
    def process_group(self, device: str) -> Iterator[None]:
        """Join the process group of all workers, and report to them what ends this worker.

        Args:
            device: With ``cpu`` nothing is sent by NCCL.

        Raises:
            WorkerLost: If a worker is gone or silent, and no worker reported a failure.
        """
        if self.store is None:
            yield
            return
        try:
            if failure := failures.find(self.store):  # of workers that were started before these
                raise failures.to_error(failure)
            self._join("cpu:gloo,cuda:nccl" if torch.cuda.is_available() and device != "cpu" else "cpu:gloo")
            yield
        except BaseException as error:
            raise self.root_cause(error) from error
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    def _join(self, backend: str) -> None:
        """Wait until all workers have come, and make the process group."""
        assert self.start_store is not None  # as there is a store
        patience = longest_start(self.timeout)
        try:
            self.start_store.set(f"came{self.rank}", "")
            self.start_store.wait([f"came{rank}" for rank in range(self.world_size)], timedelta(seconds=patience))
        except RuntimeError as error:
            raise WorkerLost(f"not all of {self.world_size} workers came within {patience:g} s") from error
        limit = timedelta(seconds=self.timeout)
        try:
            dist.init_process_group(
                backend, store=self.start_store, rank=self.rank, world_size=self.world_size, timeout=limit
            )
        except RuntimeError as error:
            raise WorkerLost(f"the workers cannot reach each other: {first_line(error)}") from error

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """Let the first worker of each machine come before the others, which then find what it has downloaded."""
        key = f"first{self.node_rank}"
        if self.start_store is not None and self.local_rank > 0:
            self.start_store.wait([key], _DOWNLOAD_LIMIT)
        try:
            yield
        finally:
            if self.start_store is not None and self.local_rank == 0:
                self.start_store.set(key, "")

    def broadcast_decision(self, own: bool) -> bool:
        """Return what the main process passes as ``own``, whatever this process passes; on True it may end at once."""
        if self.start_store is None:
            return own
        if self.is_main:
            self.start_store.set("decided", str(own))
            if own:
                self._await_readers("decided")
            return own
        decision = self.start_store.get("decided") == b"True"
        self._count_reader("decided")
        return decision

    def _count_reader(self, what: str) -> None:
        """Let the main process know that this one needs the store no longer for ``what``."""
        if self.start_store is not None:
            self.start_store.add(f"{what}/read", 1)

    def _await_readers(self, what: str) -> None:
        """Wait, as the store may end with this process, for all others to call :meth:`_count_reader`, if they do."""
        end = time.monotonic() + _LONGEST_END
        while self.start_store is not None and time.monotonic() < end:
            if self.start_store.add(f"{what}/read", 0) >= self.world_size - 1:
                return
            time.sleep(_POLL_INTERVAL)

    def together(
        self, function: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
    ) -> Result:
        """Call a function as all other workers do, and return its result once it has succeeded on all of them.

        Raises:
            FishexpError: The same at all workers, if the first that failed met with a mistake of the user's.
            RunFailed: The same at all workers, if it met with something else.
        """
        try:
            result = function(*arguments, **options)
        except Exception as error:
            if not isinstance(error, RECOVERABLE):
                self._exchange({}, error)
            raise
        self._exchange({}, None)
        return result

    def check_same(self, facts: Facts) -> None:
        """Compare the facts of all workers.

        Raises:
            FishexpError: The same at all workers, if facts differ.
        """
        self._exchange(facts, None)

    def _exchange(self, facts: Facts, error: Exception | None) -> None:
        """Send facts, and the error if there is one, to all workers; raise what is wrong with any of them."""
        if self.store is None:
            return
        text = json.dumps({"error": error and failures.from_error(error), "facts": facts})
        if failure := failures.disagreement(TorchCollectives(self.timeout).all_gather_text([text])):
            raise failures.to_error(failures.report(self.store, failure)) from error

    def is_finished(self) -> bool:
        """Tell whether workers that were started before these finished this very run."""
        return self.store is not None and self.store.check([STATUS_KEY]) and self.store.get(STATUS_KEY) == b"finished"

    def announce_record(self, status: str) -> None:
        """Let the other workers know that the main process has written the record."""
        if self.store is not None:
            self.store.set(STATUS_KEY, status)

    def await_record(self) -> bool:
        """Wait for the main process to write the record, and tell whether it says that the run has finished.

        The main process waits until the others know it.
        """
        if self.store is None:
            return True
        if self.is_main:
            self._await_readers("ended")
            return True
        end = time.monotonic() + self.timeout
        while not self.store.check([STATUS_KEY]):
            if time.monotonic() > end or failures.find(self.store):
                return False
            time.sleep(_POLL_INTERVAL)
        finished = self.is_finished()
        self._count_reader("ended")
        return finished

    def root_cause(self, error: BaseException) -> BaseException:
        """Return why this run ends: the failure of another worker, or ``error``, which is reported to the others."""
        if self.store is None:
            return error
        try:
            failure = failures.find(self.store)
            if failure is None and isinstance(error, KeyboardInterrupt) and self.has_agent:
                return WorkerLost("another worker of the run was lost")
            if failure is None and not isinstance(error, RECOVERABLE):
                failure = failures.report(self.store, failures.from_error(error, self.rank))
        except RuntimeError:  # the store went with another worker
            return error
        return error if failure is None else failures.to_error(failure)


ALONE = Context()


def longest_start(timeout: float) -> float:
    """Return the seconds that workers wait for each other as they start."""
    return max(timeout, _SHORTEST_START)


def redirect(folder: Path, rank: int, streams: Collection[int]) -> None:
    """Append everything that is written to these file descriptors of the process to the worker's log, if it can be."""
    file = log_file(folder, rank)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError:  # what needs the folder will say so
        opened = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(opened, stream)
    os.close(opened)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
