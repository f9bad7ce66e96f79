"""Records: one JSON line per run, failed ones too, appended and never changed."""

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fishexp.errors import FishexpError

Status: TypeAlias = Literal["finished", "failed", "interrupted"]
_PACKAGES = ("fishexp", "torch", "torchvision", "transformers", "datasets", "hydra-core", "numpy")


@dataclass
class Record:
    """What one run was told to do and what came of it.

    Attributes:
        config: Fully resolved, without paths of a machine.
        keep: Fraction of all weights that might move; None where the method decides.
        kept: Number of weights that might move; None if no mask was chosen.
        kept_per_worker: Where each of several workers might move weights of its own.
        metrics: Name -> number in the metric's own range, None where undefined; the first is the headline.
        seconds: Of data, scores, train and evaluate.
        peak_memory_bytes: Of the device's allocator, or of the process where that is the CPU.
        bytes: Of the weights (dense) and of what is kept in their place (delta); with regime=checkpointing of all
            checkpoints, the largest, and one on average (delta); with regime=distributed of what one worker sends in a
            merge (per_merge), sent in all (sent), and of the same merges of all weights (dense_merge, dense_sent).
        commit: Of the code; ends in + if tracked code was changed, None if there is no repository.
        ended: UTC, ISO 8601.
    """

    run_id: str
    config: dict[str, Any]
    status: Status = "failed"
    method: str = ""
    keep: float | None = None
    seed: int = 0
    kept: int | None = None
    kept_per_worker: int | None = None
    total: int | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    bytes: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    commit: str | None = field(default_factory=lambda: commit())
    device: str = ""
    threads: int = 0
    versions: dict[str, str] = field(default_factory=lambda: versions())
    ended: str = ""

    def write(self, records: Path, folder: Path) -> None:
        """Append to ``records`` and leave the same line in the run's folder, stamped with the time."""
        self.metrics = {
            name: value if value is not None and isfinite(value) else None for name, value in self.metrics.items()
        }
        self.ended = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps(asdict(self), allow_nan=False)
        temporary = folder / ".record.json"
        temporary.write_text(line + "\n")
        temporary.replace(folder / "record.json")
        append(records, line)


def append(path: Path, line: str) -> None:
    """Add one line in one write under a lock, so that jobs at the same time cannot tear each other's lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file.fileno()).st_size
        torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"  # not ours: keep this line out of it
        data = f"{chr(10) * torn}{line}\n".encode()
        if os.write(file.fileno(), data) != len(data):  # a full disk: leave no half line behind
            os.ftruncate(file.fileno(), size)
            raise FishexpError(f"{path}: no room for another record")
        os.fsync(file.fileno())


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file in the order they were written.

    Raises:
        FishexpError: If a line is not a record; says which.
    """
    if not path.is_file():
        raise FishexpError(
            f"{path} is not a file of records; runs append to outputs/records.jsonl unless told otherwise"
        )
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or not record.keys() >= {"run_id", "status", "config", "metrics"}:
                raise FishexpError(f"{path} line {number} is not a record: {line[:60].strip()!r}")
            yield record


def finished(path: Path) -> set[str]:
    """The run_ids of which ``path`` holds a finished record; a later attempt that failed takes nothing away."""
    return {record["run_id"] for record in read(path) if record["status"] == "finished"} if path.exists() else set()


@cache  # the code is what it was when this process imported it
def commit() -> str | None:
    """The commit of this code, with a + if tracked files differ from it; None outside a repository.

    Files in experiments/ change no run: a sweep whose records are tracked stays clean while it writes them.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!experiments")
        return head + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
