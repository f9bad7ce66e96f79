"""Sentences on what the numbers say: how much of a lead is a matter of the learning rate."""

from collections.abc import Mapping, Sequence

from experiments.lib.results import Result
from experiments.lib.sentences import Cell


def lead_by_rate(results: Sequence[Result[Cell]], first: str = "fish", second: str = "random") -> list[str]:
    """Say by how much a rule leads another at each rate that both were tried at, and with each at its own best.

    Scores are those on held-out examples, of a single seed. Nothing is said unless both have a best rate.
    """
    by_rule = {result.cell.rule: _means(result) for result in results if result.cell.per == "network"}
    ours, theirs = by_rule.get(first, {}), by_rule.get(second, {})
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return []
    gaps = ", ".join(f"{ours[lr] - theirs[lr]:+.1f} at {lr:g}" for lr in common)
    best = max(ours.values()) - max(theirs.values())
    return [
        f"On the held-out examples, one seed, {first} leads {second} by {gaps}, when both have the same learning rate, "
        f"and by {best:+.1f} points when each has its best of those tried."
    ]


def _means(result: Result[Cell]) -> Mapping[float, float]:
    """Return rate -> score on held-out examples, where runs have one."""
    return {lr: group.mean for lr, group in result.tried.items() if group and group.mean is not None}
