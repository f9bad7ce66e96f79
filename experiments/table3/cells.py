"""The cells of Table 3, and what their methods are told."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

METHODS, KEEPS = ("fish", "random"), (0.005, 0.02, 0.1)


@dataclass(frozen=True)
class Cell:
    """Runs that differ in the seed only.

    Attributes:
        keep: 1 for dense training, which has no mask.
        sync: Steps from one merge to the next.
    """

    method: str
    keep: float
    sync: int

    @property
    def told(self) -> str:
        """See :class:`experiments.study.Cell`."""
        return f"regime.sync_every={self.sync}" + ("" if self.method == "full" else f" keep={self.keep:g}")


def cells(keeps: Sequence[float], syncs: Sequence[int]) -> Iterator[Cell]:
    """In the order of the table."""
    for keep, sync, method in product(keeps, syncs, METHODS):
        yield Cell(method, keep, sync)
    for sync in syncs:
        yield Cell("full", 1.0, sync)


def methods(warmup: int, masks: str = "same") -> dict[str, str]:
    """Overrides of each method; the original's dense training has no warm-up either.

    Args:
        warmup: Epochs in which every weight trains, before the first mask.
    """
    masked = f"regime.masks={masks} regime.warmup_epochs={warmup}"
    return {"fish": f"method.samples=256 {masked}", "random": masked, "full": "regime.warmup_epochs=0"}
