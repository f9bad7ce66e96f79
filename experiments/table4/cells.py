"""The cells of Table 4."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, TypeAlias

from experiments.lib.settings import Settings

Schedule: TypeAlias = Literal["fixed", "every_epoch"]

METHODS, KEEPS = ("fish", "random"), (0.005, 0.02, 0.1, 0.25)
SCHEDULES: Sequence[Schedule] = ("fixed", "every_epoch")


@dataclass(frozen=True)
class Variant:
    """Say what happens to the weights outside the mask.

    Attributes:
        decay: all: they decay as well; kept: they stay.
        compat: fish: as the original code does it | none.
    """

    decay: str
    compat: str

    @property
    def settings(self) -> Settings:
        """Return the variant's settings."""
        return {"decay": self.decay, "compat": self.compat}


KEPT, ALL, ORIGINAL = Variant("kept", "none"), Variant("all", "none"), Variant("all", "fish")


@dataclass(frozen=True)
class Cell:
    """Stand for runs that differ in the seed only.

    Attributes:
        keep: Fraction of all weights; 1 for dense training, which has no mask.
        schedule: When masks are chosen.
    """

    method: str
    keep: float
    schedule: Schedule
    variant: Variant

    @property
    def settings(self) -> Settings:
        """Return the settings that distinguish the cell; dense training has no keep."""
        keep = {} if self.method == "full" else {"keep": self.keep}
        return {"regime.mask": self.schedule} | self.variant.settings | keep


def cells(variants: Sequence[Variant]) -> Iterator[Cell]:
    """Yield the cells in the order of the table.

    Random masks have no scores that compat could change, dense training no frozen weights.
    """
    for variant, keep, schedule, method in product(variants, KEEPS, SCHEDULES, METHODS):
        if method == "fish" or variant != ORIGINAL:
            yield Cell(method, keep, schedule, variant)
    yield Cell("full", 1.0, "fixed", variants[0])


def sources(
    variants: Sequence[Variant], rate_of: Mapping[float, float], tuned: Sequence[Schedule] = SCHEDULES
) -> dict[Cell, Cell]:
    """Return cell -> the cell whose learning rate it takes.

    Args:
        rate_of: keep -> the keep at which its rate is chosen, where that is another.
        tuned: The schedules with rates of their own; the others take those of the first.
    """
    found = {}
    for cell in cells(variants):
        schedule = cell.schedule if cell.schedule in tuned else tuned[0]
        found[cell] = replace(cell, keep=rate_of.get(cell.keep, cell.keep), schedule=schedule)
    return found
