"""Records: a JSON line for each run, failed runs too, appended and never changed."""

import json
import logging
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fishexp.errors import FishexpError, RunFailed
from fishexp.run.predictions_file import append_predictions
from fishexp.system.atomic import append, replacing

log = logging.getLogger(__name__)

RECORD = "record.json"  # in the folder of a run
Status: TypeAlias = Literal["finished", "failed", "interrupted"]
# version of the random streams (fishexp/training/streams.py), part of a run's identity; records without one have 1
STREAMS = 2
# packages that decide the numbers
_PACKAGES = ("fishexp", "torch", "torchvision", "transformers", "datasets", "hydra-core", "numpy")
# the repository, where there is one
_ROOT = Path(__file__).parents[2]
# characters of a line that a message shows
_SHOWN = 60


@dataclass
class Record:
    """Hold the settings of a run, and what came of it.

    Attributes:
        run_id: Identity of the run, which follows from ``config``.
        config: Settings, fully resolved, without paths of a machine.
        keep: Fraction of all weights that might move; None where the method decides.
        kept: Number of weights that might move; None if no mask was chosen.
        kept_per_worker: Number of weights that each of several workers might move, if they move different weights; the
            largest number where they differ, as of units.
        kept_by: Tensor -> [weights of it that might move, *its shape], of the last mask; those with none are left out.
            With method=lora the tensors are its adapters.
        total: Number of all weights.
        metrics: Name -> number in the metric's own range, None where undefined; the first is the headline. Of classes
            there are the shares of the most frequent label (largest_class) and prediction (largest_predicted).
        epochs: Which epoch was taken, with regime.best or regime.patience: how many were ``planned`` and ``trained``,
            the one ``taken``, the ``best`` by ``metric``, its ``value``, and the number of ``validation_examples`` on
            which it was measured: held out of the training examples, so that they are neither trained nor reported
            on. Empty where the last of all epochs was taken without looking.
        seconds: Duration of data, scores, train and evaluate.
        scores_read: Whether the first scores were computed by an earlier run, and read by this one.
        peak_memory_bytes: Peak of the device's allocator, without what CUDA graphs keep to themselves, about the
            activations of a batch; or of the process where the device is the CPU.
        bytes: Sizes of the weights (dense) and of what is kept in their place (delta). With regime=checkpointing, sizes
            of all checkpoints, of the largest, and of a checkpoint on average (delta). With regime=distributed, what a
            worker sends in a merge (per_merge) and sent in all (sent), and the same for merges of all weights
            (dense_merge, dense_sent).
        gradient_methods: Weight that was kept in part -> how its kept entries' gradient was formed in the last batch.
        inputs: Digests of the examples and of the initial weights, as they were in memory.
        streams: Version of the random streams; runs of different versions do not have the same numbers.
        error: Why the run did not finish; None if it did.
        processes: Processes that trained one model together, each on its share of every batch; 1 where workers train
            apart, whose number is in ``config``.
        commit: Commit of the code; ends in + if tracked code was changed, None if there is no repository.
        ended: Time in UTC, ISO 8601.
    """

    run_id: str
    config: dict[str, Any]
    status: Status = "failed"
    method: str = ""
    keep: float | None = None
    seed: int = 0
    kept: int | None = None
    kept_per_worker: int | None = None
    kept_by: dict[str, list[int]] = field(default_factory=dict)
    total: int | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    epochs: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    scores_read: bool = False
    peak_memory_bytes: int | None = None
    bytes: dict[str, int] = field(default_factory=dict)
    gradient_methods: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    streams: int = STREAMS
    error: str | None = None
    commit: str | None = field(default_factory=lambda: commit())
    device: str = ""
    threads: int = 0
    processes: int = 1
    versions: dict[str, str] = field(default_factory=lambda: versions())  # and digests of the user's own modules
    ended: str = ""

    def note_kept(self, in_all: int, each: int, by_tensor: dict[str, list[int]]) -> None:
        """Note how many weights may move, on all workers together and on each, and in which tensors."""
        self.kept, self.kept_per_worker, self.kept_by = in_all, None if in_all == each else each, by_tensor

    def write(self, records: Path, folder: Path) -> None:
        """Write the record to the run's folder, and append it to the file ``records``, stamped with the time.

        The predictions of a finished run, which are in its folder, are appended beside ``records`` before.

        If one cannot be written, the other is all the same. A run has not finished without a record in its folder.

        Raises:
            RunFailed: If a finished run's record cannot be written, or any cannot be appended.
        """
        self.metrics = {
            name: value if value is not None and isfinite(value) else None for name, value in self.metrics.items()
        }
        self.ended = datetime.now(UTC).isoformat(timespec="seconds")
        unwritten = None
        try:
            with replacing(folder / RECORD) as new:
                new.write_text(self._line() + "\n")
        except OSError as error:
            if self.status == "finished":
                unwritten = f"{folder / RECORD} cannot be written ({error.strerror}); continue with resume=true"
                self.status, self.error = "failed", unwritten
        try:
            if self.status == "finished":
                append_predictions(records, folder)
            append(records, self._line(), "record")
        except RunFailed as error:
            there = f"; it is in {folder / RECORD}, and resume=true appends it" if self.status == "finished" else ""
            raise RunFailed(unwritten or f"{error}{there}") from None
        if unwritten:
            raise RunFailed(unwritten)

    def _line(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Read the records of a file, in the order in which they were written.

    Lines that are no records, such as one that a crash cut short, are skipped, and a warning says which. Control
    characters in texts, which a terminal would obey, are taken out.

    Raises:
        FishexpError: If there is no such file, or it holds lines but no record.
    """
    if not path.is_file():
        raise FishexpError(
            f"{path} is not a file of records; runs append to outputs/records.jsonl unless told otherwise"
        )
    found, skipped = 0, dict[int, str]()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            record = _record_of(line)
            if record is None:
                skipped[number] = _clean(line[:_SHOWN].decode(errors="replace").strip())
            else:
                found += 1
                yield record
    if skipped:
        number, text = next(iter(skipped.items()))
        if not found:
            raise FishexpError(f"{path} line {number} is not a record, and no other line is: {text!r}")
        log.warning("%s: %d lines are no records and are skipped, first line %d: %r", path, len(skipped), number, text)


def _record_of(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line of a file; None if it holds none."""
    try:
        record = _clean(json.loads(line.decode("utf-8-sig").strip("\0 \r\n")))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not record.keys() >= {"run_id", "status", "config", "metrics"}:
        return None
    kinds = {"run_id": str, "status": str, "config": dict, "metrics": dict}
    return record if all(isinstance(record[key], kind) for key, kind in kinds.items()) else None


def _clean(value: Any) -> Any:
    """Take control characters out of all texts in a value of JSON."""
    if isinstance(value, str):
        return "".join(c for c in value if c.isprintable() or c in "\n\t")
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list) else value


def finished(path: Path) -> dict[str, dict[str, Any]]:
    """Return run_id -> latest finished record in ``path``; a later attempt that failed takes nothing away."""
    found = read(path) if path.exists() else ()
    return {record["run_id"]: record for record in found if record["status"] == "finished"}


@cache  # the code is what it was when this process imported it
def commit() -> str | None:
    """Return the commit of this code, with a + if tracked files differ from it; None outside a repository.

    Files in experiments/ do not count, as they change no run: a sweep may write records that are tracked.
    """
    if not (_ROOT / ".git").exists():
        return None
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!experiments")
        return head + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def same_code(before: str | None, now: str | None) -> bool:
    """Tell whether two commits have the same package and configuration; those with a + may have anything."""
    if before == now:
        return not (now or "").endswith("+")
    if before is None or now is None or before.endswith("+") or now.endswith("+"):
        return False
    try:
        _git("diff", "--quiet", before, now, "--", "fishexp", "conf")
    except (OSError, subprocess.CalledProcessError):  # other code, or a commit that is not here
        return False
    return True


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that decide the numbers."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
