"""How large a table to make, its cells, and what came of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fishexp.report.group import Group
from fishexp.settings import Config

Schedule: TypeAlias = Literal["fixed", "every_epoch"]


@dataclass(frozen=True)
class Profile:
    """How large a table to make.

    Attributes:
        about: For the report.
        common: Overrides of every run.
        fish: Overrides of FISH alone.
        choose: Overrides of the runs on held-out images; None: the rates are those of the authors' logs.
        rates: Tried for each cell that has its rate chosen.
        rate_of: keep -> the keep at which its rate is chosen, where that is another.
        tuned: The schedules with rates of their own; the others take those of the first.
        report: Overrides of the runs in the table.
        seeds: Of the runs in the table.
        variants: The tables to make.
    """

    about: str
    common: str
    fish: str
    choose: str | None
    rates: Sequence[float]
    rate_of: Mapping[float, float]
    tuned: Sequence[Schedule]
    report: str
    seeds: Sequence[int]
    variants: Sequence[str]


@dataclass(frozen=True)
class Cell:
    """Runs that differ in the seed only.

    Attributes:
        keep: 1 for dense training, which has no mask.
        schedule: When masks are chosen.
        variant: Overrides on what happens to the weights outside the mask.
    """

    method: str
    keep: float
    schedule: Schedule
    variant: str


@dataclass(frozen=True)
class Result:
    """What is on record of a cell.

    Attributes:
        lr: Chosen for it; None before its runs on held-out images are done.
        source: The cell on whose held-out runs the rate was chosen; others may share it.
        tried: Learning rate -> those runs, None where they failed.
        group: Its own runs at that rate; None where none has finished.
        failed: How many of its runs at that rate failed.
    """

    cell: Cell
    lr: float | None
    source: Cell
    tried: Mapping[float, Group | None]
    group: Group | None
    failed: int


@dataclass(frozen=True)
class Section:
    """A profile in the report.

    Attributes:
        results: In the order of the table, dense training last.
        in_table: What a run of FISH in the table is told.
        chosen: What one on held-out images is told; None where rates are not chosen.
    """

    name: str
    profile: Profile
    results: Sequence[Result]
    in_table: Config
    chosen: Config | None
