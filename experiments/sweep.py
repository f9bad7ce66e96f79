"""What the larger sweeps share: their command lines, carrying out those that are not done, finding the records."""

import argparse
import json
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fishexp.report.group import Group, settings_of
from fishexp.report.pool import load, pool
from fishexp.run import config
from fishexp.run.record import finished
from fishexp.run.settings import Config, run_id

ROOT = Path(__file__).parents[1]
RUN_FAILED = 1  # as `python -m fishexp` exits where a run broke down; the others of a sweep may still do


@dataclass(frozen=True)
class Command:
    """One command line, of one run or several.

    Attributes:
        step: Of the sweep, for people.
        overrides: What stands behind ``python -m fishexp -m``.
        waits: Something in ``overrides`` is a placeholder until runs of an earlier step are done.
    """

    step: str
    overrides: tuple[str, ...]
    waits: bool = False

    def to_do(self, done: set[str]) -> list[Config]:
        """The runs whose run_id is not among ``done``; all, while the command waits."""
        return [run for run in composed(self.overrides) if self.waits or run_id(run) not in done]


@cache
def composed(overrides: tuple[str, ...]) -> tuple[Config, ...]:
    """The resolved configurations of the runs of a command line.

    Raises:
        FishexpError: If it has a mistake.
    """
    config.register_resolvers()
    told = argparse.Namespace(overrides=list(overrides), multirun=True, config_dir=None)
    return tuple(config.check_command_line(told))


def carry_out(plan: Callable[[], Iterable[Command]], python: str, outputs: str, records: Path) -> int:
    """Run what ``plan`` says, the first command first, until all is done or has been tried once.

    The plan is asked for again after every command, as later steps depend on the results of earlier ones. Runs on
    record are skipped, cut ones continued, and those that another process is at left to it: the same command may go on
    in several terminals.

    Returns:
        0 if every run is done, else the exit status of the command that ended the sweep, or 1.
    """
    tried: set[Command] = set()
    while True:
        done = finished(records)
        untried = (command for command in plan() if not command.waits and command not in tried)
        command = next((command for command in untried if command.to_do(done)), None)
        if command is None:
            break
        tried.add(command)
        places = f"outputs={outputs}", f"records={records}"
        status = _call([python, "-m", "fishexp", "-m", "resume=true", *places, *command.overrides])
        if status not in (0, RUN_FAILED):
            return status if status > 0 else 128 - status
    runs = sum(len(command.to_do(done)) for command in plan())
    if runs:
        what = "1 run is" if runs == 1 else f"{runs} runs are"
        print(f"{what} not done: failed, or going on in another process; the same command continues")
    return RUN_FAILED if runs else 0


def _call(command: Sequence[str]) -> int:
    """The exit status of ``command``, which the signals reach as well, and which ends by itself then."""
    print("$", *command[1:], flush=True)
    process = subprocess.Popen(command, cwd=ROOT)
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),  # a terminal sends it to both
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda kind, _: process.send_signal(kind)),
    }
    try:
        return process.wait()
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@dataclass(frozen=True)
class OnRecord:
    """What a file of records holds.

    Attributes:
        groups: The finished runs, pooled over seeds.
        failed: The settings of each run that failed and has not finished since.
    """

    groups: list[Group]
    failed: list[dict[str, Any]]


def on_record(records: Path) -> OnRecord:
    """Nothing if there is no file.

    Raises:
        FishexpError: If a line is not a record.
    """
    lines = list(load([records])) if records.exists() else []
    done = {line["run_id"] for line in lines if line["status"] == "finished"}
    failed = {line["run_id"]: line for line in lines if line["status"] == "failed" and line["run_id"] not in done}
    pooled = pool(lines, uncommitted=True) if done else None
    groups = pooled.held_out + pooled.reported if pooled else []
    return OnRecord(groups, [settings_of(line) for line in failed.values()])


def told(settings: Mapping[str, Any], overrides: Iterable[str]) -> bool:
    """Whether a run's settings have all that ``overrides`` names."""
    return all(_has(settings, *override.split("=", 1)) for override in overrides)


def _has(settings: Mapping[str, Any], key: str, text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return settings.get(f"{key}.name", settings.get(key)) == value
