"""Starts the workers of a run on this machine, each in a process, and again when one is lost."""

import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.distributed_c10d import Store
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from fishexp.errors import BusyError, RunFailed, WorkerLost
from fishexp.run.launch import failures
from fishexp.run.launch.context import RECORDED, Context, redirect
from fishexp.run.runner import new_record, run
from fishexp.run.settings import Config
from fishexp.system import signals

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
            failures.leave(self._notes, failures.note_of(error))  # before the workers are told to end
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
        note, ended = failures.find(self._notes), self._codes()
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
        args=("-m", "fishexp.run.launch.local", str(told)),
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


PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def start(config: Config, folder: Path) -> dict[str, Any]:
    """Carry out one run in ``folder`` by several processes.

    Args:
        config: Fully resolved; its regime has ``workers``, ``restarts`` and ``timeout``.

    Returns:
        The record of the finished run.

    Raises:
        FishexpError: As a single process would raise it.
        RunFailed: If training broke down, or a worker was lost once more than ``restarts`` allows.
    """
    with tempfile.TemporaryDirectory(prefix="fishexp-") as private:
        told = Path(private, "run.json")
        told.write_text(json.dumps({"launcher": os.getpid(), "folder": str(folder), "config": config}))
        store = FileStore(str(told.with_name("notes")))
        agent = agent_for(told, store, config["regime"])
        try:
            with environment():
                agent.run()
        except KeyboardInterrupt as error:
            failures.leave(store, failures.note_of(error))
        finally:
            agent.spec.rdzv_handler.shutdown()
        return _outcome(agent, store, config, folder)


def _outcome(agent: Agent, store: Store, config: Config, folder: Path) -> dict[str, Any]:
    status = store.get(RECORDED).decode() if store.check([RECORDED]) else None
    if status == "finished":
        return json.loads((folder / "record.json").read_text())
    if note := failures.find(store):
        error = failures.error_of(note)
    else:
        often = f"after {agent.spec.max_restarts} restarts" if agent.spec.max_restarts else "and regime.restarts=0"
        error = RunFailed(f"{agent.lost} {often}; resume=true continues from the last snapshot, if there is one")
    if status is None and not isinstance(error, BusyError):
        record = new_record(config)
        record.status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        record.error = str(error) or type(error).__name__
        folder.mkdir(parents=True, exist_ok=True)
        record.write(Path(config["records"]), folder)
    raise error


def main() -> int:
    """One worker; the agent starts it with the file that :func:`start` wrote.

    Returns:
        Exit status, of which only the agent knows: whoever started the run learns from the notes why it ended.
    """
    file = Path(sys.argv[1])
    told = json.loads(file.read_text())
    _end_with(told["launcher"])
    signals.install()
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = _loopback()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    redirect(Path(told["folder"]), rank, (1, 2) if rank else (2,))
    met = file.with_name(f"start{os.environ['TORCHELASTIC_RESTART_COUNT']}")
    member = Context(
        rank=rank,
        size=size,
        local_rank=rank,
        local_size=size,
        store=FileStore(str(file.with_name("notes"))),
        met=FileStore(str(met)),
        lost=os.environ.get(WHY, ""),
        retried=True,
        launched=True,
        timeout=told["config"]["regime"]["timeout"],
    )
    try:
        with signals.between_steps():
            run(told["config"], Path(told["folder"]), member)
    except (Exception, KeyboardInterrupt) as error:
        print(f"fishexp: {type(error).__name__}: {error}", file=sys.stderr)  # its own file
        return LOST if isinstance(error, WorkerLost) else 1
    return 0


def _end_with(launcher: int) -> None:
    """Have the kernel end this process when the one that started it ends, in whatever way."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it ended before
        sys.exit(1)


def _loopback() -> str:
    return "lo0" if sys.platform == "darwin" else "lo"


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # torch takes a second or more to take itself apart, and others may wait for a restart
