"""Carrying out the commands of a plan whose runs are not done."""

import math
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.lib import costs
from experiments.lib.durations import REPOSITORY, Durations
from experiments.lib.plan import Command
from fishexp.run.record import finished
from fishexp.system.program import FAILED

# seconds left of a sweep's hours below which no run is begun; a run stops at most 60 before its time is over
_SHORTEST = 120


def carry_out(
    plan: Callable[[], Iterable[Command]], python: str, outputs: str, records: Path, hours: float = math.inf
) -> int:
    """Run what ``plan`` says, the first command first, until all is done or has been tried once, or time is up.

    The plan is asked for again after every command, as later steps depend on the results of earlier ones. Runs on
    record are skipped, cut ones resumed, and those that another process is at left to it: the same command may go on
    in several terminals.

    Args:
        hours: After which the run that goes on is stopped, with a snapshot.

    Returns:
        0 if every run is done or time is up, else the exit status of the command that ended the sweep, or 1.
    """
    end, done = time.monotonic() + 3600 * hours, finished(records)
    if hours < math.inf:
        _foretell(list(plan()), done, hours, python)
    tried: set[Command] = set()
    while (seconds_left := end - time.monotonic()) > _SHORTEST:
        untried = (command for command in plan() if not command.waits and command not in tried)
        command = next((command for command in untried if command.to_do(done)), None)
        if command is None:
            break
        tried.add(command)
        places = f"outputs={outputs}", f"records={records}"
        limit = [] if hours == math.inf else [f"minutes={seconds_left / 60:.2f}"]
        status = _call([python, "-m", "fishexp", "-m", "resume=true", *places, *limit, *command.overrides])
        if status not in (0, FAILED) and end - time.monotonic() > _SHORTEST:
            return status if status > 0 else 128 - status
        done = finished(records)
    commands = list(plan())
    if hours < math.inf:
        print("whole:", costs.whole(commands, {command for command in commands if not command.to_do(done)}))
    if left := sum(len(command.to_do(done)) for command in commands):
        runs = "1 run is" if left == 1 else f"{left} runs are"
        why = "time is up" if seconds_left <= _SHORTEST else "failed, or going on in another process"
        print(f"{runs} not done: {why}; the same command continues")
    return FAILED if left and seconds_left > _SHORTEST else 0


def _foretell(commands: Sequence[Command], done: Mapping[str, Mapping[str, Any]], hours: float, python: str) -> None:
    """Time steps of the runs to do, and print how many of these fit into ``hours``."""
    if to_do := [command for command in commands if command.to_do(done)]:
        durations = Durations(done)
        print("timing a few steps of each kind of run", flush=True)
        for line in durations.time(to_do, python):
            print(line, flush=True)
        print(costs.fitting(hours, commands, done, durations), flush=True)


def _call(command: Sequence[str]) -> int:
    """Run ``command`` and return its exit status. Signals reach it as well, and it ends by itself then."""
    print("$", *command[1:], flush=True)
    process = subprocess.Popen(command, cwd=REPOSITORY)
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),  # a terminal sends it to both
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda kind, _: process.send_signal(kind)),
    }
    try:
        return process.wait()
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
