"""Sentences made from the numbers of a table."""

import math
from collections.abc import Sequence
from typing import Any

from experiments.lib.results import Result
from fishexp.report.group import Group


def sentence(text: str) -> str:
    """Return ``text`` with a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def progress(results: Sequence[Result[Any]], seeds: int) -> str:
    """Say how many runs of a table there are, each cell of which should have so many seeds."""
    runs = [run for result in results if result.group for run in result.group.runs]
    hours = sum(sum(run["seconds"].values()) for run in runs) / 3600
    return f"{len(runs)} of the {len(results) * seeds} runs of this table are on record; they took {hours:.1f} hours."


def compare(first: str, second: str, pairs: Sequence[tuple[Group, Group | None]]) -> list[str]:
    """Say which of two is ahead, how often, and how often by more than chance explains.

    Args:
        first: Name of what the first groups of ``pairs`` have in common.
        second: Name of what the second groups have in common.
        pairs: Groups that differ in this alone.
    """
    scores = [(a, b, a.mean - b.mean) for a, b in pairs if b is not None and a.mean is not None and b.mean is not None]
    if not scores:
        return []
    gaps = [gap for *_, gap in scores]
    ahead = f"{first} is ahead of {second} in {sum(gap > 0 for gap in gaps)} of {len(gaps)} pairs of cells"
    text = f"{ahead}, by {min(gaps):+.1f} to {max(gaps):+.1f} points"
    errors = [_standard_error(a, b) for a, b, _ in scores]
    if None in errors:
        return [sentence(f"{text}; some cells have fewer than three seeds, so that small differences mean nothing")]
    clear = [gap for gap, error in zip(gaps, errors, strict=True) if error is not None and abs(gap) > 2 * error]
    counts = f"{first} is ahead in {sum(gap > 0 for gap in clear)} and {second} in {sum(gap < 0 for gap in clear)}"
    return [sentence(text), f"By more than two standard errors of the difference, {counts}."]


def _standard_error(a: Group, b: Group) -> float | None:
    """Return the standard error of the difference of the means; None where a group has fewer than three seeds."""
    if a.std is None or b.std is None or min(len(a.runs), len(b.runs)) < 3:
        return None
    return math.sqrt(a.std**2 / len(a.runs) + b.std**2 / len(b.runs))
