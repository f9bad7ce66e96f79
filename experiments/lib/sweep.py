"""Carrying out the commands of a plan whose runs are not done."""

import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from experiments.lib.plan import Command
from fishexp.run.record import finished

REPOSITORY = Path(__file__).parents[2]
RUN_FAILED = 1  # exit status of `python -m fishexp` where a run broke down; the others of a sweep may still do


def carry_out(plan: Callable[[], Iterable[Command]], python: str, outputs: str, records: Path) -> int:
    """Run what ``plan`` says, the first command first, until all is done or has been tried once.

    The plan is asked for again after every command, as later steps depend on the results of earlier ones. Runs on
    record are skipped, cut ones resumed, and those that another process is at left to it: the same command may go on
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
    left = sum(len(command.to_do(done)) for command in plan())
    if left:
        runs = "1 run is" if left == 1 else f"{left} runs are"
        print(f"{runs} not done: failed, or going on in another process; the same command continues")
    return RUN_FAILED if left else 0


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
