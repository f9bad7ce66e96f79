"""The picture of training steps: time as a fraction of dense training's."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.records import Record, by_machine
from benchmarks.relative import Row, rows
from benchmarks.step.report import title
from fishexp.report.style import STYLE

# contender -> colour (Okabe and Ito's, or close to them), marker, distance below the middle of its row
_MARKS = {
    "original": ("#D98200", "s", 0.0),
    "LoRA": ("#8C564B", "D", 0.0),
    "SHiRA": ("#CC79A7", "^", -0.17),
    "Super-Tuning": ("#009E73", "v", 0.17),
    "floor": ("#868B90", "|", 0.0),
    "ours": ("#0072B2", "o", 0.0),
    "dense, graphs": ("#24292F", "P", 0.0),
    "ours, graphs": ("#56B4E9", "o", 0.0),
}
_INK = "#24292F"
_QUIET = "#59636E"
_GRID = "#E4E7EB"
_GAP = 0.6  # between settings, in rows


def save(records: Sequence[Record], path: Path) -> None:
    """Write the picture of training steps."""
    panels = {name: rows(own, title) for name, own in by_machine(records).items()}
    with matplotlib.style.context(STYLE, after_reset=True):
        figure(panels).savefig(path, metadata={"Software": None})


def figure(panels: dict[str, list[Row]]) -> Figure:
    """Draw a panel for each machine, with a row for each setting and precision."""
    sizes = [_heights(own)[-1] + 3 for own in panels.values()]
    fig = Figure(figsize=(9, 0.5 + 0.27 * sum(sizes)), dpi=160, facecolor="white", layout="constrained")
    all_axes = fig.subplots(len(panels), 1, squeeze=False, height_ratios=sizes)[:, 0]
    for axes, (name, own) in zip(all_axes, panels.items(), strict=True):
        _panel(axes, own)
        axes.set_title(name, loc="left", size=11, weight="bold")
    shown = [name for name in _MARKS if any(name in row for own in panels.values() for _, _, row in own)]
    handles = [
        Line2D([], [], color=_MARKS[name][0], marker=_MARKS[name][1], linestyle="", markersize=8, markeredgewidth=2)
        for name in shown
    ]
    fig.legend(handles, shown, loc="outside upper center", ncols=min(len(shown), 5), frameon=False)
    return fig


def _heights(rows: Sequence[Row]) -> list[float]:
    """Return the position of each row, from the top: those of a setting next to each other."""
    gaps = [0.0, *(_GAP * (above[0] != below[0]) for above, below in pairwise(rows))]
    return [row + gap for row, gap in enumerate(accumulate(gaps))]


def _panel(axes: Axes, rows: Sequence[Row]) -> None:
    heights = _heights(rows)
    for height, (_, _, row) in zip(heights, rows, strict=True):
        axes.axhline(height, color=_GRID, linewidth=0.8, zorder=0)
        for contender, (colour, marker, lane) in _MARKS.items():
            if contender in row:
                low, middle, high = row[contender]["ratio"]
                axes.plot([low, high], [height + lane] * 2, color=colour, linewidth=2.5, alpha=0.5)
                thin = marker == "|"
                axes.scatter(
                    middle,
                    height + lane,
                    130 if thin else 42,
                    colour,
                    marker=marker,
                    edgecolor=None if thin else "white",
                    linewidth=2.0 if thin else 0.7,
                    zorder=4,
                )
    axes.axvline(1, color=_INK, linewidth=1.2, zorder=1)
    titles = [name if at == 0 or rows[at - 1][0] != name else "" for at, (name, _, _) in enumerate(rows)]
    axes.set_yticks(heights, [f"{name}   {precision}" for name, (_, precision, _) in zip(titles, rows, strict=True)])
    axes.set_ylim(heights[-1] + 0.6, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("time of a training step; dense training = 1")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=_QUIET)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
