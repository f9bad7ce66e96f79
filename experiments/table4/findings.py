"""Sentences made from the numbers of the table."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from experiments.lib.differences import pairs_of
from experiments.lib.findings import leads, progress
from experiments.lib.report import METHOD_NAMES
from experiments.lib.results import Result
from experiments.lib.settings import as_overrides
from experiments.table4.cells import Cell, Variant
from fishexp.report.differences import Predicted
from fishexp.report.group import Group

SCHEDULE_NAMES = {"fixed": "one fixed mask", "every_epoch": "a new mask every epoch"}


def variant_name(variant: Variant) -> str:
    """Return the variant's settings as text, without what goes without saying."""
    return " ".join(as_overrides({key: value for key, value in variant.settings.items() if value != "none"}))


def sizes(group: Group) -> tuple[float, int]:
    """Return the bytes of one checkpoint, the mean over seeds, and of the model."""
    return mean(run["bytes"]["delta"] for run in group.runs), group.runs[0]["bytes"]["dense"]


def beside_random(results: Sequence[Result[Cell]]) -> dict[Cell, tuple[Group, Group]]:
    """Pair the runs of FISH with those of random masks."""
    return pairs_of(results, lambda cell: replace(cell, method="random") if cell.method == "fish" else None)


def beside_fixed(results: Sequence[Result[Cell]]) -> dict[Cell, tuple[Group, Group]]:
    """Pair the runs with a new mask every epoch with those of the same method with one fixed mask."""
    return pairs_of(results, lambda cell: replace(cell, schedule="fixed"))


def findings(results: Sequence[Result[Cell]], seeds: int, predicted: Predicted) -> list[str]:
    """Return sentences about the cells of one table, each of which should have so many seeds.

    Args:
        predicted: Predictions of their runs, as far as they are on record.
    """
    return [
        progress(results, seeds),
        *leads("FISH", "random", beside_random(results).values(), predicted),
        *leads(SCHEDULE_NAMES["every_epoch"], SCHEDULE_NAMES["fixed"], beside_fixed(results).values(), predicted),
        *_dense(results),
    ]


def _dense(results: Sequence[Result[Cell]]) -> list[str]:
    """Compare dense training with the best of the others."""
    scores = [(result.cell, result.group) for result in results if result.group and result.group.mean is not None]
    dense = next((group for cell, group in scores if cell.method == "full"), None)
    masked = [(cell, group) for cell, group in scores if cell.method != "full"]
    if dense is None or not masked:
        return []
    cell, best = max(masked, key=lambda pair: pair[1].mean or 0)
    size, whole = sizes(best)
    name = f"{METHOD_NAMES[cell.method]} at keep {cell.keep:g} with {SCHEDULE_NAMES[cell.schedule]}"
    return [
        f"Dense training reaches {dense.score} % at {sizes(dense)[0] / 1e6:.1f} MB a checkpoint; the best of the "
        f"others, {name}, {best.score} % at {size / 1e6:.1f} MB ({size / whole:.0%})."
    ]
