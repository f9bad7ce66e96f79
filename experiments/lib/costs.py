"""The cost of a sweep: runs and hours to do, what of it fits into some hours, and what is whole."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from experiments.lib.durations import Durations
from experiments.lib.plan import Command
from experiments.lib.settings import composed_runs
from fishexp.run.identity import run_id
from fishexp.run.settings import Config
from fishexp.system.text_table import aligned_text

UNKNOWN = "not measured"
HEADER = ["step", "runs", "done", "to do", "hours to go"]
ABOUT_HOURS = "Hours as runs on record took that are like these, one by one; two on two cores take half as long."


@dataclass(frozen=True)
class Step:
    """Hold the runs of a step of a sweep.

    Attributes:
        runs: All of its runs.
        to_do: Those that are not done.
    """

    name: str
    runs: Sequence[Config]
    to_do: Sequence[Config]

    def row(self, seconds: Callable[[Config], float | None]) -> list[str]:
        """Return the entries below ``HEADER``; ``seconds`` is None of a run unlike all that were measured."""
        counts = len(self.runs), len(self.runs) - len(self.to_do), len(self.to_do)
        return [self.name, *map(str, counts), hours(map(seconds, self.to_do))]


def steps(commands: Iterable[Command], done: Collection[str]) -> list[Step]:
    """Group the runs of the commands by step, in order."""
    found: dict[str, tuple[list[Config], list[Config]]] = {}
    for command in commands:
        runs, to_do = found.setdefault(command.step, ([], []))
        left = {run_id(run) for run in command.to_do(done)}
        runs += composed_runs(command.overrides)
        to_do += [run for run in composed_runs(command.overrides) if run_id(run) in left]
    return [Step(name, runs, to_do) for name, (runs, to_do) in found.items()]


def is_begun(command: Command, done: Collection[str]) -> bool:
    """Tell whether some run of ``command`` is done."""
    return len(command.to_do(done)) < len(composed_runs(command.overrides))


def hours(seconds: Iterable[float | None]) -> str:
    """Add up ``seconds`` and return them as hours, if all are known."""
    total = 0.0
    for duration in seconds:
        if duration is None:
            return UNKNOWN
        total += duration
    return f"{total / 3600:.1f}"


def cost_table(commands: Iterable[Command], done: Mapping[str, Mapping[str, Any]]) -> str:
    """Make the table of runs and hours: a row for each step, and their sum.

    Args:
        done: run_id -> record of the runs that are done.
    """
    found, durations = steps(commands, done), Durations(done)
    total = Step("all", [run for step in found for run in step.runs], [run for step in found for run in step.to_do])
    rows = [HEADER, *(step.row(durations.seconds) for step in (*found, total))]
    return "\n".join([*aligned_text(rows, left_columns=1), ABOUT_HOURS])


def fitting(hours: float, commands: Sequence[Command], done: Collection[str], durations: Durations) -> str:
    """Say how many runs fit into ``hours``, the first commands first, and which parts of the sweep are whole then."""
    left, fit, to_do = 3600 * hours, 0, [(command, command.to_do(done)) for command in commands]
    inside = {command for command, runs in to_do if not runs}
    for command, runs in to_do:
        taken = [durations.seconds(run) or math.inf for run in runs]
        fit += sum(end <= left for end in accumulate(taken))
        left -= sum(taken)
        if runs and left >= 0:
            inside.add(command)
    count = sum(len(runs) for _, runs in to_do)
    return f"HOURS={hours:g} is enough for about {fit} of {count} runs to do; whole then: {whole(commands, inside)}"


def whole(commands: Iterable[Command], done: Collection[Command]) -> str:
    """Name the steps whose commands are all among ``done``, and the seeds with which they are."""
    steps: dict[str, dict[int, bool]] = {}
    for command in commands:
        seeds = steps.setdefault(command.step, {})
        for run in composed_runs(command.overrides):
            seeds[run["seed"]] = seeds.get(run["seed"], True) and command in done
    named = {step: [str(seed) for seed, is_whole in seeds.items() if is_whole] for step, seeds in steps.items()}
    texts = [f"{step} (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})" for step, seeds in named.items() if seeds]
    return "; ".join(texts) or "nothing"
