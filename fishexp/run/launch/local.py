"""Start the workers of a run on this machine, each in a process, and start them again when a worker is lost.

``python -m fishexp.run.launch.local FILE`` is a worker; only the agent of :func:`start` runs it.
"""

import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.distributed_c10d import Store
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from fishexp.distributed import failures
from fishexp.distributed.context import STATUS_KEY, Context, redirect
from fishexp.errors import BusyError, RunFailed, WorkerLost
from fishexp.run.record import RECORD
from fishexp.run.runner import new_record, run
from fishexp.run.settings import Config
from fishexp.run.sweep import labelled
from fishexp.system import signals

log = logging.getLogger(__name__)

# exit status of a worker that ends because another worker is gone
EXIT_WORKER_LOST = 75
# variable in a worker's environment that tells which worker was lost before, and how
LOST_VARIABLE = "FISHEXP_LOST"
# seconds that workers have to end after a worker was lost
_GRACE = 5
# seconds that workers have to end after a failure was reported: the main process writes the record
_GRACE_FOR_RECORD = 20
# seconds between looks at the workers: by the agent, and while they end
_MONITOR_INTERVAL, _POLL_INTERVAL = 0.1, 0.05
# option of prctl(2), from linux/prctl.h
_PR_SET_PDEATHSIG = 1

# names of files in the private folder of a start, and their first parts
_FAILURES_FILE, _RENDEZVOUS_FILE, _LOGS_FOLDER, _START_FILE = "failures", "rendezvous", "torch", "start"


def start(config: Config, folder: Path, label: str = "") -> dict[str, Any]:
    """Carry out a run in ``folder`` by several processes.

    Args:
        config: Fully resolved; its regime has ``workers``, ``restarts`` and ``timeout``.
        label: Stands before each line that the first worker prints.

    Returns:
        The record of the finished run.

    Raises:
        FishexpError: As a single process would raise it.
        RunFailed: If training broke down, or a worker was lost once more than ``restarts`` allows.
    """
    with tempfile.TemporaryDirectory(prefix="fishexp-") as private:
        run_file = Path(private, "run.json")
        description = {"launcher": os.getpid(), "folder": str(folder), "label": label, "config": config}
        run_file.write_text(json.dumps(description))
        store = FileStore(str(run_file.with_name(_FAILURES_FILE)))
        agent = _agent(run_file, store, config["regime"])
        try:
            with _environment():
                agent.run()
        except KeyboardInterrupt as error:
            failures.report(store, failures.from_error(error))
        finally:
            agent.spec.rdzv_handler.shutdown()
        return _outcome(agent, store, config, folder)


def _agent(run_file: Path, store: Store, regime: Mapping[str, Any]) -> "Agent":
    """Build the agent that runs this module with ``run_file`` as each of the workers."""
    rendezvous = RendezvousParameters(
        "c10d",
        str(run_file.with_name(_RENDEZVOUS_FILE)),
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
        args=("-m", "fishexp.run.launch.local", str(run_file)),
        rdzv_handler=get_rendezvous_handler(rendezvous),
        max_restarts=regime["restarts"],
        monitor_interval=_MONITOR_INTERVAL,
        local_addr="127.0.0.1",
    )
    return Agent(spec, DefaultLogsSpecs(str(run_file.with_name(_LOGS_FOLDER))), store, regime["timeout"])


@contextmanager
def _environment() -> Iterator[None]:
    """Set the environment for workers that import what we import, and for an agent without socket, log or signals."""
    before = dict(os.environ)
    logger = logging.getLogger("torch.distributed.elastic")
    logger.propagate = False
    logger.addHandler(silence := logging.NullHandler())
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "",
    }
    try:
        yield
    finally:
        logger.removeHandler(silence)
        logger.propagate = True
        os.environ.clear()
        os.environ |= before


def _outcome(agent: "Agent", store: Store, config: Config, folder: Path) -> dict[str, Any]:
    """Return the record, or write a record if the workers could not, and raise why the run ended."""
    status = store.get(STATUS_KEY).decode() if store.check([STATUS_KEY]) else None
    if status == "finished":
        return json.loads((folder / RECORD).read_text())
    if failure := failures.find(store):
        error = failures.to_error(failure)
    else:
        often = f"after {agent.spec.max_restarts} restarts" if agent.spec.max_restarts else "and regime.restarts=0"
        error = RunFailed(f"{agent.lost} {often}; resume=true continues from the last snapshot, if there is one")
    if status is None and not isinstance(error, BusyError):
        record = new_record(config)
        record.status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        record.error = str(error) or type(error).__name__
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            record.write(Path(config["records"]), folder)
        except RunFailed as second:  # the first says what to do
            log.warning("the record could not be written either: %s", second)
    raise error


class Agent(LocalElasticAgent):
    """Extend torch's agent: it does not restart after what a restart cannot mend, and tells why workers were restarted.

    Private members of torch's agent on which this class relies, and no others; README says with which versions of
    torch the tests passed:

    - ``_invoke_run(role)`` is the agent's loop, extended to report an interrupt before the workers get it;
    - ``_monitor_workers(group)`` is one look at the workers, extended to end all of them when a worker has ended;
    - ``_pcontext`` has the workers' processes;
    - ``_remaining_restarts`` is set to 0 if a restart cannot mend what happened.

    Args:
        store: Where workers report failures.
        timeout: Seconds that a worker may be silent.

    Attributes:
        spec: How the workers are started.
        lost: Which worker was lost, and how.
    """

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs, store: Store, timeout: float) -> None:
        super().__init__(spec, logs)
        self.spec, self.lost = spec, "a worker was lost"
        self._failures, self._timeout = store, timeout

    def _invoke_run(self, role: str = "default") -> RunResult:
        try:
            return super()._invoke_run(role)
        except KeyboardInterrupt as error:
            failures.report(self._failures, failures.from_error(error))  # before the workers are asked to end
            raise

    # a decorator of torch's hides what it takes
    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:  # pyright: ignore[reportIncompatibleVariableOverride]
        if any(self._exit_codes()):
            self._end_all()
        return super()._monitor_workers(worker_group)  # pyright: ignore[reportCallIssue]

    def _processes(self) -> SubprocessContext:
        """Return torch's handle of the workers' processes."""
        assert isinstance(self._pcontext, SubprocessContext)  # as the entry point is a program
        return self._pcontext

    def _exit_codes(self) -> list[int | None]:
        """Return the workers' exit statuses by rank, None for a worker that runs."""
        handlers = self._processes().subprocess_handlers
        return [handlers[rank].proc.poll() for rank in sorted(handlers)]

    def _end_all(self) -> None:
        """End the other workers after a worker ended; torch then starts all again if no failure was reported."""
        failure, first_codes = failures.find(self._failures), self._exit_codes()
        for handler in self._processes().subprocess_handlers.values():
            if handler.proc.poll() is None:
                handler.close(signal.SIGTERM)
        end = time.monotonic() + (_GRACE_FOR_RECORD if failure else _GRACE)
        while None in self._exit_codes() and time.monotonic() < end:
            time.sleep(_POLL_INTERVAL)
        if failure:
            self._remaining_restarts = 0
        self.lost = os.environ[LOST_VARIABLE] = describe_loss(first_codes, self._exit_codes(), self._timeout)
        self._processes().close(signal.SIGKILL)


def describe_loss(first_codes: Sequence[int | None], last_codes: Sequence[int | None], timeout: float) -> str:
    """Tell which worker was lost: a worker that ended by itself, else a worker that does not end when it is asked to.

    Args:
        first_codes: Exit statuses by rank as the loss was noticed, None for a worker that still ran.
        last_codes: Exit statuses after all workers were asked to end, and had time to.
        timeout: Seconds that a worker may be silent.
    """
    for rank, code in enumerate(first_codes):
        if code not in (None, 0, EXIT_WORKER_LOST):
            return f"worker {rank} was lost ({f'signal {-code}' if code < 0 else f'exit status {code}'})"
    silent = [str(rank) for rank, code in enumerate(last_codes) if code is None]
    return f"worker {' and '.join(silent)} was silent for {timeout:g} s" if silent else "the workers lost each other"


def main() -> int:
    """Be a worker of the run that :func:`start` described in the file named on the command line.

    Returns:
        Exit status, for the agent alone: whoever started the run learns from the reported failure why it ended.
    """
    run_file = Path(sys.argv[1])
    description = json.loads(run_file.read_text())
    _end_with(description["launcher"])
    signals.install()
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = _loopback()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    redirect(Path(description["folder"]), rank, (1, 2) if rank else (2,))
    start_file = run_file.with_name(f"{_START_FILE}{os.environ['TORCHELASTIC_RESTART_COUNT']}")
    context = Context(
        rank=rank,
        world_size=world_size,
        local_rank=rank,
        local_world_size=world_size,
        store=FileStore(str(run_file.with_name(_FAILURES_FILE))),
        start_store=FileStore(str(start_file)),
        resume_reason=os.environ.get(LOST_VARIABLE, ""),
        may_restart=True,
        has_agent=True,
        timeout=description["config"]["regime"]["timeout"],
    )
    try:
        with signals.between_steps(), labelled(description["label"]):
            run(description["config"], Path(description["folder"]), context)
    except (Exception, KeyboardInterrupt) as error:
        print(f"fishexp: {type(error).__name__}: {error}", file=sys.stderr)  # its own file
        return EXIT_WORKER_LOST if isinstance(error, WorkerLost) else 1
    return 0


def _end_with(launcher: int) -> None:
    """Have the kernel end this process when the process that started it ends, in whatever way."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it ended before
        sys.exit(1)


def _loopback() -> str:
    """Return the name of this machine's loopback device."""
    return "lo0" if sys.platform == "darwin" else "lo"


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # torch takes a second or more to take itself apart, and others may wait for a restart
