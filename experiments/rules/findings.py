"""What the numbers say in short: which rules differ clearly, and how much of a lead is the learning rate."""

from collections.abc import Callable, Mapping, Sequence

from experiments.lib.results import Result
from experiments.lib.sentences import Cell
from fishexp.report.differences import Difference, Predicted, compare
from fishexp.report.group import Group, seeds_text


def told_apart(
    pairs: Mapping[Cell, tuple[Group, Group]], predicted: Predicted, reference: str, name: Callable[[Cell], str]
) -> list[str]:
    """Say which cells are clearly above what they are compared with, which below, and which are not told apart from it.

    A sentence for each budget; of many that are not told apart it names the lowest and the highest.

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
            named = [(one.mean, f"{name(cell)} {_amount(one)}") for cell, one in found.items() if kind(one)]
            names = [text for _, text in named]
            if what == _UNCLEAR and len(named) > _NAMED:
                others = "all" if len(named) == len(found) else "the other"
                names = [f"{others} {len(named)}, from {min(named)[1]} to {max(named)[1]}"]
            told += [f"{what}, {', '.join(names) or 'none'}"] if names or not what.startswith("too few") else []
        if all(one.p is None for one in found.values()):
            told = told[-1:]
        sentences.append(f"At keep {keep:g} ({seeds}), against {reference}: {'; '.join(told)}.")
    return sentences


def _is_above(one: Difference) -> bool:
    return one.clear and one.mean > 0


def _is_below(one: Difference) -> bool:
    return one.clear and one.mean < 0


_UNCLEAR = "not told apart"
_NAMED = 3  # most cells of a kind that are named one by one if it is that
# what is said of a difference -> of which ones
_KINDS: Mapping[str, Callable[[Difference], bool]] = {
    "clearly above": _is_above,
    "clearly below": _is_below,
    _UNCLEAR: lambda one: one.p is not None and not one.clear,
    "too few seeds to claim anything": lambda one: one.p is None,
}


def _amount(one: Difference) -> str:
    """Write a difference with its interval over seeds, where there is one."""
    interval = one.over_seeds
    return f"{one.mean:+.1f}" + (f" [{interval.low:+.1f}, {interval.high:+.1f}]" if interval else "")


def leads_by_rate(
    results: Sequence[Result[Cell]], first: str = "fish", second: str = "random"
) -> dict[float, dict[float | None, float]]:
    """Compute by how much a rule leads another at each rate that both were tried at, and with each at its own best.

    Scores are those on held-out examples, of a single seed.

    Returns:
        keep -> rate, or None for each at its own best -> the lead; only budgets at which a rate is common to both.
    """
    tried = {(r.cell.rule, r.cell.keep): _means(r) for r in results if r.cell.per == "network"}
    leads: dict[float, dict[float | None, float]] = {}
    for keep in dict.fromkeys(keep for _, keep in tried if keep is not None):
        ours, theirs = tried.get((first, keep), {}), tried.get((second, keep), {})
        if common := sorted(ours.keys() & theirs.keys()):
            leads[keep] = {lr: ours[lr] - theirs[lr] for lr in common}
            leads[keep][None] = max(ours.values()) - max(theirs.values())
    return leads


def _means(result: Result[Cell]) -> Mapping[float, float]:
    """Return rate -> score on held-out examples, where runs have one."""
    return {lr: group.mean for lr, group in result.tried.items() if group and group.mean is not None}
