"""A picture of score against bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.lib.report import METHOD_NAMES
from fishexp.report.colours import COLOURS
from fishexp.report.group import Group
from fishexp.report.majority import majority_of
from fishexp.report.style import GRID, QUIET, STYLE, canvas

# group -> bytes
Size: TypeAlias = Callable[[Group], float]

# line, marker, whether that is filled
LOOKS: Sequence[tuple[Any, str, bool]] = (("-", "o", True), ((0, (4, 2)), "s", False), ((0, (1, 1.5)), "^", True))
# MB
_TICKS = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]
# names in a line of the legend
_LEGEND_COLUMNS = 3
# number of ticks with room for their labels
_MANY = 9


@dataclass(frozen=True)
class Line:
    """Hold groups of the same method, which a line joins.

    Attributes:
        detail: Text on what else they have in common; may be empty.
        look: Index of ``LOOKS``.
        groups: Groups that have a mean.
    """

    method: str
    detail: str
    look: int
    groups: list[Group]


def draw_score_against_bytes(lines: Sequence[Line], size: Size, xlabel: str, title: Sequence[str]) -> Figure | None:
    """Draw each of ``lines`` over the logarithm of ``size``; None if they hold no two groups.

    Args:
        size: Group -> its bytes.
        title: Words of the title behind data set and model.
    """
    if sum(len(line.groups) for line in lines) < 2:
        return None
    with matplotlib.style.context(STYLE, after_reset=True):
        return _figure(lines, size, xlabel, title)


def _figure(lines: Sequence[Line], size: Size, xlabel: str, title: Sequence[str]) -> Figure:
    groups = [group for line in lines for group in line.groups]
    marks = "Mean ± sample standard deviation." if any(group.std for group in groups) else "One seed, so no spread."
    majority = majority_of(groups)
    fig, axes = canvas(5, groups, title, f"{marks}{majority.beyond}")
    axes.set_xscale("log")
    for line in lines:
        _line(axes, line, size)
    _ticks(axes)
    axes.grid(color=GRID)
    axes.set_xlabel(f"{xlabel} (log scale)")
    axes.set_title(groups[0].header, loc="left", size=10.5, color=QUIET)
    if majority.drawn is not None:
        axes.axhline(majority.drawn, color=QUIET, linestyle=(0, (1, 2)), linewidth=1.4, label=majority.label, zorder=1)
    fig.legend(loc="outside lower center", ncols=_LEGEND_COLUMNS, frameon=False)  # beside the axes: it hides nothing
    return fig


def _ticks(axes: Axes) -> None:
    """Label the horizontal axis in MB."""
    low, high = axes.get_xlim()
    ticks = [tick for tick in _TICKS if low <= tick * 1e6 <= high]
    if len(ticks) > _MANY:
        ticks = [tick for tick in ticks if f"{tick:e}".startswith("1")]
    axes.set_xticks([tick * 1e6 for tick in ticks], [f"{tick:g} MB" for tick in ticks])
    axes.set_xticks([], minor=True)


def _line(axes: Axes, line: Line, size: Size) -> None:
    """Draw a line; a single group of dense training gets a horizontal line across the picture as well."""
    style, marker, filled = LOOKS[line.look]
    groups, colour = sorted(line.groups, key=size), COLOURS[line.method]
    if line.method == "full" and len(groups) == 1:
        axes.axhline(groups[0].mean or 0, color=colour, linestyle=(0, (1, 2)), linewidth=1.4)
    axes.errorbar(
        [size(group) for group in groups],
        [group.mean or 0 for group in groups],
        [group.std or 0 for group in groups],
        label=METHOD_NAMES[line.method] + (f", {line.detail}" if line.detail else ""),
        color=colour,
        linestyle=style,
        marker=marker,
        markerfacecolor=colour if filled else "white",
        linewidth=1.8,
        elinewidth=1.2,
        capsize=3,
    )
