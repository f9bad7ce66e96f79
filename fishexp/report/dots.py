"""The picture with a row for each method: a dot for each seed, mean and standard deviation, the score in words."""

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fishexp.errors import FishexpError
from fishexp.report.group import Group, percent
from fishexp.report.majority import Majority
from fishexp.report.marks import one_class_sign
from fishexp.report.series import Series, has_spread
from fishexp.report.style import GRID, QUIET, canvas

# rows that a picture has room for
_MOST_ROWS = 100
# characters of a line beside a row
_LINE = 30
# dots of more seeds than these are drawn smaller
_FEW_SEEDS = 10


def draw_dots(all_series: Sequence[Series], about_passed: str, majority: Majority) -> Figure:
    """Draw a row for each group.

    Args:
        about_passed: What hollow dots mean, if there are any.
        majority: The share of the largest class.

    Raises:
        FishexpError: If there are too many rows for a picture.
    """
    rows = [(series, group, detail) for series in all_series for group, detail in series.rows]
    if len(rows) > _MOST_ROWS:
        raise FishexpError(f"a picture has room for {_MOST_ROWS} rows, and these records make {len(rows)}; give fewer")
    small = [_small(group, detail) for _, group, detail in rows]
    keeps = [f"keep = {group.keep:g}" for _, group, _ in rows if group.keep is not None][:1]
    spread = "A dot for each seed. Tick and bar: mean ± sample standard deviation."
    marks = f"{spread if has_spread(all_series) else 'One seed, so no spread.'}{about_passed}{majority.beyond}"
    height = 1.5 + len(rows) * (0.41 + 0.17 * max(text.count("\n") + 1 for text in small))
    fig, axes = canvas(height, [group for _, group, _ in rows], keeps, marks)
    for row, (series, group, _) in enumerate(rows):
        _row(axes, row, group, series.colour, hollow=group in series.passed)
        _row_labels(axes, row, series, group, small[row])
    if majority.drawn is not None:
        axes.axvline(majority.drawn, color=QUIET, linestyle=(0, (1, 2)), linewidth=1.4, zorder=1)
        at = axes.get_xaxis_transform()
        axes.annotate(
            majority.label, (majority.drawn, 1), (0, 2), at, "offset points", ha="center", size=9, color=QUIET
        )
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_yticks([])
    axes.use_sticky_edges = False  # room beside the bars too
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.margins(x=0.05)
    axes.set_xlabel(rows[0][1].header)
    return fig


def _row(axes: Axes, row: int, group: Group, colour: str, *, hollow: bool) -> None:
    """Draw the seeds of a group, their mean and standard deviation."""
    axes.axhline(row, color=GRID, linewidth=0.8, zorder=0)
    if group.mean is not None and group.std is not None:
        bar = {"color": colour, "alpha": 0.08 if hollow else 0.2}
        axes.barh(row, 2 * group.std, 0.34, group.mean - group.std, **bar)
        width = 1 if hollow else 2.2
        axes.plot([group.mean] * 2, [row - 0.25, row + 0.25], color=colour, linewidth=width, zorder=3)
    count = len(group.runs)
    lanes = [row + 0.2 * (2 * seed + 1 - count) / count for seed in range(count)]
    values = [math.nan if value is None else value for value in group.values]
    size = 34 if count <= _FEW_SEEDS else 12
    fill, edge = ("white", colour) if hollow else (colour, "white")
    axes.scatter(values, lanes, size, fill, edgecolor=edge, linewidth=0.9 if count <= _FEW_SEEDS else 0.4, zorder=4)


def _small(group: Group, detail: str) -> str:
    """Write the share of the weights, and what tells the row from others, in short lines."""
    return "\n".join(textwrap.wrap(f"{percent(group.share)} of weights" + (f", {detail}" if detail else ""), _LINE))


def _row_labels(axes: Axes, row: int, series: Series, group: Group, small: str) -> None:
    """Write the method over the small text on the left, and the score on the right."""
    left = {"xy": (0, row), "xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "ha": "right"}
    weight, ink = ("normal", QUIET) if group in series.passed else ("bold", None)
    axes.annotate(series.name, xytext=(-10, 1.5), va="bottom", weight=weight, color=series.colour, **left)
    axes.annotate(small, xytext=(-10, -1.5), va="top", size=9, color=QUIET, **left)
    score = f"{group.score}{one_class_sign(group.headline)}"
    axes.annotate(score, (1, row), (10, 0), axes.get_yaxis_transform(), "offset points", va="center", color=ink)
