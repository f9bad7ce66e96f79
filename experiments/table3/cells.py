"""The cells of Table 3, and the settings of their methods."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from experiments.lib.settings import Settings

METHODS, KEEPS = ("fish", "random"), (0.005, 0.02, 0.1)


@dataclass(frozen=True)
class Cell:
    """Stand for runs that differ in the seed only.

    Attributes:
        keep: Fraction of all weights; 1 for dense training, which has no mask.
        sync: Steps from one merge to the next.
    """

    method: str
    keep: float
    sync: int

    @property
    def settings(self) -> Settings:
        """Return the settings that distinguish the cell; dense training has no keep."""
        return {"regime.sync_every": self.sync} | ({} if self.method == "full" else {"keep": self.keep})


def cells(keeps: Sequence[float], syncs: Sequence[int]) -> Iterator[Cell]:
    """Yield the cells in the order of the table."""
    for keep, sync, method in product(keeps, syncs, METHODS):
        yield Cell(method, keep, sync)
    for sync in syncs:
        yield Cell("full", 1.0, sync)


def methods(warmup: int, masks: str = "same") -> dict[str, Settings]:
    """Return the settings of each method; the original's dense training has no warm-up either.

    Args:
        warmup: Epochs in which every weight trains, before the first mask.
    """
    masked: Settings = {"regime.masks": masks, "regime.warmup_epochs": warmup}
    return {"fish": {"method.samples": 256} | masked, "random": masked, "full": {"regime.warmup_epochs": 0}}
