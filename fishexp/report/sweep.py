"""The picture of scores against keep: a line for each method, dense training as a dashed line."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fishexp.report.group import Group, percent
from fishexp.report.majority import Majority
from fishexp.report.marks import ONE_CLASS
from fishexp.report.series import Series, has_spread
from fishexp.report.style import GRID, QUIET, canvas

# line, marker and its sign in words, of a method's first series, of its second, and so on
_LOOKS: Sequence[tuple[Any, str, str]] = (
    ("-", "o", "●"),
    ((0, (4, 2)), "s", "■"),
    ((0, (1, 1.5)), "^", "▲"),
    ((0, (6, 2, 1, 2)), "v", "▼"),
)
# sign of a method that has its own share of the weights
_OWN = "◆"
# inches: of the picture, of what it has beside the axes, of a line of text
_HEIGHT, _BESIDE, _TEXT = 4.7, 1.6, 0.19


@dataclass(frozen=True)
class _Name:
    """Hold a name beside the right edge, with small text below it: what it stands for ends at ``height``."""

    text: str
    detail: str
    colour: str
    height: float

    @property
    def lines(self) -> float:
        """Count the lines of text, with a gap below small text."""
        return 2.2 if self.detail else 1


def draw_sweep(all_series: Sequence[Series], about_passed: str, majority: Majority) -> Figure:
    """Draw a line for each series against keep, its standard deviation as a band.

    Args:
        about_passed: What hollow marks mean, if there are any.
        majority: The share of the largest class.
    """
    groups = [group for series in all_series for group in series.groups + series.passed]
    keeps = sorted({group.keep for group in groups if group.keep is not None})
    dense = " Dashed and level: all weights move." if any(series.is_dense for series in all_series) else ""
    known = has_spread(all_series)
    spread = "Mean, and sample standard deviation as a band or a bar." if known else "One seed, so no spread."
    looks = _looks(all_series)
    names = _names(all_series, looks, majority)
    height = max(_HEIGHT, _BESIDE + _TEXT * sum(name.lines for name in names))
    marks = f"{spread}{dense}{about_passed}{majority.beyond}"
    fig, axes = canvas(height, groups, [f"keep = {keeps[0]:g} to {keeps[-1]:g}"], marks)
    axes.set_xscale("log")
    for series, (style, marker, _) in zip(all_series, looks, strict=True):
        _draw(axes, series, style, marker)
    if majority.drawn is not None:
        axes.axhline(majority.drawn, color=QUIET, linestyle=(0, (1, 2)), linewidth=1.4, zorder=1)
    axes.set_xticks(*_ticks(keeps))
    axes.set_xticks([], minor=True)
    axes.grid(axis="y", color=GRID)
    missing = [f"{group.label} at {percent(group.share)}: {group.score}" for group in groups if group.mean is None]
    axes.set_xlabel("\n".join(["share of the weights that move (log scale)", *missing]))
    axes.set_title(groups[0].header, loc="left", size=10.5, color=QUIET)
    _write_names(axes, names, _TEXT / (height - _BESIDE))
    return fig


def _draw(axes: Axes, series: Series, style: Any, marker: str) -> None:
    """Draw a line and a band, a bar at one budget; a dashed line for dense training, a point for a share of its own."""
    known = [group for group in series.groups if group.mean is not None]
    own = [group for group in known if group.keep is None]
    for group in own[:1]:
        _draw_own(axes, series, group)
    swept = sorted((group for group in series.groups if group.keep is not None), key=lambda group: group.keep or 0)
    keeps = [group.keep or 0 for group in swept]
    means = [math.nan if group.mean is None else group.mean for group in swept]
    low = [level - (group.std or 0) for level, group in zip(means, swept, strict=True)]
    high = [level + (group.std or 0) for level, group in zip(means, swept, strict=True)]
    if len(swept) == 1:  # a band would have no width
        axes.errorbar(keeps, means, [group.std or 0 for group in swept], color=series.colour, alpha=0.6)
    else:
        axes.fill_between(keeps, low, high, color=series.colour, alpha=0.15, linewidth=0)
    axes.plot(keeps, means, color=series.colour, linestyle=style, marker=marker, markersize=5, linewidth=2)
    hollow = {"color": series.colour, "linestyle": "", "marker": marker, "markersize": 5, "markerfacecolor": "white"}
    for group in (*own[1:], *series.passed):
        if group.mean is not None:
            axes.plot([group.keep or group.share or math.nan], [group.mean], **hollow)
    for group in series.groups + series.passed:
        if group.headline.one_class and group.mean is not None:
            at = (group.keep or group.share or math.nan, group.mean)
            axes.annotate(ONE_CLASS, at, (0, 4), textcoords="offset points", ha="center", color=series.colour)


def _draw_own(axes: Axes, series: Series, group: Group) -> None:
    """Draw a method whose share of the weights is its own: dense training, or one that ignores keep."""
    level, std = group.mean or 0, group.std or 0
    if series.is_dense:
        axes.axhspan(level - std, level + std, color=series.colour, alpha=0.07, linewidth=0)
        axes.axhline(level, color=series.colour, linestyle=(0, (5, 4)), linewidth=1.4)
    else:
        point = (group.share or math.nan, level)
        axes.errorbar(*point, std, color=series.colour, marker="D", markersize=6, zorder=4)


def _ticks(keeps: Sequence[float]) -> tuple[list[float], list[str]]:
    """Return the shares that are labelled: those that lie far enough apart for it on the logarithmic axis."""
    apart = (keeps[-1] / keeps[0]) ** (1 / 10)
    shown = [keeps[0]]
    for keep in keeps[1:]:
        if keep >= shown[-1] * apart:
            shown.append(keep)
    return shown, [percent(keep) for keep in shown]


def _looks(all_series: Sequence[Series]) -> list[tuple[Any, str, str]]:
    """Return line, marker and the marker's sign of each series, which differ within a method."""
    methods = [series.method for series in all_series]
    return [_LOOKS[methods[:index].count(method) % len(_LOOKS)] for index, method in enumerate(methods)]


def _names(all_series: Sequence[Series], looks: Sequence[tuple[Any, str, str]], majority: Majority) -> list[_Name]:
    """Return what is named at the right edge: the series that are drawn, and the share of the largest class.

    What tells series of a method from each other stands with those that have others.
    """
    methods = [series.method for series in all_series]
    names = []
    for series, (_, _, sign) in zip(all_series, looks, strict=True):
        known = [group for group in series.groups or series.passed if group.mean is not None]
        if known:
            several = methods.count(series.method) > 1
            last = max(known, key=lambda group: group.keep or 0)  # at the right edge
            own = last.keep is None and not series.is_dense
            text = f"{_OWN} {series.name}" if own else f"{sign} {series.name}" if several else series.name
            names.append(_Name(text, series.detail if several else "", series.colour, last.mean or 0))
    return names + ([_Name(majority.label, "", QUIET, majority.drawn)] if majority.drawn is not None else [])


def _write_names(axes: Axes, names: Sequence[_Name], line: float) -> None:
    """Write names at the right edge, each as near to the height where its line ends as there is room.

    Args:
        line: Height of a line of text, as a fraction of the axes' height.
    """
    bottom, top = axes.get_ylim()
    line *= top - bottom
    names = sorted(names, key=lambda name: name.height)
    heights = spread([name.height for name in names], [line * name.lines for name in names], bottom, top)
    for name, height in zip(names, heights, strict=True):
        place = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "color": name.colour}
        weight = "normal" if name.colour == QUIET else "bold"
        high, low = (height + 0.5 * line, height - 0.4 * line) if name.detail else (height, height)
        axes.annotate(name.text, (1, high), (6, 0), va="center", weight=weight, **place)
        if name.detail:
            axes.annotate(name.detail, (1, low), (6, 0), va="center", size=9, **place)


def spread(wanted: Sequence[float], sizes: Sequence[float], bottom: float, top: float) -> list[float]:
    """Move the middles of texts apart until none overlaps another, as little as can be.

    Args:
        wanted: Where the middles would best be, in ascending order.
        sizes: Heights of the texts.
        bottom: Nothing reaches below.
        top: Nothing reaches above, if all have room.

    Returns:
        Where the middles are; texts that touch lie about the mean of where they would best be.
    """
    below = [sum(sizes[:index]) + size / 2 for index, size in enumerate(sizes)]  # of each middle, if all touch
    runs: list[list[float]] = []  # of texts that touch: where each would have the first begin
    for middle, offset in zip(wanted, below, strict=True):
        runs.append([middle - offset])
        while len(runs) > 1 and mean(runs[-2]) > mean(runs[-1]):
            runs[-2:] = [runs[-2] + runs[-1]]
    starts = [mean(run) for run in runs for _ in run]
    return [max(min(start, top - sum(sizes)), bottom) + offset for start, offset in zip(starts, below, strict=True)]
