"""Sentences on what the numbers say: which rules differ clearly, and how much of a lead is the learning rate."""

from collections.abc import Callable, Mapping, Sequence

from experiments.lib.results import Result
from experiments.lib.sentences import Cell
from fishexp.report.differences import Difference, Predicted, compare
from fishexp.report.group import Group, seeds_text


def told_apart(
    pairs: Mapping[Cell, tuple[Group, Group]], predicted: Predicted, reference: str, name: Callable[[Cell], str]
) -> list[str]:
    """Say which cells are clearly above what they are compared with, which below, and which are not told apart from it.

    A sentence for each budget.

    Args:
        pairs: Cell -> its runs, and those that it is compared with.
        reference: Name of what all are compared with.
        name: Cell -> its name in the sentence.
    """
    compared = dict(zip(pairs, compare(list(pairs.values()), predicted), strict=True))
    sentences = []
    for keep in dict.fromkeys(cell.keep for cell in pairs):
        found = {cell: one for cell, one in compared.items() if one is not None and cell.keep == keep}
        seeds = seeds_text([group for cell in found for group in pairs[cell]])
        told = []
        for what, kind in _KINDS.items():
            names = [f"{name(cell)} {_amount(one)}" for cell, one in found.items() if kind(one)]
            told += [f"{what}, {', '.join(names) or 'none'}"] if names or not what.startswith("too few") else []
        if all(one.p is None for one in found.values()):
            told = told[-1:]
        sentences.append(f"At keep {keep:g} ({seeds}), against {reference}: {'; '.join(told)}.")
    return sentences


def _is_above(one: Difference) -> bool:
    return one.clear and one.mean > 0


def _is_below(one: Difference) -> bool:
    return one.clear and one.mean < 0


# what is said of a difference -> of which ones
_KINDS: Mapping[str, Callable[[Difference], bool]] = {
    "clearly above": _is_above,
    "clearly below": _is_below,
    "not told apart": lambda one: one.p is not None and not one.clear,
    "too few seeds to claim anything": lambda one: one.p is None,
}


def _amount(one: Difference) -> str:
    """Write a difference with its interval over seeds, where there is one."""
    interval = one.over_seeds
    return f"{one.mean:+.1f}" + (f" [{interval.low:+.1f}, {interval.high:+.1f}]" if interval else "")


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
