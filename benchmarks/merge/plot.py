"""The picture of merges: time against the size of the model, and against the number of workers."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, StrMethodFormatter

from benchmarks.merge.report import dense_seconds
from benchmarks.records import Record
from fishexp.report.style import STYLE

# Okabe and Ito's colours, or close to them: of the numbers of workers on the left, of the shares kept on the right
_COLOURS = ("#868B90", "#0072B2", "#D98200", "#009E73", "#CC79A7")
_QUIET = "#59636E"
_GRID = "#E4E7EB"
_INK = "#24292F"
_KEEP = 0.005  # fraction of the weights that the left panel shows


def save(records: Sequence[Record], path: Path) -> None:
    """Write the picture of a machine's merges."""
    with matplotlib.style.context(STYLE, after_reset=True):
        figure(records).savefig(path, metadata={"Software": None})


def figure(records: Sequence[Record]) -> Figure:
    """Draw time against weights, coloured by the number of workers, and against workers, coloured by keep."""
    fig = Figure(figsize=(10, 4.6), dpi=160, facecolor="white", layout="constrained")
    left, right = fig.subplots(1, 2)
    _by_size(left, records)
    _by_workers(right, records)
    cores = max(r["cores"] for r in records)
    fig.suptitle(f"A merge over loopback; {cores} cores for all workers", x=0.01, ha="left", weight="bold")
    return fig


def _by_size(axes: Axes, records: Sequence[Record]) -> None:
    shown = [r for r in records if r["contender"] == "ours" and r["keep"] == _KEEP]
    colours = dict(zip(sorted({r["workers"] for r in shown}), _COLOURS, strict=False))
    for workers, colour in colours.items():
        own = sorted((r for r in shown if r["workers"] == workers), key=lambda r: r["weights"])
        axes.plot([r["weights"] for r in own], [_ms(r) for r in own], "o-", color=colour)
        points = [(r["weights"], *dense) for r in own if (dense := dense_seconds(records, workers, r["weights"]))]
        sizes, seconds, measured = zip(*points, strict=True)
        times = [1e3 * value for value in seconds]
        known = sum(measured)  # those that were measured come first
        axes.plot(sizes[:known], times[:known], "s--", color=colour)
        axes.plot(sizes[known - 1 :], times[known - 1 :], "s:", color=colour, markerfacecolor="white", zorder=1)
    kinds = [("o-", None, f"keep {_KEEP:g}"), ("s--", None, "dense"), ("s:", "white", "dense, linear")]
    handles = [Line2D([], [], color=colour, linewidth=4) for colour in colours.values()]
    handles += [Line2D([], [], color=_QUIET, marker=form[0], ls=form[1:], mfc=face) for form, face, _ in kinds]
    labels = [f"{workers} worker{'s' * (workers != 1)}" for workers in colours] + [name for _, _, name in kinds]
    axes.legend(handles, labels, frameon=False, fontsize=9)
    _finish(axes, "weights of the model")


def _by_workers(axes: Axes, records: Sequence[Record]) -> None:
    ours = [r for r in records if r["contender"] == "ours"]
    weights = max((r["weights"] for r in ours), key=lambda size: len({r["keep"] for r in ours if r["weights"] == size}))
    keeps = sorted({r["keep"] for r in ours if r["weights"] == weights})
    lines = {f"keep {keep:g}": [r for r in ours if r["keep"] == keep] for keep in keeps}
    lines["dense"] = [r for r in records if r["contender"] == "dense"]
    colours = dict(zip(lines, (*_COLOURS[1 : 1 + len(keeps)], _INK), strict=True))
    for name, line in reversed(lines.items()):
        own = sorted((r for r in line if r["weights"] == weights), key=lambda r: r["workers"])
        form = "s--" if name == "dense" else "o-"
        axes.plot([r["workers"] for r in own], [_ms(r) for r in own], form, color=colours[name], label=name)
    axes.legend(frameon=False, fontsize=9)
    _finish(axes, f"workers; the model has {weights:,} weights")
    axes.set_xticks(ticks := sorted({r["workers"] for r in ours}), [str(tick) for tick in ticks])
    axes.minorticks_off()


def _ms(record: Record) -> float:
    return 1e3 * record["seconds"][1]


def _finish(axes: Axes, label: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # powers of ten would be formulas, and names are none here
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel(label)
    axes.set_ylabel("milliseconds a merge")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, which="both", labelcolor=_QUIET)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
