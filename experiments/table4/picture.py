"""Accuracy against the bytes of a checkpoint."""

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.table4.cells import Section
from experiments.table4.findings import NAMES, SCHEDULES, brief, sizes
from fishexp.report.group import Group
from fishexp.report.panels import GRID, QUIET, STYLE, Series, canvas
from fishexp.report.plot import COLOURS

# schedule -> line, marker, whether that is filled
_LOOKS = {"fixed": ("-", "o", True), "every_epoch": ((0, (4, 2)), "s", False)}
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)  # MB


def draw(one: Section) -> Figure | None:
    """The cells of the first variant, in which weights outside the mask stay; None if no two have results."""
    first = one.profile.variants[0]
    lines: dict[tuple[str, str], list[Group]] = {}
    for result in one.results:
        if result.cell.variant == first and result.group and result.group.mean is not None:
            lines.setdefault((result.cell.method, result.cell.schedule), []).append(result.group)
    if sum(map(len, lines.values())) < 2:
        return None
    series = {
        (method, schedule): Series(method, "" if method == "full" else SCHEDULES[schedule], COLOURS[method], groups)
        for (method, schedule), groups in lines.items()
    }
    with matplotlib.style.context(STYLE, after_reset=True):
        return _figure(series, brief(first))


def _figure(series: dict[tuple[str, str], Series], variant: str) -> Figure:
    groups = [group for line in series.values() for group in line.groups]
    marks = "Mean ± sample standard deviation." if any(group.std for group in groups) else "One seed, so no spread."
    fig, axes = canvas(5, list(series.values()), [variant], marks)
    axes.set_xscale("log")
    for (method, schedule), line in series.items():
        if method == "full":
            axes.axhline(line.groups[0].mean or 0, color=line.colour, linestyle=(0, (1, 2)), linewidth=1.4)
        _line(axes, line, schedule)
    low, high = axes.get_xlim()
    ticks = [tick for tick in _TICKS if low <= tick * 1e6 <= high]
    axes.set_xticks([tick * 1e6 for tick in ticks], [f"{tick:g} MB" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(color=GRID)
    axes.set_xlabel("one checkpoint (log scale)")
    axes.set_title(groups[0].header, loc="left", size=10.5, color=QUIET)
    axes.legend(frameon=False)
    return fig


def _line(axes: Axes, line: Series, schedule: str) -> None:
    style, marker, filled = _LOOKS[schedule]
    groups = sorted(line.groups, key=lambda group: sizes(group)[0])
    axes.errorbar(
        [sizes(group)[0] for group in groups],
        [group.mean or 0 for group in groups],
        [group.std or 0 for group in groups],
        label=NAMES[line.method] + (f", {line.detail}" if line.detail else ""),
        color=line.colour,
        linestyle=style,
        marker=marker,
        markerfacecolor=line.colour if filled else "white",
        linewidth=1.8,
        elinewidth=1.2,
        capsize=3,
    )
