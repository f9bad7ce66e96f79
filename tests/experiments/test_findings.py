"""The sentences that reports of experiments make of the numbers of a table."""

from experiments.lib.findings import leads
from fishexp.report.group import Group
from fishexp.report.pool import pool
from tests.support.records import record


def pair(keep: float, *gaps: float) -> tuple[Group, Group]:
    """Make FISH and random at a budget, with so many points between them for each seed."""
    runs = [record(0.5 + gap / 100, seed=seed, keep=keep) for seed, gap in enumerate(gaps)]
    runs += [record(0.5, seed=seed, keep=keep, method="random") for seed in range(len(gaps))]
    fish, random = pool(runs).reported
    return fish, random


TOLD = pair(0.01, 5, 5.1, 4.9)
AHEAD = "FISH is ahead of random in 1 of {} pairs of cells (by 5.0 points) and behind in 0, counting those whose 95 % "
AHEAD += "intervals leave out zero (paired t test over seeds, Holm's correction for 1 comparison)"


def test_why_a_difference_is_not_tested_is_said() -> None:
    few, equal = pair(0.02, 1, 2), [pair(keep, 0, 0, 0) for keep in (0.03, 0.04)]
    same = "the same difference for every seed, which no t test takes"
    assert leads("FISH", "random", [TOLD], {}) == [f"{AHEAD.format(1)}."]
    assert leads("FISH", "random", [TOLD, few], {}) == [f"{AHEAD.format(2)}; 1 has too few seeds to tell."]
    assert leads("FISH", "random", [TOLD, *equal], {}) == [f"{AHEAD.format(3)}; 2 have {same}."]
    both = f"{AHEAD.format(4)}; 1 has too few seeds to tell; 2 have {same}."
    assert leads("FISH", "random", [TOLD, few, *equal], {}) == [both]
