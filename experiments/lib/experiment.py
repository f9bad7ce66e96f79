"""An experiment, and the environment variables that say what to do with it: PROFILE, DRY, HOURS, PYTHON."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from experiments.lib import costs
from experiments.lib.plan import Command, plan
from experiments.lib.records import recorded_runs
from experiments.lib.results import Section, section_of
from experiments.lib.study import C, Study
from experiments.lib.sweep import carry_out
from fishexp.errors import FishexpError
from fishexp.run.record import finished


@dataclass(frozen=True)
class Experiment(Generic[C]):
    """Hold what an experiment runs, what that costs and how it is reported.

    Attributes:
        profiles: Name of a profile, which says how large the experiment is made -> its studies.
        write_report: (folder, the sections of all profiles) -> README.md and pictures in the folder.
        cost_table: (the commands, run_id -> record of those that are done) -> the text that DRY=1 prints.
        shares: Name of the experiment in whose folder the records are and whose runs count here too; None for its own.
    """

    profiles: Mapping[str, Sequence[Study[C]]]
    write_report: Callable[[Path, Sequence[Section[C]]], None]
    cost_table: Callable[[Iterable[Command], Mapping[str, Mapping[str, Any]]], str] = costs.cost_table
    shares: str | None = None


def run_experiment(
    experiment: Experiment[C], environment: Mapping[str, str], records: Path, outputs: str, folder: Path
) -> int:
    """Carry out a profile and write the report, or with DRY print what there is to do; return the exit status.

    Args:
        environment: PROFILE, DRY, HOURS, PYTHON, FISHEXP_DATA.
        records: File to which the runs append their records.
        outputs: Folder of the run folders.
        folder: Of the report.

    Raises:
        FishexpError: If there is no such profile, a setting is wrong or the records are not in order.
    """
    profiles, name = experiment.profiles, environment.get("PROFILE") or "cpu"
    if name not in profiles:
        raise FishexpError(f"PROFILE={name}: no such profile; there are {', '.join(profiles)}")
    commands, done = list(plan(profiles[name], records)), finished(records)
    if done and not any(costs.is_begun(command, done) for command in commands):
        unset = "" if environment.get("FISHEXP_DATA") else "; FISHEXP_DATA is not set"
        print(f"None of {len(done)} runs on record counts: other settings, examples or random streams{unset}")
    if environment.get("DRY", "0") not in ("", "0"):
        print(experiment.cost_table(commands, done))
        return 0
    python = environment.get("PYTHON") or sys.executable
    status = carry_out(lambda: plan(profiles[name], records), python, outputs, records, _hours(environment))
    experiment.write_report(folder, sections(experiment, records))
    return status


def _hours(environment: Mapping[str, str]) -> float:
    """Return how many hours a sweep may take.

    Raises:
        FishexpError: If HOURS is no number above 0.
    """
    text = environment.get("HOURS") or "inf"
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not hours > 0:
        raise FishexpError(f"HOURS={text} is no number above 0; give the hours that the sweep may take, as HOURS=1.5")
    return hours


def sections(experiment: Experiment[C], records: Path) -> list[Section[C]]:
    """Return the sections of all profiles, with what is on record.

    Raises:
        FishexpError: If a file holds lines but no record, or records of one cell differ in their settings.
    """
    runs = recorded_runs(records)
    return [section_of(study, name, runs) for name, studies in experiment.profiles.items() for study in studies]
