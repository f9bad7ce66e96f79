"""What a sweep would cost: runs and hours."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from experiments.sweep import Command, composed
from fishexp.run.settings import Config, run_id

UNKNOWN = "not measured"

_ABOUT = "Hours on one thread of an idle AMD EPYC: half of that with two processes on two cores."


@dataclass(frozen=True)
class Speed:
    """Examples a second, on one thread of an idle machine."""

    training: float
    evaluation: float
    scoring: float

    def seconds(self, trained: float, evaluated: float, scored: float) -> float:
        """For so many examples of each kind."""
        return trained / self.training + evaluated / self.evaluation + scored / self.scoring


# (model, precision, device, task) -> measured on an AMD EPYC, of BERTs dense training; 256 images took 2.4 seconds
# to score
SPEEDS = {
    ("resnet9", "bf16", "cpu", None): Speed(180, 900, 40),
    ("resnet18", "bf16", "cpu", None): Speed(500, 1250, 256 / 2.4),
    ("minilm", "bf16", "cpu", "mrpc"): Speed(57, 210, 38),
    ("minilm", "bf16", "cpu", "sst2"): Speed(155, 420, 88),
    ("minilm", "bf16", "cpu", "stsb"): Speed(93, 215, 53),
}


def speed_of(run: Config) -> Speed | None:
    """None where nothing like ``run`` was measured."""
    return SPEEDS.get((run["model"]["name"], run["precision"], run["device"], run["data"].get("task")))


@dataclass(frozen=True)
class Step:
    """Of a sweep.

    Attributes:
        runs: All of them.
        to_do: Those that are not done.
    """

    name: str
    runs: Sequence[Config]
    to_do: Sequence[Config]

    def line(self, seconds: Callable[[Config], float | None]) -> list[str]:
        """Its cells below ``HEADER``; a run of None seconds is like none that was measured."""
        counts = len(self.runs), len(self.runs) - len(self.to_do), len(self.to_do)
        return [self.name, *map(str, counts), hours(map(seconds, self.to_do))]


HEADER = ["step", "runs", "done", "to do", "hours to go"]


def steps(commands: Iterable[Command], done: set[str]) -> list[Step]:
    """The commands by step, in order."""
    found: dict[str, tuple[list[Config], list[Config]]] = {}
    for command in commands:
        runs, to_do = found.setdefault(command.step, ([], []))
        left = {run_id(run) for run in command.to_do(done)}
        runs += composed(command.overrides)
        to_do += [run for run in composed(command.overrides) if run_id(run) in left]
    return [Step(name, runs, to_do) for name, (runs, to_do) in found.items()]


def hours(seconds: Iterable[float | None]) -> str:
    """Of all together, if all are known."""
    every = list(seconds)
    known = [one for one in every if one is not None]
    return f"{sum(known) / 3600:.1f}" if len(known) == len(every) else UNKNOWN


def lined_up(lines: Sequence[Sequence[str]]) -> str:
    """``lines`` as a table of plain text, the first of them its header, and what the hours mean."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]
    return "\n".join([*rows, _ABOUT])


def table(commands: Iterable[Command], done: set[str], seconds: Callable[[Config], float | None]) -> str:
    """A line for each step, and their sum."""
    found = steps(commands, done)
    whole = Step("all", [run for one in found for run in one.runs], [run for one in found for run in one.to_do])
    return lined_up([HEADER, *(one.line(seconds) for one in (*found, whole))])
