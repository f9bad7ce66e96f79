"""What the numbers of a table say, in sentences made from them."""

import math
from collections.abc import Sequence
from statistics import mean

from experiments.table4.cells import Result
from fishexp.report.group import Group

MISSING = "missing"
NAMES = {"fish": "FISH", "random": "random", "full": "dense training"}
SCHEDULES = {"fixed": "one fixed mask", "every_epoch": "a new mask every epoch"}


def brief(variant: str) -> str:
    """A variant without what goes without saying."""
    return variant.removesuffix(" compat=none")


def sizes(group: Group) -> tuple[float, int]:
    """Bytes of one checkpoint, the mean over seeds, and of the model."""
    return mean(run["bytes"]["delta"] for run in group.runs), group.runs[0]["bytes"]["dense"]


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def findings(results: Sequence[Result], seeds: int) -> list[str]:
    """Sentences about the cells of one table, each of which should have so many seeds."""
    groups = {(one.cell.method, one.cell.keep, one.cell.schedule): one.group for one in results if one.group}
    runs = [run for group in groups.values() for run in group.runs]
    hours = sum(sum(run["seconds"].values()) for run in runs) / 3600
    found = [
        f"{len(runs)} of the {len(results) * seeds} runs of this table are on record; they took {hours:.1f} hours."
    ]
    methods = [(group, groups.get(("random", k, s))) for (m, k, s), group in groups.items() if m == "fish"]
    schedules = [(group, groups.get((m, k, "fixed"))) for (m, k, s), group in groups.items() if s == "every_epoch"]
    found += _contest("FISH", "random", methods) + _contest("a new mask every epoch", "one fixed mask", schedules)
    return found + _dense([one for one in results if one.group and one.group.mean is not None])


def _contest(one: str, other: str, pairs: Sequence[tuple[Group, Group | None]]) -> list[str]:
    """Who is ahead, how often, and how often by more than chance explains."""
    scores = [(a, b, a.mean - b.mean) for a, b in pairs if b is not None and a.mean is not None and b.mean is not None]
    if not scores:
        return []
    low, high = min(gap for *_, gap in scores), max(gap for *_, gap in scores)
    ahead = sum(gap > 0 for *_, gap in scores)
    text = f"{one} is ahead of {other} in {ahead} of {len(scores)} pairs of cells, by {low:+.1f} to {high:+.1f} points"
    errors = [_standard_error(a, b) for a, b, _ in scores]
    if None in errors:
        return [sentence(f"{text}; some cells have fewer than three seeds, so that small differences mean nothing")]
    clear = [gap for (*_, gap), error in zip(scores, errors, strict=True) if error is not None and abs(gap) > 2 * error]
    counts = f"{one} is ahead in {sum(gap > 0 for gap in clear)} and {other} in {sum(gap < 0 for gap in clear)}"
    return [sentence(text), f"By more than two standard errors of the difference, {counts}."]


def _standard_error(a: Group, b: Group) -> float | None:
    """Of the difference of the means; None where a group has fewer than three seeds."""
    if a.std is None or b.std is None or min(len(a.runs), len(b.runs)) < 3:
        return None
    return math.sqrt(a.std**2 / len(a.runs) + b.std**2 / len(b.runs))


def _dense(results: Sequence[Result]) -> list[str]:
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
