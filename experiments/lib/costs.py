"""The cost of a sweep: runs and hours to do."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from experiments.lib.plan import Command
from experiments.lib.settings import composed_runs
from fishexp.run.identity import run_id
from fishexp.run.settings import Config
from fishexp.system.text_table import aligned_text

UNKNOWN = "not measured"
HEADER = ["step", "runs", "done", "to do", "hours to go"]
ABOUT_HOURS = "Hours on one thread of an idle AMD EPYC: half of that with two processes on two cores."


@dataclass(frozen=True)
class Speed:
    """Hold the examples a second of each kind, on one thread of an idle machine."""

    training: float
    evaluation: float
    scoring: float

    def seconds(self, trained: float, evaluated: float, scored: float) -> float:
        """Estimate how long so many examples of each kind take, in seconds."""
        return trained / self.training + evaluated / self.evaluation + scored / self.scoring


# (model, precision, device, task) -> examples a second, measured on an AMD EPYC, of BERTs dense training; 256 images
# took 2.4 seconds to score
SPEEDS = {
    ("resnet9", "bf16", "cpu", None): Speed(180, 900, 40),
    ("resnet18", "bf16", "cpu", None): Speed(500, 1250, 256 / 2.4),
    ("minilm", "bf16", "cpu", "mrpc"): Speed(57, 210, 38),
    ("minilm", "bf16", "cpu", "sst2"): Speed(155, 420, 88),
    ("minilm", "bf16", "cpu", "stsb"): Speed(93, 215, 53),
}


def speed_of(run: Config) -> Speed | None:
    """Return the speed measured for runs like ``run``; None where nothing like it was measured."""
    return SPEEDS.get((run["model"]["name"], run["precision"], run["device"], run["data"].get("task")))


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


def hours(seconds: Iterable[float | None]) -> str:
    """Add up ``seconds`` and return them as hours, if all are known."""
    total = 0.0
    for duration in seconds:
        if duration is None:
            return UNKNOWN
        total += duration
    return f"{total / 3600:.1f}"


def cost_table(
    commands: Iterable[Command],
    done: Collection[str],
    seconds: Callable[[Config], float | None],
    about: str = ABOUT_HOURS,
) -> str:
    """Make the table of runs and hours: a row for each step, and their sum.

    Args:
        about: Sentence that says whose hours these are.
    """
    found = steps(commands, done)
    total = Step("all", [run for step in found for run in step.runs], [run for step in found for run in step.to_do])
    rows = [HEADER, *(step.row(seconds) for step in (*found, total))]
    return "\n".join([*aligned_text(rows, left_columns=1), about])
