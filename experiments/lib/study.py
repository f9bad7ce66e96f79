"""A study: cells that are run in the same way, with their settings, learning rates and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from experiments.lib.settings import Settings

# seed of the runs by which learning rates are chosen
CHOICE_SEED = 0


class Cell(Protocol):
    """Stand for runs that differ in the seed only. Cells are keys of dictionaries, equal if their settings are."""

    @property
    def method(self) -> str:
        """Return the method's name on the command line."""
        ...

    @property
    def settings(self) -> Settings:
        """Return the settings that distinguish the cell from others, the method apart."""
        ...

    def __hash__(self) -> int: ...


C = TypeVar("C", bound=Cell)


@dataclass(frozen=True)
class Study(Generic[C]):
    """Describe cells that are run in the same way.

    Attributes:
        name: Name of this part of the experiment; empty where it is all.
        about: Text for the report.
        common: Settings of every run.
        methods: Method -> further settings of its runs.
        choose: Settings of the runs on held-out examples; None if the rates are known.
        rates: Method -> the rates tried for a cell that has its rate chosen.
        sources: Cell -> the cell whose rate it takes, in the order of the table.
        report: Settings of the runs in the table.
        seeds: Seeds of the runs in the table.
        known: Cell -> its rate, where none is chosen.
        rank: Which of the rates tried a cell takes: 0 for the best, 1 for the next.
        grow: Factor from a rate to the one tried beyond it where the best is the largest or the smallest so far; None
            for a grid that stays as it is.
    """

    name: str
    about: str
    common: Settings
    methods: Mapping[str, Settings]
    choose: Settings | None
    rates: Mapping[str, Sequence[float]]
    sources: Mapping[C, C]
    report: Settings
    seeds: Sequence[int]
    known: Mapping[C, float] = field(default_factory=dict)
    grow: float | None = None
    rank: int = 0

    @property
    def cells(self) -> list[C]:
        """Return the cells in the order of the table."""
        return list(self.sources)

    @property
    def shared(self) -> Settings:
        """Return the settings that all runs of the study have, whatever their cell, on held-out examples or not."""
        further = [self.choose or {}, self.report, *self.methods.values(), *(cell.settings for cell in self.cells)]
        own = {key for settings in further for key in settings}
        return {key: value for key, value in self.common.items() if key not in own}

    def settings(self, cell: C, *more: Settings) -> Settings:
        """Return the settings of runs of ``cell``; of ``more`` the later override the earlier."""
        settings = self.common | {"method": cell.method} | cell.settings
        for further in (*more, self.methods.get(cell.method, {})):
            settings = settings | further
        return settings
