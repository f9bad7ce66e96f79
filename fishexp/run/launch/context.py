"""What a process is to its run: all of it, or one of several workers that meet, agree, and end together."""

import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from fishexp.distributed.torch_collectives import TorchCollectives
from fishexp.errors import WorkerLost
from fishexp.run.launch import failures
from fishexp.run.launch.failures import Facts
from fishexp.training.collectives import Collectives, InProcessCollectives
from fishexp.training.logger import log_file

RECORDED = "recorded"  # key of a store: the status in the record
_DOWNLOAD = timedelta(hours=6)  # for what one worker of a machine does before its others
MENDABLE = (WorkerLost, torch.AcceleratorError)  # by starting again from a snapshot


@dataclass(frozen=True)
class Context:
    """A process's part in one run.

    Attributes:
        rank: Among all workers; 0 writes what the run leaves behind.
        size: Of all workers.
        local_rank: Among those on this machine.
        local_size: Of those on this machine.
        node: Number of this machine.
        store: Of this run, for what its workers have to say however often they are started; None if this process is
            alone.
        met: Like ``store``, for the workers that were started together with this one.
        lost: Why they were started again, in a few words; empty if they were not.
        retried: They are started again when one is lost, so that no record is due then.
        launched: By ourselves and not by torchrun: a signal with no note is about another worker.
        timeout: Seconds that another may be silent.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0
    store: Store | None = None
    met: Store | None = None
    lost: str = ""
    retried: bool = False
    launched: bool = False
    timeout: float = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes the record, and all but its own log."""
        return self.rank == 0

    def threads(self, wanted: int | None, usual: int) -> int:
        """CPU threads: what is wanted; else ``usual``, or its share of the machine where it has others beside it."""
        return wanted or (usual if self.local_size == 1 else max(1, _cores() // self.local_size))

    def collectives(self, size: int) -> Collectives:
        """The workers of a run of ``size``: all in this process, or those of the group."""
        return InProcessCollectives(size) if self.store is None else TorchCollectives(self.timeout)

    @contextmanager
    def meeting(self, device: str) -> Iterator[None]:
        """Inside, all workers are there, and what ends one is known to all.

        Args:
            device: ``cpu``: nothing goes by NCCL.

        Raises:
            WorkerLost: If one is gone or silent, and nobody said why.
        """
        if self.store is None:
            yield
            return
        try:
            if note := failures.find(self.store):  # of workers that were started before these
                raise failures.error_of(note)
            self._join("cpu:gloo,cuda:nccl" if torch.cuda.is_available() and device != "cpu" else "cpu:gloo")
            yield
        except BaseException as error:
            raise self.reason(error) from error
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    def _join(self, backend: str) -> None:
        assert self.met is not None  # only then there is somebody to join
        patience = longest_start(self.timeout)
        try:
            self.met.set(f"came{self.rank}", "")
            self.met.wait([f"came{rank}" for rank in range(self.size)], timedelta(seconds=patience))
        except RuntimeError as error:
            raise WorkerLost(f"not all of {self.size} workers came within {patience:g} s") from error
        limit = timedelta(seconds=self.timeout)
        try:
            dist.init_process_group(backend, store=self.met, rank=self.rank, world_size=self.size, timeout=limit)
        except RuntimeError as error:
            raise WorkerLost(f"the workers cannot reach each other: {str(error).splitlines()[0]}") from error

    @contextmanager
    def first_here(self) -> Iterator[None]:
        """One worker of each machine comes before its others: what it downloads is there for them."""
        key = f"first{self.node}"
        if self.met is not None and self.local_rank > 0:
            self.met.wait([key], _DOWNLOAD)
        try:
            yield
        finally:
            if self.met is not None and self.local_rank == 0:
                self.met.set(key, "")

    def decided(self, own: bool) -> bool:
        """What the one that leads thinks, whatever this one does."""
        if self.met is None or self.leads:
            if self.met is not None:
                self.met.set("decided", str(own))
            return own
        return self.met.get("decided") == b"True"

    @contextmanager
    def agreeing(self) -> Iterator[Facts]:
        """Gives a dictionary for what all workers must have in common, and compares it when all are set up.

        Raises:
            FishexpError: The same at all workers, if facts differ, or one met with a mistake of the user's.
            RunFailed: The same at all workers, if one met with something else.
        """
        facts: Facts = {}
        failure = None
        try:
            yield facts
        except Exception as error:
            if self.store is None or isinstance(error, MENDABLE):
                raise
            failure = error
        if self.store is not None:
            error = None if failure is None else failures.note_of(failure)
            if note := failures.verdict(
                TorchCollectives(self.timeout).all_gather_text([json.dumps({"error": error, "facts": facts})])
            ):
                raise failures.error_of(failures.leave(self.store, note)) from failure

    def is_finished(self) -> bool:
        """Whether workers that were started before finished this very run."""
        return self.store is not None and self.store.check([RECORDED]) and self.store.get(RECORDED) == b"finished"

    def tell_recorded(self, status: str) -> None:
        """The record is written."""
        if self.store is not None:
            self.store.set(RECORDED, status)

    def is_recorded(self) -> bool:
        """Whether the one that leads has written the record; waits for it."""
        end = time.monotonic() + self.timeout
        while self.store is not None and not self.leads and not self.store.check([RECORDED]):
            if time.monotonic() > end or failures.find(self.store):
                return False
            time.sleep(0.05)
        return True

    def reason(self, error: BaseException) -> BaseException:
        """Why this run ends: what another worker said before it went, or ``error``, which is left for the others."""
        if self.store is None:
            return error
        try:
            note = failures.find(self.store)
            if note is None and isinstance(error, KeyboardInterrupt) and self.launched:
                return WorkerLost("another worker of the run was lost")
            if note is None and not isinstance(error, MENDABLE):
                note = failures.leave(self.store, failures.note_of(error, self.rank))
        except RuntimeError:  # the store went with another worker
            return error
        return error if note is None else failures.error_of(note)


def longest_start(timeout: float) -> float:
    """Seconds that workers may differ by as they come: imports take time, however small regime.timeout is."""
    return max(timeout, 60)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


ALONE = Context()


def redirect(folder: Path, rank: int, streams: Collection[int]) -> None:
    """Add what comes through these file descriptors of the process, whoever writes it, to the worker's log."""
    file = log_file(folder, rank)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        for stream in streams:
            os.dup2(opened.fileno(), stream)
