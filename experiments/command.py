"""The command line that the tables share: PROFILE, DRY, PYTHON."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import sweep
from experiments.study import Section, Study, plan, section
from experiments.sweep import Command
from fishexp.errors import FishexpError
from fishexp.run.record import finished

Profiles = Mapping[str, Sequence[Study[Any]]]


def main(
    environment: Mapping[str, str],
    profiles: Profiles,
    records: Path,
    outputs: str,
    *,
    dry: Callable[[Iterable[Command], set[str]], str],
    write: Callable[[Path, Sequence[Section[Any]]], None],
) -> int:
    """Carry out the profile that ``environment`` names, or with DRY say what there is to do; the exit status.

    Args:
        environment: PROFILE, DRY, PYTHON.
        profiles: Name -> its studies.
        records: Where the runs are noted; the report is written beside it.
        outputs: Folder of the run folders.
        dry: The commands and the run_ids that are done -> what there is to do.
        write: Folder and sections of all profiles -> report.
    """
    name = environment.get("PROFILE") or "cpu"
    try:
        if name not in profiles:
            raise FishexpError(f"PROFILE={name}: no such profile; there are {', '.join(profiles)}")
        if environment.get("DRY", "0") not in ("", "0"):
            print(dry(plan(profiles[name], records), finished(records)))
            return 0
        python = environment.get("PYTHON") or sys.executable
        status = sweep.carry_out(lambda: plan(profiles[name], records), python, outputs, records)
        write(records.parent, sections(profiles, records))
        return status
    except FishexpError as error:
        print(f"fishexp: {error}", file=sys.stderr)
        return 2


def sections(profiles: Profiles, records: Path) -> list[Section[Any]]:
    """Those of all profiles, with what is on record.

    Raises:
        FishexpError: If a line is not a record, or records of one cell differ in their settings.
    """
    found = sweep.on_record(records)
    return [section(name, study, found) for name, studies in profiles.items() for study in studies]
