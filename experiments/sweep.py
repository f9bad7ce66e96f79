"""What the larger sweeps share: command lines of runs, which of them are done, and carrying out the others."""

import argparse
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fishexp import config
from fishexp.record import finished
from fishexp.settings import Config, run_id

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

    def configs(self) -> tuple[Config, ...]:
        """The runs' resolved configurations.

        Raises:
            FishexpError: If the command line has a mistake.
        """
        return _composed(self.overrides)

    def to_do(self, done: set[str]) -> list[Config]:
        """The runs whose run_id is not among ``done``; all, while the command waits."""
        return [run for run in self.configs() if self.waits or run_id(run) not in done]


@cache
def _composed(overrides: tuple[str, ...]) -> tuple[Config, ...]:
    config.register_resolvers()
    return tuple(
        config.check_command_line(argparse.Namespace(overrides=list(overrides), multirun=True, config_dir=None))
    )


def carry_out(plan: Callable[[], Sequence[Command]], python: str, outputs: str, records: Path) -> int:
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
        print(f"{runs} runs are not done: they failed, or another process is at them; the same command goes on")
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
