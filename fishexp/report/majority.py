"""The share of the largest class, which a model reaches that knows nothing of its input: a line in the pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

from fishexp.report.group import Group

# the line is drawn where it lies as near to the scores as they spread, but at least so many points
_NEAR = 5.0


@dataclass(frozen=True)
class Majority:
    """Hold the share of the largest class of the reported examples, in percent.

    Attributes:
        share: None if it is unknown, or the metric is not a share of right answers.
        near: Whether a line for it leaves the scores room enough.
    """

    share: float | None
    near: bool

    @property
    def drawn(self) -> float | None:
        """Return where to draw the line; None if none is drawn."""
        return self.share if self.near else None

    @property
    def label(self) -> str:
        """Name the line: ``largest class 68.4 %``."""
        return f"largest class {self.share:.1f} %"

    @property
    def beyond(self) -> str:
        """Tell the share where there is no room for its line."""
        return "" if self.share is None or self.near else f" The {self.label} is beyond the picture."


def majority_of(groups: Sequence[Group]) -> Majority:
    """Look up the share of the largest class of the examples on which ``groups`` were measured."""
    shares = {group.headline.majority for group in groups} - {None}
    values = [value for group in groups for value in group.values if value is not None]
    if len(shares) != 1 or not values or not groups[0].metric.startswith("accuracy"):
        return Majority(None, near=False)
    share, low, high = shares.pop(), min(values), max(values)
    margin = max(high - low, _NEAR)
    return Majority(share, near=share is not None and low - margin <= share <= high + margin)
