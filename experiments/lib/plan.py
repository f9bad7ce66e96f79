"""The command lines of studies, in the order in which they run."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.lib.records import recorded_runs
from experiments.lib.results import Result, result_of
from experiments.lib.settings import as_overrides, composed_runs
from experiments.lib.study import CHOICE_SEED, C, Study
from fishexp.run.identity import run_id
from fishexp.run.settings import Config


@dataclass(frozen=True)
class Command:
    """Hold the command line of one or several runs.

    Attributes:
        step: Name of the step of the sweep that it belongs to, for people.
        overrides: Arguments of ``python -m fishexp -m``.
        waits: Something in ``overrides`` is a placeholder until runs of an earlier step are done.
    """

    step: str
    overrides: tuple[str, ...]
    waits: bool = False

    def to_do(self, done: Collection[str]) -> list[Config]:
        """Return the runs whose run_id is not among ``done``; all of them while the command waits."""
        return [run for run in composed_runs(self.overrides) if self.waits or run_id(run) not in done]


def plan(studies: Sequence[Study[C]], records: Path) -> Iterator[Command]:
    """Yield every command of the sweep: seed by seed all studies, each after the choice of its learning rates.

    So all tables are complete for some number of seeds before the next begins. Where a grid of rates grows, the rate
    beyond it is a command as soon as those within are on record.

    Raises:
        FishexpError: If a file holds lines but no record, or records of one cell differ in their settings.
    """
    runs = recorded_runs(records)
    planned = [(study, [result_of(study, cell, runs) for cell in study.cells]) for study in studies]
    for seed in dict.fromkeys(seed for study in studies for seed in study.seeds):
        for study, results in planned:
            if seed == study.seeds[0]:
                yield from _choices(study, results)
            for result in results if seed in study.seeds else []:
                lr = result.lr or study.rates[result.cell.method][0]
                settings = study.settings(result.cell, study.report, {"seed": seed, "regime.lr": lr})
                yield Command(f"{study.name} table".strip(), as_overrides(settings), waits=result.lr is None)


def _choices(study: Study[C], results: Sequence[Result[C]]) -> Iterator[Command]:
    """Yield the commands of the runs on held-out examples from which the rates of a study are chosen."""
    if study.choose is None:
        return
    for cell, beyond in {result.source: result.beyond for result in results}.items():
        for rates in (tuple(study.rates[cell.method]), *((lr,) for lr in beyond)):
            settings = study.settings(cell, study.choose, {"seed": CHOICE_SEED, "regime.lr": rates})
            yield Command(f"{study.name} rates".strip(), as_overrides(settings))
