"""Snapshots of a run: where they are, what they say of the run, and whether it may resume from them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fishexp.distributed.context import Context
from fishexp.errors import FishexpError
from fishexp.run.artifacts import forget
from fishexp.run.record import Record
from fishexp.run.resume import code_changes
from fishexp.run.settings import Settings
from fishexp.training.collectives import Collectives
from fishexp.training.logger import Logger
from fishexp.training.snapshots import Snapshot, Snapshots


def make_snapshots(
    folder: Path,
    settings: Settings,
    collectives: Collectives,
    context: Context,
    facts: Callable[[], dict[str, Any]],
    *,
    together: bool,
) -> Snapshots:
    """Make the snapshots of a run in ``folder``: of each worker, or of all that train one model ``together``.

    The first process takes the latter for all, and its clock says when.
    """
    minutes = settings.snapshot_minutes if context.is_main or not together else math.inf
    return Snapshots(folder, minutes, settings.snapshot_keep, None if together else collectives, facts)


def snapshot_facts(record: Record, logger: Logger) -> dict[str, Any]:
    """Return what :func:`begin` needs of a snapshot to resume record and log."""
    kept = {"kept": [record.kept, record.kept_per_worker], "kept_by": record.kept_by}
    read = {"scores_read": record.scores_read}
    return {**kept, "conditions": _conditions(record), "inputs": record.inputs, **read, **logger.state()}


def _conditions(record: Record) -> dict[str, Any]:
    """Return what else the result, or its last bits, depend on."""
    return {
        "threads": record.threads, "processes": record.processes, "device": record.device, "commit": record.commit,
        "versions": record.versions,
    }  # fmt: skip


def resumable(snapshots: Snapshots, record: Record, settings: Settings, logger: Logger) -> list[Snapshot]:
    """Load the snapshots to resume from; with ``resume=strict`` none that other code, threads or device have made."""
    resumed = snapshots.load()
    changes = changes_since(resumed[0].about["conditions"], record) if resumed else []
    if changes and settings.resume == "strict":
        logger.say(f"begun anew, as the snapshots were made otherwise: {', '.join(changes)}")
        return []
    return resumed


def changes_since(before: dict[str, Any], record: Record) -> list[str]:
    """List what is other than it was when a snapshot was made."""
    now = _conditions(record)
    before = {"processes": 1} | before  # as it was before several could train one model
    names = ("threads", "processes", "device")
    changes = [f"{name} {before[name]} -> {now[name]}" for name in names if before[name] != now[name]]
    return changes + code_changes(before, record.commit, record.versions)


def check_inputs(record: Record, resumed: list[Snapshot]) -> None:
    """Refuse to resume from snapshots that were made with other examples or other initial weights.

    Raises:
        FishexpError: If they were.
    """
    for name, now in record.inputs.items():
        if resumed and resumed[0].about["inputs"][name] != now:
            raise FishexpError(
                f"the {name} of this run are other ones than when it was interrupted; resume=false begins anew"
            )


def begin_anew(folder: Path, snapshots: Snapshots, resumed: list[Snapshot], context: Context) -> None:
    """Clear what an earlier attempt left if a run begins anew: once data and model are there, or it would be lost."""
    if not resumed:
        snapshots.clear()
        if context.is_main:
            forget(folder)
