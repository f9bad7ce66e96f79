"""What a table is made of: its cells, the learning rates they run at, and what is on record of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from experiments import sweep
from experiments.sweep import Command, OnRecord
from fishexp.errors import FishexpError
from fishexp.report.group import Group
from fishexp.report.pool import differing
from fishexp.run.settings import Config


class Cell(Protocol):
    """Runs that differ in the seed only; two cells are equal if they are told the same."""

    @property
    def method(self) -> str:
        """Its name on the command line."""
        ...

    @property
    def told(self) -> str:
        """The overrides that tell it from other cells, the method apart."""
        ...

    def __hash__(self) -> int:
        """Cells are keys."""
        ...


C = TypeVar("C", bound=Cell)


@dataclass(frozen=True)
class Study(Generic[C]):
    """Cells that are run in one way.

    Attributes:
        name: Of this part of the table; empty where it is all.
        about: For the report.
        common: Overrides of every run.
        methods: Method -> overrides of its runs alone.
        choose: Overrides of the runs on held-out examples; None: the rates are known.
        rates: Method -> the rates tried for a cell that has its rate chosen.
        sources: Cell -> the cell whose rate it takes, in the order of the table.
        report: Overrides of the runs in the table.
        seeds: Of the runs in the table.
        known: Cell -> its rate, where none is chosen.
    """

    name: str
    about: str
    common: str
    methods: Mapping[str, str]
    choose: str | None
    rates: Mapping[str, Sequence[float]]
    sources: Mapping[C, C]
    report: str
    seeds: Sequence[int]
    known: Mapping[C, float] = field(default_factory=dict)

    @property
    def cells(self) -> list[C]:
        """In the order of the table."""
        return list(self.sources)

    def overrides(self, cell: C, *more: str) -> tuple[str, ...]:
        """What stands behind ``python -m fishexp -m`` for ``cell``."""
        words = [self.common, f"method={cell.method}", cell.told, *more, self.methods.get(cell.method, "")]
        return tuple(" ".join(words).split())


@dataclass(frozen=True)
class Result(Generic[C]):
    """What is on record of a cell.

    Attributes:
        lr: Chosen for it; None before its runs on held-out examples are done.
        source: The cell on whose held-out runs the rate was chosen; others may share it.
        tried: Learning rate -> those runs, None where they failed.
        group: Its own runs at that rate; None where none has finished.
        failed: How many of its runs at that rate failed.
    """

    cell: C
    lr: float | None
    source: C
    tried: Mapping[float, Group | None]
    group: Group | None
    failed: int


@dataclass(frozen=True)
class Section(Generic[C]):
    """A study in the report.

    Attributes:
        profile: The name of the profile that it belongs to.
        results: In the order of the table.
        in_table: What the first cell's runs in the table are told.
        chosen: What they are told on held-out examples; None where rates are not chosen.
    """

    profile: str
    study: Study[C]
    results: Sequence[Result[C]]
    in_table: Config
    chosen: Config | None


def best(tried: Mapping[float, Group | None]) -> float | None:
    """The learning rate of the highest mean, of equals the smallest; None if all failed or are undefined."""
    means = {lr: group.mean for lr, group in tried.items() if group and group.mean is not None}
    return min(means, key=lambda lr: (-means[lr], lr)) if means else None


def result(study: Study[C], cell: C, found: OnRecord) -> Result[C]:
    """What is on record of ``cell``. Its rate is chosen once all have been tried.

    Raises:
        FishexpError: If runs on record have the cell's settings but differ from each other in further ones.
    """
    of, tried = study.sources[cell], {}
    if study.choose is None:
        chosen = study.known[of]
    else:
        rates = study.rates[of.method]
        runs = {lr: _find(found, study.overrides(of, study.choose, f"regime.lr={lr:g}")) for lr in rates}
        tried = {lr: group for lr, (group, failed) in runs.items() if group or failed}
        chosen = best(tried) if len(tried) == len(rates) else None
    if chosen is None:
        return Result(cell, None, of, tried, None, 0)
    told = study.overrides(cell, "data.holdout=0", study.report, f"regime.lr={chosen:g}")
    return Result(cell, chosen, of, tried, *_find(found, told))


def _find(found: OnRecord, told: Sequence[str]) -> tuple[Group | None, int]:
    """The finished runs with these settings, and how many failed."""
    groups = [group for group in found.groups if sweep.told(group.settings, told)]
    if len(groups) > 1:
        raise FishexpError(f"records of {' '.join(told)} differ in {', '.join(differing(groups))}; keep one kind")
    return groups[0] if groups else None, sum(sweep.told(settings, told) for settings in found.failed)


def plan(studies: Sequence[Study[C]], records: Path) -> Iterator[Command]:
    """Every command of the sweep: the choices of learning rates, then the table, seed by seed."""
    found = sweep.on_record(records)
    results = [(study, [result(study, cell, found) for cell in study.cells]) for study in studies]
    for study, of in results:
        for cell in dict.fromkeys(one.source for one in of if study.choose is not None):
            rates = ",".join(f"{lr:g}" for lr in study.rates[cell.method])
            told = study.overrides(cell, study.choose or "", "seed=0", f"regime.lr={rates}")
            yield Command(f"{study.name} rates".strip(), told)
    for seed in dict.fromkeys(seed for study in studies for seed in study.seeds):
        for study, one in ((study, one) for study, of in results if seed in study.seeds for one in of):
            lr = one.lr or study.rates[one.cell.method][0]
            told = study.overrides(one.cell, study.report, f"seed={seed}", f"regime.lr={lr:g}")
            yield Command(f"{study.name} table".strip(), told, waits=one.lr is None)


def section(profile: str, study: Study[C], found: OnRecord) -> Section[C]:
    """What the report says of a study."""
    cell = study.cells[0]
    in_table, *_ = sweep.composed(study.overrides(cell, study.report, "regime.lr=1"))
    chosen = None if study.choose is None else sweep.composed(study.overrides(cell, study.choose))[0]
    return Section(profile, study, [result(study, one, found) for one in study.cells], in_table, chosen)
