"""Sentences made from the numbers of a table."""

from collections.abc import Iterable, Sequence
from typing import Any

from experiments.lib.results import Result
from fishexp.report.differences import FEWEST_SEEDS, Predicted, compare
from fishexp.report.group import Group


def sentence(text: str) -> str:
    """Return ``text`` with a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def progress(results: Sequence[Result[Any]], seeds: int) -> str:
    """Say how many runs of a table there are, each cell of which should have so many seeds."""
    runs = [run for result in results if result.group for run in result.group.runs]
    hours = sum(sum(run["seconds"].values()) for run in runs) / 3600
    return f"{len(runs)} of the {len(results) * seeds} runs of this table are on record; they took {hours:.1f} hours."


def leads(first: str, second: str, pairs: Iterable[tuple[Group, Group]], predicted: Predicted) -> list[str]:
    """Say how often which of two is ahead, counting only differences that are clear of chance.

    Args:
        first: Name of what the first groups of ``pairs`` have in common.
        second: Name of what the second groups have in common.
        pairs: Groups that differ in this alone.
        predicted: Predictions of their runs, as far as they are on record.
    """
    found = [one for one in compare(list(pairs), predicted) if one is not None]
    tested = sum(one.p is not None for one in found)
    if not tested:
        why = "no pair of cells has three seeds that tell"
        return [sentence(f"no interval over seeds can be given of {first} against {second}: {why}")] if found else []
    ahead, behind = ([one.mean for one in found if one.clear and sign * one.mean > 0] for sign in (1, -1))
    counts = (
        f"in {len(ahead)} of {len(found)} pairs of cells{_range(ahead)} and behind in {len(behind)}{_range(behind)}"
    )
    how = f"paired t test over seeds, Holm's correction for {tested} comparison{'s' * (tested > 1)}"
    few = sum(len(one.values) < FEWEST_SEEDS for one in found)
    same = len(found) - tested - few
    untested = f"; {few} {_have(few)} too few seeds to tell" if few else ""
    untested += f"; {same} {_have(same)} the same difference for every seed, which no t test takes" if same else ""
    clear = "counting those whose 95 % intervals leave out zero"
    return [sentence(f"{first} is ahead of {second} {counts}, {clear} ({how}){untested}")]


def _have(count: int) -> str:
    return "have" if count > 1 else "has"


def _range(gaps: Sequence[float]) -> str:
    """Write how far apart two are in points, from the least to the most; nothing of no gaps."""
    sizes = sorted(map(abs, gaps))
    ends = dict.fromkeys(f"{size:.1f}" for size in (*sizes[:1], *sizes[-1:]))
    return f" (by {' to '.join(ends)} points)" if ends else ""
