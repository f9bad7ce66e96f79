"""What the numbers say in short: which rules differ clearly, and how much of a lead is the learning rate."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from experiments.lib.results import Result
from experiments.lib.sentences import Cell
from fishexp.report.differences import Difference, Predicted, compare
from fishexp.report.group import Group, span

_NAMED = 3  # most cells not told apart that are named one by one


@dataclass(frozen=True)
class Told:
    """Hold what is said of the comparisons with one reference at one budget.

    Attributes:
        keep: Fraction of all weights.
        seeds: How many seeds both sides of each have, in words.
        reference: Name of what all are compared with.
        comparisons: How many can be tested: they have enough seeds, whose differences vary.
        above: Names and differences of those that are clearly above it.
        below: Of those that are clearly below it.
        others: Those that are neither in a phrase, empty if there are none.
    """

    keep: float | None
    seeds: str
    reference: str
    comparisons: int
    above: Sequence[str]
    below: Sequence[str]
    others: str


def told_apart(
    pairs: Mapping[Cell, tuple[Group, Group]],
    predicted: Predicted,
    reference: str,
    name: Callable[[Cell], str],
    told_before: Collection[Cell] = (),
) -> list[Told]:
    """Tell for each budget which cells are clearly above what they are compared with, which below, and which neither.

    Args:
        pairs: Cell -> its runs, and those that it is compared with.
        reference: Name of what all are compared with.
        name: Cell -> its name.
        told_before: Cells to leave out, since their comparison is told from the other side; p is that of all.
    """
    compared = dict(zip(pairs, compare(list(pairs.values()), predicted), strict=True))
    told = []
    new = {cell: one for cell, one in compared.items() if one is not None and cell not in told_before}
    for keep in dict.fromkeys(cell.keep for cell in new):
        found = {cell: one for cell, one in new.items() if cell.keep == keep}
        texts = {cell: f"{name(cell)} {_amount(one)}" for cell, one in found.items()}
        others = sorted((one.mean, texts[cell]) for cell, one in found.items() if not one.clear)
        told.append(
            Told(
                keep=keep,
                seeds=_seeds([len(one.values) for one in found.values()]),
                reference=reference,
                comparisons=sum(one.p is not None for one in found.values()),
                above=[texts[cell] for cell, one in found.items() if one.clear and one.mean > 0],
                below=[texts[cell] for cell, one in found.items() if one.clear and one.mean < 0],
                others=_phrase([text for _, text in others]),
            )
        )
    return told


def _seeds(counts: Sequence[int]) -> str:
    """Write how many seeds comparisons have: ``1 seed``, ``3–5 seeds``."""
    return f"{span(counts)} seed{'s' * (max(counts) > 1)}"


def _phrase(names: Sequence[str]) -> str:
    """Name all of a few, of many the first and the last."""
    return ", ".join(names) if len(names) <= _NAMED else f"{len(names)}, from {names[0]} to {names[-1]}"


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
