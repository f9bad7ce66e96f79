"""What the numbers of a table say, in sentences made from them."""

from collections.abc import Sequence
from statistics import mean

from experiments.study import Result
from experiments.table4.cells import Cell
from experiments.wording import NAMES, contest, progress
from fishexp.report.group import Group

SCHEDULES = {"fixed": "one fixed mask", "every_epoch": "a new mask every epoch"}


def brief(variant: str) -> str:
    """A variant without what goes without saying."""
    return variant.removesuffix(" compat=none")


def sizes(group: Group) -> tuple[float, int]:
    """Bytes of one checkpoint, the mean over seeds, and of the model."""
    return mean(run["bytes"]["delta"] for run in group.runs), group.runs[0]["bytes"]["dense"]


def findings(results: Sequence[Result[Cell]], seeds: int) -> list[str]:
    """Sentences about the cells of one table, each of which should have so many seeds."""
    groups = {(one.cell.method, one.cell.keep, one.cell.schedule): one.group for one in results if one.group}
    methods = [(group, groups.get(("random", k, s))) for (m, k, s), group in groups.items() if m == "fish"]
    schedules = [(group, groups.get((m, k, "fixed"))) for (m, k, s), group in groups.items() if s == "every_epoch"]
    found = [progress(results, seeds), *contest("FISH", "random", methods)]
    found += contest("a new mask every epoch", "one fixed mask", schedules)
    return found + _dense([one for one in results if one.group and one.group.mean is not None])


def _dense(results: Sequence[Result[Cell]]) -> list[str]:
    """Dense training beside the best of the others."""
    scores = [(one.group.mean or 0, one) for one in results if one.group]
    dense = next((one.group for _, one in scores if one.cell.method == "full"), None)
    masked = [pair for pair in scores if pair[1].cell.method != "full"]
    if dense is None or not masked:
        return []
    _, best = max(masked, key=lambda pair: pair[0])
    assert best.group is not None  # as in `scores`
    cell, (size, whole) = best.cell, sizes(best.group)
    name = f"{NAMES[cell.method]} at keep {cell.keep:g} with {SCHEDULES[cell.schedule]}"
    return [
        f"Dense training reaches {dense.score} % at {sizes(dense)[0] / 1e6:.1f} MB a checkpoint; the best of the "
        f"others, {name}, {best.group.score} % at {size / 1e6:.1f} MB ({size / whole:.0%})."
    ]
