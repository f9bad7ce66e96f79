"""Starts the workers of a run on this machine, each in a process, and again when one is lost."""

import ctypes
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.distributed_c10d import Store

from fishexp import interrupts, notes
from fishexp.agent import LOST, WHY, Agent, agent_for, environment
from fishexp.bookkeeping import new_record
from fishexp.errors import BusyError, RunFailed, WorkerLost
from fishexp.member import RECORDED, Member
from fishexp.runner import run
from fishexp.settings import Config
from fishexp.streams import redirect

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
            notes.leave(store, notes.note_of(error))
        finally:
            agent.spec.rdzv_handler.shutdown()
        return _outcome(agent, store, config, folder)


def _outcome(agent: Agent, store: Store, config: Config, folder: Path) -> dict[str, Any]:
    status = store.get(RECORDED).decode() if store.check([RECORDED]) else None
    if status == "finished":
        return json.loads((folder / "record.json").read_text())
    if note := notes.find(store):
        error = notes.error_of(note)
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
    interrupts.install()
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = _loopback()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    redirect(Path(told["folder"]), rank, (1, 2) if rank else (2,))
    met = file.with_name(f"start{os.environ['TORCHELASTIC_RESTART_COUNT']}")
    member = Member(
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
        with interrupts.between_steps():
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
