"""The groups of a picture, joined to rows and lines of a method."""

from collections.abc import Sequence
from dataclasses import dataclass

from fishexp.report.colours import colours_of
from fishexp.report.group import Group, number
from fishexp.report.marks import DAGGER
from fishexp.report.pool import details, differing
from fishexp.report.rates import Passed
from fishexp.report.style import drawable


@dataclass(frozen=True)
class Series:
    """Hold the groups of a method that are drawn as rows or a line.

    Attributes:
        method: Name of the method, which has a colour.
        label: The method, and what moves together, as :attr:`Group.label`.
        detail: What else tells the series from others, such as ``samples=64``; empty if nothing.
        groups: Groups by keep, then by learning rate.
        passed: Those at learning rates that were passed over for a better one, likewise.
    """

    method: str
    label: str
    detail: str
    colour: str
    groups: list[Group]
    passed: list[Group]

    @property
    def name(self) -> str:
        """Write the label, with a sign if code was not committed."""
        dirty = any(group.uncommitted for group in self.groups + self.passed)
        return drawable(self.label) + (f" {DAGGER}" if dirty else "")

    @property
    def rows(self) -> list[tuple[Group, str]]:
        """Return all groups by keep and learning rate, each with what tells it from the others."""
        groups = sorted(self.groups + self.passed, key=lambda group: group.order)
        rates = [f"lr={number(group.lr)}" if len(groups) > 1 else "" for group in groups]
        return [(group, ", ".join(filter(None, [self.detail, lr]))) for group, lr in zip(groups, rates, strict=True)]

    @property
    def is_dense(self) -> bool:
        """Tell whether all weights move."""
        return (self.groups + self.passed)[0].share == 1


def series_of(groups: Sequence[Group], passed: Passed) -> list[Series]:
    """Join groups that differ in keep or learning rate only to series, in the order of the table."""
    keys = differing(groups)
    joined: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        joined.setdefault((group.method, group.label, _detail(group, keys)), []).append(group)
    colours = colours_of(method for method, _, _ in joined)
    return [
        Series(
            method,
            label,
            detail,
            colours[method],
            [group for group in same if group not in passed],
            [group for group in same if group in passed],
        )
        for (method, label, detail), same in joined.items()
    ]


def has_spread(all_series: Sequence[Series]) -> bool:
    """Tell whether there are several seeds of anything."""
    return any(group.std is not None for series in all_series for group in series.groups + series.passed)


def _detail(group: Group, keys: Sequence[str]) -> str:
    """Write the settings of ``keys`` that ``group`` has: ``samples=64``."""
    return ", ".join(f"{drawable(word)}={drawable(value)}" for word, value in details(group, keys))
