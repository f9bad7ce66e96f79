"""Pictures of scores: curves over a horizontal axis, such as bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeAlias

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.lib.report import METHOD_NAMES
from fishexp.report.colours import COLOURS
from fishexp.report.group import Group
from fishexp.report.majority import majority_of
from fishexp.report.marks import signs_behind
from fishexp.report.style import GRID, QUIET, STYLE, canvas

# group -> bytes
Size: TypeAlias = Callable[[Group], float]

# line, marker, whether that is filled
LOOKS: Sequence[tuple[Any, str, bool]] = (("-", "o", True), ((0, (4, 2)), "s", False), ((0, (1, 1.5)), "^", True))
_DOTS = (0, (1, 2))
# MB
_TICKS = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]
# names in a line of the legend, at most
_LEGEND_COLUMNS = 3
# number of ticks with room for their labels
_MANY = 9


@dataclass(frozen=True)
class Curve:
    """Hold results that a line joins.

    Attributes:
        look: Index of ``LOOKS``.
        points: (position on the horizontal axis, group that has a mean).
        across: Its first mean is drawn across the picture as well, to compare others with.
    """

    label: str
    colour: str
    look: int
    points: Sequence[tuple[float, Group]]
    across: bool = False


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
    curves = [
        Curve(
            METHOD_NAMES[line.method] + (f", {line.detail}" if line.detail else ""),
            COLOURS[line.method],
            line.look,
            sorted(((size(group), group) for group in line.groups), key=itemgetter(0)),
            across=line.method == "full" and len(line.groups) == 1,
        )
        for line in lines
    ]

    def mark(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.set_xlabel(f"{xlabel} (log scale)")
        _ticks(axes)

    return draw_scores(curves, mark, title, None, _LEGEND_COLUMNS)


def draw_scores(
    curves: Sequence[Curve], mark: Callable[[Axes], None], title: Sequence[str], score: str | None, columns: int
) -> Figure | None:
    """Draw means with their spread, and the share of the largest class; None if the curves hold no two groups.

    Args:
        mark: Called with the axes once the curves are drawn, to scale and label the horizontal one.
        title: Words of the title behind data set and model.
        score: The metric and its unit; None for the words of the groups.
        columns: Names in a line of the legend, at most.
    """
    groups = [group for curve in curves for _, group in curve.points]
    if len(groups) < 2:
        return None
    with matplotlib.style.context(STYLE, after_reset=True):
        marks = "Mean ± sample standard deviation." if any(group.std for group in groups) else "One seed, so no spread."
        majority = majority_of(groups)
        fig, axes = canvas(5, groups, title, f"{marks}{majority.beyond}")
        for curve in curves:
            _draw_curve(axes, curve)
        mark(axes)
        axes.grid(color=GRID)
        axes.set_title(score or groups[0].header, loc="left", size=10.5, color=QUIET)
        if majority.drawn is not None:
            axes.axhline(majority.drawn, color=QUIET, linestyle=_DOTS, linewidth=1.4, label=majority.label, zorder=1)
        _legend(fig, columns)
        return fig


def _legend(fig: Figure, columns: int) -> None:
    """Name the curves below the axes, where that hides nothing, in as many columns as there is room for."""
    for ncols in range(columns, 0, -1):
        legend = fig.legend(loc="outside lower center", ncols=ncols, frameon=False)
        if ncols == 1 or legend.get_window_extent().width <= fig.bbox.width:
            return
        legend.remove()


def _ticks(axes: Axes) -> None:
    """Label the horizontal axis in MB."""
    low, high = axes.get_xlim()
    ticks = [tick for tick in _TICKS if low <= tick * 1e6 <= high]
    if len(ticks) > _MANY:
        ticks = [tick for tick in ticks if f"{tick:e}".startswith("1")]
    axes.set_xticks([tick * 1e6 for tick in ticks], [f"{tick:g} MB" for tick in ticks])
    axes.set_xticks([], minor=True)


def _draw_curve(axes: Axes, curve: Curve) -> None:
    style, marker, filled = LOOKS[curve.look]
    means = [group.mean or 0 for _, group in curve.points]
    if curve.across:
        axes.axhline(means[0], color=curve.colour, linestyle=_DOTS, linewidth=1.4)
    axes.errorbar(
        [place for place, _ in curve.points],
        means,
        [group.std or 0 for _, group in curve.points],
        label=curve.label,
        color=curve.colour,
        linestyle=style,
        marker=marker,
        markerfacecolor=curve.colour if filled else "white",
        linewidth=1.8,
        elinewidth=1.2,
        capsize=3,
    )
    for (place, group), mean in zip(curve.points, means, strict=True):
        if text := signs_behind(group, group.headline).strip():
            axes.annotate(text, (place, mean), (6, 8), textcoords="offset points", size=9, color=curve.colour)
