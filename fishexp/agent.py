"""Torch's elastic agent for the workers of one run on this machine: no socket but theirs, and no needless restart."""

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.distributed_c10d import Store
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from fishexp import notes

LOST = 75  # exit status of a worker that ends because another is gone
WHY = "FISHEXP_LOST"  # names in a worker's environment what became of those before it
_GRACE = 5  # seconds that workers have to end after one was lost
_FAREWELL = 20  # seconds that they have to write down how the run ended


class Agent(LocalElasticAgent):
    """Torch's own, which knows what a restart cannot mend, and tells the next workers why they are there.

    Attributes:
        lost: Which worker was, and how.
    """

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs, store: Store, timeout: float) -> None:
        super().__init__(spec, logs)
        self.spec, self.lost = spec, "a worker was lost"
        self._notes, self._timeout = store, timeout

    def _invoke_run(self, role: str = "default") -> RunResult:
        try:
            return super()._invoke_run(role)
        except KeyboardInterrupt as error:
            notes.leave(self._notes, notes.note_of(error))  # before the workers are told to end
            raise

    # a decorator of torch's hides what it takes
    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:  # pyright: ignore[reportIncompatibleVariableOverride]
        if any(self._codes()):
            self._end()
        return super()._monitor_workers(worker_group)  # pyright: ignore[reportCallIssue]

    def _codes(self) -> list[int | None]:
        """Exit statuses, None of a worker that runs."""
        assert isinstance(self._pcontext, SubprocessContext)
        handlers = self._pcontext.subprocess_handlers
        return [handlers[rank].proc.poll() for rank in sorted(handlers)]

    def _end(self) -> None:
        """After one worker ended, end the others; torch starts all of them again if there is no note."""
        assert isinstance(self._pcontext, SubprocessContext)
        note, ended = notes.find(self._notes), self._codes()
        for handler in self._pcontext.subprocess_handlers.values():
            if handler.proc.poll() is None:
                handler.close(signal.SIGTERM)
        end = time.monotonic() + (_FAREWELL if note else _GRACE)
        while None in self._codes() and time.monotonic() < end:
            time.sleep(0.05)
        if note:
            self._remaining_restarts = 0
        self.lost = os.environ[WHY] = _who(ended, self._codes(), self._timeout)
        self._pcontext.close(signal.SIGKILL)


def agent_for(told: Path, store: Store, regime: Mapping[str, Any]) -> "Agent":
    rendezvous = RendezvousParameters(
        "c10d",
        str(told.with_name("rendezvous")),
        run_id="fishexp",
        min_nodes=1,
        max_nodes=1,
        local_addr="127.0.0.1",
        store_type="file",  # and no socket
    )
    spec = WorkerSpec(
        role="fishexp",
        local_world_size=regime["workers"],
        entrypoint=sys.executable,
        args=("-m", "fishexp.launch", str(told)),
        rdzv_handler=get_rendezvous_handler(rendezvous),
        max_restarts=regime["restarts"],
        monitor_interval=0.1,
        local_addr="127.0.0.1",
    )
    return Agent(spec, DefaultLogsSpecs(str(told.with_name("torch"))), store, regime["timeout"])


def _who(ended: Sequence[int | None], told: Sequence[int | None], timeout: float) -> str:
    """Which worker was lost: one that ended by itself, else one that does not end though it is told to."""
    for rank, code in enumerate(ended):
        if code not in (None, 0, LOST):
            return f"worker {rank} was lost ({f'signal {-code}' if code < 0 else f'exit status {code}'})"
    silent = [str(rank) for rank, code in enumerate(told) if code is None]
    return f"worker {' and '.join(silent)} was silent for {timeout:g} s" if silent else "the workers lost each other"


@contextmanager
def environment() -> Iterator[None]:
    """For the workers, which import what we do, and for torch's agent: no socket of its own, nor words, nor signals."""
    before = dict(os.environ)
    words = logging.getLogger("torch.distributed.elastic")
    words.propagate = False
    words.addHandler(silence := logging.NullHandler())
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "",
    }
    try:
        yield
    finally:
        words.removeHandler(silence)
        words.propagate = True
        os.environ.clear()
        os.environ |= before
