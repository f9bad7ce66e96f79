"""Runs of several workers from the command line, on data and a model so small that starting them is all that costs."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fishexp.run.record import read
from tests.support.program import Program

ROOT = Path(__file__).parents[2]

# as small as they come: neither scikit-learn nor torchvision is imported
_DATA = '''
import os
import torch
from fishexp.data.datasets import Dataset
from fishexp.data.images import Images
from fishexp.data.metrics import accuracy


def load(*, examples: int) -> Dataset:
    """Make two classes of noise."""
    labels = torch.arange(examples) % 2
    seed = int(os.environ.get("OTHER_EXAMPLES") == os.environ.get("RANK", "0"))
    pixels = torch.randint(0, 200, (examples, 1, 4, 4), generator=torch.Generator().manual_seed(seed))
    pixels = (pixels + 50 * labels[:, None, None, None]).to(torch.uint8)
    part = Images(pixels, labels, mean=(0.5,), std=(0.3,), crop=0)
    return Dataset(part, {"": part}, classes=2, channels=1, metrics=accuracy)
'''
_MODEL = """
import os, signal, time, warnings
import torch
from torch import nn
from safetensors.torch import save_model
from fishexp.errors import FishexpError
from fishexp.models import Model


class Network(nn.Module):
    def __init__(self, pause: float, fault: str | None) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)
        self.pause, self.fault, self.calls = pause, fault, 0

    def forward(self, x):
        x = self.head(self.norm(self.body(x.flatten(1))).relu())
        if self.training:
            time.sleep(self.pause)
            self.calls += 1
            if self.fault == f"nan{os.environ.get('RANK', '0')}" and self.calls > 3:
                x = x * torch.nan
            if self.fault == f"bug{os.environ.get('RANK', '0')}" and self.calls > 3:
                raise TypeError("what is this?")
        return x


def build(classes: int, channels: int, *, pause: float, fault: str | None) -> Model:
    warnings.warn(f"a library has something to say to worker {os.environ.get('RANK')}")
    if fault == f"refuses{os.environ.get('RANK', '0')}":
        raise FishexpError("no such weights; take others")
    network = Network(pause, fault)
    if fault == f"other{os.environ.get('RANK', '0')}":
        nn.init.zeros_(network.body.weight)

    def save(folder, *, weights=True):
        if weights:
            save_model(network, folder / "model.safetensors")

    return Model(network, ("head.weight", "head.bias"), save)
"""
TINY = (
    "--config-dir=conf",
    "data=tiny",
    "model=tiny",
    "method=random",
    "keep=0.2",
    "threads=1",
    "regime=distributed",
    "regime.epochs=3",
    "regime.batch_size=4",
    "regime.lr=0.05",
    "regime.sync_every=3",
    "regime.warmup_epochs=0",
    "regime.snapshot_steps=6",
    "regime.refresh_every=2",
)


def lay_out(folder: Path) -> None:
    """Write a data set and a model into ``folder``, as components of a run."""
    for group, source, options in (("data", _DATA, "examples: 96"), ("model", _MODEL, "pause: 0.0\nfault: null")):
        (folder / f"tiny_{group}.py").write_text(source)
        (folder / "conf" / group).mkdir(parents=True)
        (folder / "conf" / group / "tiny.yaml").write_text(f"name: tiny\nmodule: tiny_{group}\n{options}\n")


@contextmanager
def started(
    folder: Path,
    *arguments: str,
    command: Sequence[str] = ("fishexp",),
    prepare: Callable[[], object] | None = None,
) -> Iterator[Program]:
    """Start ``python -m command`` in ``folder``; in the end kill it, with all that it started.

    What it starts are new processes with imports of their own.

    Args:
        prepare: Called first in the new process.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with Program(*command, *TINY, *arguments, folder=folder, environment=environment, prepare=prepare) as process:
        try:
            yield process
        finally:
            for pid in [process.pid, *children(process.pid)]:
                kill(pid)


def torchrun(node: int, port: int, nodes: int = 2, *options: str) -> tuple[str, ...]:
    """Return the command of a machine among ``nodes``, each with a worker; all use this machine's loopback device."""
    where = ("--master-addr=127.0.0.1", f"--master-port={port}", f"--node-rank={node}", f"--nnodes={nodes}")
    return ("torch.distributed.run", "--nproc-per-node=1", *where, *options, "-m", "fishexp")


def ended(process: Program, within: float = 240) -> tuple[int, str, str]:
    """Wait for a command to end, and return its exit status, stdout and stderr."""
    out, err = process.communicate(timeout=within)
    return process.wait(), out, err


def run_to_end(folder: Path, *arguments: str, **options: Any) -> tuple[int, str, str]:
    """Start a command and wait for it to end."""
    with started(folder, *arguments, **options) as process:
        return ended(process)


def children(pid: int) -> list[int]:
    """List the processes that a process started, and those that these started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):  # it ended meanwhile
            continue
        if parent == pid:
            found += [int(stat.parent.name), *children(int(stat.parent.name))]
    return found


def workers(pid: int) -> dict[int, int]:
    """Return rank -> process of the workers that a launcher or a torchrun started."""
    found = {}
    for child in children(pid):
        try:
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        rank = next((int(v[5:]) for v in variables if v.startswith(b"RANK=")), None)
        if rank is not None and b"fishexp" in command:
            found[rank] = child
    return found


def kill(pid: int, kind: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, kind)


def gone(pids: Sequence[int], within: float = 10) -> bool:
    """Wait until none of these processes runs any more, and tell whether that came to be."""
    return wait_for(lambda: not any(_runs(pid) for pid in pids), within)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition: Callable[[], Any], within: float = 120) -> bool:
    """Wait for a condition, and tell whether it came to hold."""
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def has_snapshot(folder: Path, outputs: str = "outputs", workers: int = 2) -> bool:
    """Tell whether each of the workers of the only run could resume from a snapshot."""
    return len({file.parent for file in (folder / outputs).glob("tiny/*/*/*/snapshots/worker*/0*")}) == workers


def listening(pids: Sequence[int]) -> set[str]:
    """Return the addresses, in the kernel's hexadecimal, on which these processes take connections."""
    inodes = set()
    for pid in pids:
        with suppress(OSError):
            inodes |= {str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in inodes:
                found.add(columns[1].partition(":")[0])
    return found


def run_folder(folder: Path, outputs: str = "outputs") -> Path:
    """Return the folder of the only run."""
    (found,) = (folder / outputs).glob("tiny/*/*/*")
    return found


def records(folder: Path, outputs: str = "outputs") -> list[dict[str, Any]]:
    """Read the records of all runs, in the order in which they ended."""
    return list(read(folder / outputs / "records.jsonl"))


def free_port() -> int:
    """Find a port on the loopback device that a torchrun may take."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
