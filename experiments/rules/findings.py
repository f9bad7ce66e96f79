"""Sentences on what the numbers say: how much of a lead is a matter of the learning rate."""

from collections.abc import Mapping, Sequence

from experiments.lib.results import Result
from experiments.lib.sentences import Cell


def lead_by_rate(results: Sequence[Result[Cell]], first: str = "fish", second: str = "random") -> list[str]:
    """Say by how much a rule leads another at each rate that both were tried at, and with each at its own best.

    A sentence for each budget at which both were tried at a common rate. Scores are those on held-out examples, of a
    single seed.
    """
    tried = {(r.cell.rule, r.cell.keep): _means(r) for r in results if r.cell.per == "network"}
    sentences = []
    for keep in dict.fromkeys(keep for _, keep in tried):
        ours, theirs = tried.get((first, keep), {}), tried.get((second, keep), {})
        if common := sorted(ours.keys() & theirs.keys()):
            gaps = ", ".join(f"{ours[lr] - theirs[lr]:+.1f} at {lr:g}" for lr in common)
            best = max(ours.values()) - max(theirs.values())
            sentences.append(
                f"On the held-out examples, one seed, keep {keep:g}, {first} leads {second} by {gaps}, when both have "
                f"the same learning rate, and by {best:+.1f} points when each has its best of those tried."
            )
    return sentences


def _means(result: Result[Cell]) -> Mapping[float, float]:
    """Return rate -> score on held-out examples, where runs have one."""
    return {lr: group.mean for lr, group in result.tried.items() if group and group.mean is not None}
