"""The cells of Table 2."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from experiments.lib.settings import Settings

METHODS = ("fish", "random", "full")
# fraction of all weights
KEEP = 0.005


@dataclass(frozen=True)
class Cell:
    """Stand for runs that differ in the seed only.

    Attributes:
        sync: Steps from one merge to the next.
    """

    method: str
    task: str
    sync: int

    @property
    def settings(self) -> Settings:
        """Return the settings that distinguish the cell; dense training has no keep."""
        keep = {} if self.method == "full" else {"keep": KEEP}
        return {"data.task": self.task, "regime.sync_every": self.sync} | keep


def cells(tasks: Sequence[str], syncs: Sequence[int]) -> list[Cell]:
    """Return the cells in the order of the table."""
    return [Cell(method, task, sync) for task, sync, method in product(tasks, syncs, METHODS)]


def methods(masks: str) -> dict[str, Settings]:
    """Return the settings of each method; dense training has no masks."""
    masked = {"regime.masks": masks}
    return {"fish": {"method.samples": 256} | masked, "random": masked, "full": {}}
