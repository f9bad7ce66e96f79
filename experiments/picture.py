"""Accuracy against bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.wording import NAMES
from fishexp.report.group import Group
from fishexp.report.panels import GRID, QUIET, STYLE, Series, canvas
from fishexp.report.plot import COLOURS

Size = Callable[[Group], float]  # bytes

# line, marker, whether that is filled
LOOKS: Sequence[tuple[Any, str, bool]] = (("-", "o", True), ((0, (4, 2)), "s", False), ((0, (1, 1.5)), "^", True))
_TICKS = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]  # MB
_MANY = 9  # ticks with room for their labels


@dataclass(frozen=True)
class Line:
    """Groups of one method.

    Attributes:
        detail: What else they have in common; may be empty.
        look: Index of ``LOOKS``.
        groups: Those with a mean.
    """

    method: str
    detail: str
    look: int
    groups: list[Group]


def draw(lines: Sequence[Line], size: Size, xlabel: str, title: Sequence[str]) -> Figure | None:
    """A line for each of ``lines`` over the logarithm of ``size``; None if they hold no two groups.

    Args:
        size: Of a group.
        title: Behind data set and model.
    """
    if sum(len(line.groups) for line in lines) < 2:
        return None
    with matplotlib.style.context(STYLE, after_reset=True):
        return _figure(lines, size, xlabel, title)


def _figure(lines: Sequence[Line], size: Size, xlabel: str, title: Sequence[str]) -> Figure:
    groups = [group for line in lines for group in line.groups]
    marks = "Mean ± sample standard deviation." if any(group.std for group in groups) else "One seed, so no spread."
    series = [Series(line.method, line.detail, COLOURS[line.method], line.groups) for line in lines]
    fig, axes = canvas(5, series, title, marks)
    axes.set_xscale("log")
    for line in lines:
        _line(axes, line, size)
    _ticks(axes)
    axes.grid(color=GRID)
    axes.set_xlabel(f"{xlabel} (log scale)")
    axes.set_title(groups[0].header, loc="left", size=10.5, color=QUIET)
    axes.legend(frameon=False)
    return fig


def _ticks(axes: Axes) -> None:
    low, high = axes.get_xlim()
    ticks = [tick for tick in _TICKS if low <= tick * 1e6 <= high]
    if len(ticks) > _MANY:
        ticks = [tick for tick in ticks if f"{tick:e}".startswith("1")]
    axes.set_xticks([tick * 1e6 for tick in ticks], [f"{tick:g} MB" for tick in ticks])
    axes.set_xticks([], minor=True)


def _line(axes: Axes, line: Line, size: Size) -> None:
    style, marker, filled = LOOKS[line.look]
    groups, colour = sorted(line.groups, key=size), COLOURS[line.method]
    if line.method == "full" and len(groups) == 1:
        axes.axhline(groups[0].mean or 0, color=colour, linestyle=(0, (1, 2)), linewidth=1.4)
    axes.errorbar(
        [size(group) for group in groups],
        [group.mean or 0 for group in groups],
        [group.std or 0 for group in groups],
        label=NAMES[line.method] + (f", {line.detail}" if line.detail else ""),
        color=colour,
        linestyle=style,
        marker=marker,
        markerfacecolor=colour if filled else "white",
        linewidth=1.8,
        elinewidth=1.2,
        capsize=3,
    )
