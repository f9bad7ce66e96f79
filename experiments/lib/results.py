"""The results of a study: the runs on record of each cell, and the learning rate chosen for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

from experiments.lib.records import RecordedRuns
from experiments.lib.settings import Settings, composed_run
from experiments.lib.study import CHOICE_SEED, C, Study
from fishexp.report.differences import Predicted
from fishexp.report.group import Group
from fishexp.run.settings import Config
from fishexp.run.tuning import best_rate, rates_beyond


@dataclass(frozen=True)
class Result(Generic[C]):
    """Hold what is on record of a cell.

    Attributes:
        lr: The rate chosen for it; None before its runs on held-out examples are done.
        source: The cell on whose held-out runs the rate was chosen; others may share it.
        beyond: The rates beyond those of the study by which the grid grew.
        tried: Learning rate -> those runs, None where they failed.
        group: Its own runs at that rate; None where none has finished.
        failed: Number of its runs at that rate that failed.
    """

    cell: C
    lr: float | None
    source: C
    beyond: Sequence[float]
    tried: Mapping[float, Group | None]
    group: Group | None
    failed: int


@dataclass(frozen=True)
class Section(Generic[C]):
    """Hold what the report says of a study.

    Attributes:
        profile: Name of the profile that the study belongs to.
        results: Results in the order of the table.
        in_table: Configuration of the first cell's runs in the table.
        chosen: Configuration of its runs on held-out examples; None where rates are not chosen.
        runs: All that is on record, of other studies too.
    """

    profile: str
    study: Study[C]
    results: Sequence[Result[C]]
    in_table: Config
    chosen: Config | None
    runs: RecordedRuns

    @property
    def predicted(self) -> Predicted:
        """Return what the runs predicted, as far as that is on record."""
        return self.runs.predicted


def means(tried: Mapping[float, Group | None]) -> dict[float, float | None]:
    """Return learning rate -> mean of its runs; None where they failed, or their metric is undefined."""
    return {lr: group.mean if group else None for lr, group in tried.items()}


def result_of(study: Study[C], cell: C, runs: RecordedRuns) -> Result[C]:
    """Look up what is on record of ``cell``. Its rate is chosen once all have been tried.

    Raises:
        FishexpError: If runs on record have the cell's settings but differ from each other in further ones.
    """
    source, runs = study.sources[cell], runs.of_latest_streams(study.shared)
    if study.choose is None:
        lr, beyond, tried = study.known[source], [], {}
    else:
        lr, beyond, tried = _choice(study, source, study.choose, runs)
    if lr is None:
        return Result(cell, None, source, beyond, tried, None, 0)
    settings = study.settings(cell, {"data.holdout": 0}, study.report, {"regime.lr": lr})
    return Result(cell, lr, source, beyond, tried, *runs.find(settings, study.seeds))


def _choice(
    study: Study[C], source: C, choose: Settings, runs: RecordedRuns
) -> tuple[float | None, list[float], dict[float, Group | None]]:
    """Return the rate chosen for ``source`` (None before all are tried), how its grid grew, and the runs on record."""
    first = study.rates[source.method]
    beyond, tried, due = list[float](), dict[float, Group | None](), list(first)
    while due:
        found = {lr: runs.find(study.settings(source, choose, {"regime.lr": lr}), [CHOICE_SEED]) for lr in due}
        tried |= {lr: group for lr, (group, failed) in found.items() if group or failed}
        if len(tried) < len(first) + len(beyond):
            return None, beyond, tried
        due = rates_beyond(first, means(tried), study.grow) if study.grow else []
        beyond += due
    return _ranked(means(tried), study.rank), beyond, tried


def _ranked(tried: dict[float, float | None], rank: int) -> float | None:
    """Return the rate that so many others are better than; None if there is none."""
    best = best_rate(tried)
    return best if not rank else _ranked({lr: score for lr, score in tried.items() if lr != best}, rank - 1)


def section_of(study: Study[C], profile: str, runs: RecordedRuns) -> Section[C]:
    """Look up what the report says of a study.

    Raises:
        FishexpError: If records of one cell differ in their settings.
    """
    first = study.cells[0]
    in_table = composed_run(study.settings(first, study.report, {"regime.lr": 1}))
    chosen = None if study.choose is None else composed_run(study.settings(first, study.choose))
    results = [result_of(study, cell, runs) for cell in study.cells]
    return Section(profile, study, results, in_table, chosen, runs)
