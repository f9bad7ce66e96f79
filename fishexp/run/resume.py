"""What a run that resumes finds on record: whether it is done, and whether that was by the code of today."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from fishexp.errors import FishexpError
from fishexp.run.identity import own_code, run_id
from fishexp.run.predictions_file import append_predictions
from fishexp.run.record import RECORD, commit, finished, read, same_code, versions
from fishexp.run.run_folder import lock
from fishexp.run.settings import Config
from fishexp.system.atomic import append


def done_already(config: Config, folder: Path) -> tuple[bool, str]:
    """Tell whether a run need not run again.

    Args:
        config: Settings of the run. ``resume=true`` asks for a record that says finished; ``resume=strict`` asks for
            the run's folder too, and for a record of the same code and packages.
        folder: The folder of the run.

    Returns:
        Whether it is done, and what is no longer as it was when it finished; empty if everything is.
    """
    if config["resume"] and os.environ.get("RANK", "0") == "0":  # one of torchrun's workers
        _complete(folder, Path(config["records"]), run_id(config))
    record = finished(Path(config["records"])).get(run_id(config)) if config["resume"] else None
    if record is None:
        return False, ""
    changes = changes_since_done(record, config, folder)
    return config["resume"] is True or not changes, ", ".join(changes)


def changes_since_done(record: dict[str, Any], config: Config, folder: Path) -> list[str]:
    """List what is no longer as it was when a run finished: code, packages, its folder."""
    gone = [] if (folder / RECORD).exists() else [f"{folder} is gone"]
    return code_changes(record, commit(), versions() | own_code(config)) + gone


def _complete(folder: Path, records: Path, run_id: str) -> None:
    """Do what was left for a run that is finished by its folder: append predictions and record, remove snapshots.

    Raises:
        RunFailed: If they cannot be appended now either.
    """
    if not (folder / RECORD).exists():
        return
    with suppress(FishexpError), lock(folder):  # else the folder is in use or read-only, or its record is none
        record = next(read(folder / RECORD), None)
        if record and (record["run_id"], record["status"]) == (run_id, "finished"):
            if run_id not in finished(records):
                append_predictions(records, folder)
                append(records, json.dumps(record), "record")
            shutil.rmtree(folder / "snapshots", ignore_errors=True)


def code_changes(record: dict[str, Any], now: str | None, packages: dict[str, str]) -> list[str]:
    """List what is other than it was when a record was written: code and packages.

    Args:
        record: The record; what it does not say counts as changed.
        now: Commit of the code of today.
        packages: Name -> version of the packages of today, and digests of the user's own modules.
    """
    before = {"commit": record.get("commit"), **(record.get("versions") or {})}
    today = {"commit": now, **packages}
    names = [name for name in sorted({*before, *today}) if before.get(name) != today.get(name)]
    changes = [f"{name} {before.get(name)} -> {today.get(name)}" for name in names if name != "commit"]
    if not same_code(before["commit"], now):
        same_commit = before["commit"] == now
        changes.insert(0, "code that is not committed" if same_commit else f"commit {before['commit']} -> {now}")
    return changes
