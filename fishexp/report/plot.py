"""A picture made of records: ``python -m fishexp.report.plot outputs/records.jsonl -o demo.png``.

It shows scores by method, or scores against keep; other pictures share its style.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fishexp.errors import FishexpError
from fishexp.report import command
from fishexp.report.group import Group, seeds_text
from fishexp.report.pool import Pool, differing

# colours of Okabe and Ito or close to them, which colour-blind readers tell apart as well
COLOURS = {"fish": "#0072B2", "random": "#868B90", "magnitude": "#D98200", "bitfit": "#009E73", "full": "#24292F"}
# colours of other methods, and of a method's further series
_SPARE = ("#CC79A7", "#56B4E9", "#D55E00", "#7A5195", "#8C6D31")
# colours of the text, of what is less important, and of the grid
_INK, QUIET, GRID = "#1F2328", "#59636E", "#E4E7EB"
# settings of matplotlib; sizes in points
STYLE = {"font.family": "DejaVu Sans", "font.size": 10.5, "text.color": _INK, "axes.labelcolor": QUIET}
# inches, and dots per inch: made for a width of 800 pixels, sharp on screens of twice that
_WIDTH, _DPI = 8, 200


@dataclass(frozen=True)
class Series:
    """Hold the groups of a method that are drawn as a row or a line.

    Attributes:
        detail: What else tells the series from others, such as ``samples=64``; empty if nothing.
        groups: Groups by keep.
    """

    method: str
    detail: str
    colour: str
    groups: list[Group]


def figure(pooled: Pool) -> Figure:
    """Draw the headline metric: a row for each method, or against keep where there are several.

    Raises:
        FishexpError: If the runs are not of one data set and one model on its reported examples.
    """
    groups = pooled.reported
    if not groups:
        raise FishexpError("these runs are all on held-out training examples; a plot shows the reported ones")
    kinds = sorted({f"{group.data} {group.model} {group.metric}" for group in groups})
    if len(kinds) > 1:
        raise FishexpError(f"a plot shows one data set, model and metric; these records hold {', '.join(kinds)}")
    draw = draw_sweep if len({group.keep for group in groups} - {None}) > 1 else draw_dots
    with matplotlib.style.context(STYLE, after_reset=True):
        return draw(series(groups))


def series(groups: Sequence[Group]) -> list[Series]:
    """Join groups that differ in keep only to series, in the order of the table, each with its own label and colour."""
    keys = differing(groups)
    joined = _split(groups, keys)
    if any(len({group.keep for group in same}) < len(same) for same in joined):  # two learning rates at the same keep
        keys = [*keys, "regime.lr"]
        joined = _split(groups, keys)
    colours: list[str] = []
    spare = iter(_SPARE * len(joined))
    for same in joined:
        colour = COLOURS.get(same[0].method)
        colours.append(colour if colour and colour not in colours else next(spare))
    return [
        Series(same[0].method, _detail(same[0], keys), colour, same)
        for same, colour in zip(joined, colours, strict=True)
    ]


def save(fig: Figure, path: Path) -> None:
    """Write a picture as PNG; the same records give the same bytes.

    Raises:
        FishexpError: If ``path`` does not end in .png or cannot be written.
    """
    if path.suffix != ".png":
        raise FishexpError(f"{path}: pictures are PNG files; give a name that ends in .png")
    try:
        fig.savefig(path, metadata={"Software": None})
    except OSError as error:
        raise FishexpError(f"{path} cannot be written: {error.strerror}") from None


def _split(groups: Sequence[Group], keys: Sequence[str]) -> list[list[Group]]:
    """Split groups by their method and their settings of ``keys``."""
    split: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        split.setdefault((group.method, _detail(group, keys)), []).append(group)
    return list(split.values())


def _detail(group: Group, keys: Sequence[str]) -> str:
    """Write the settings of ``keys`` that ``group`` has: ``samples=64``."""
    return ", ".join(f"{key.rpartition('.')[2]}={group.setting(key)}" for key in keys if key in group.settings)


def draw_dots(all_series: Sequence[Series]) -> Figure:
    """Draw a row for each method: a dot for each seed, mean and standard deviation, the score in words."""
    rows = [(series, group) for series in all_series for group in series.groups]
    keeps = [f"keep = {group.keep:g}" for _, group in rows if group.keep is not None][:1]
    height = 1.5 + len(rows) * (0.75 if any(series.detail for series in all_series) else 0.58)
    marks = "A dot for each seed. Tick and bar: mean ± sample standard deviation."
    fig, axes = canvas(height, all_series, keeps, marks)
    for row, (series, group) in enumerate(rows):
        if group.mean is not None:
            axes.barh(row, 2 * (group.std or 0), 0.34, group.mean - (group.std or 0), color=series.colour, alpha=0.2)
            axes.plot([group.mean] * 2, [row - 0.25, row + 0.25], color=series.colour, linewidth=2.2, zorder=3)
        axes.axhline(row, color=GRID, linewidth=0.8, zorder=0)
        lanes = [row + 0.2 * (2 * seed + 1 - len(group.runs)) / len(group.runs) for seed in range(len(group.runs))]
        values = [math.nan if value is None else value for value in group.values]
        axes.scatter(values, lanes, 34, series.colour, edgecolor="white", linewidth=0.9, zorder=4)
        _row_labels(axes, row, series, group)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_yticks([])
    axes.use_sticky_edges = False  # room beside the bars too
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.margins(x=0.05)
    axes.set_xlabel(rows[0][1].header)
    return fig


def draw_sweep(all_series: Sequence[Series]) -> Figure:
    """Draw a line for each method against keep, its standard deviation as a band; dense training as a dashed line."""
    groups = [group for series in all_series for group in series.groups]
    keeps = sorted({group.keep for group in groups if group.keep is not None})
    span = f"keep = {keeps[0]:g} to {keeps[-1]:g}"
    dense = " Dashed: all weights move." if any(map(_dense, all_series)) else ""
    marks = f"Mean, and sample standard deviation as a band.{dense}"
    fig, axes = canvas(4.7, all_series, [span], marks)
    axes.set_xscale("log")
    for series in all_series:
        _line(axes, series)
    axes.set_xticks(keeps, [_percent(keep) for keep in keeps])
    axes.set_xticks([], minor=True)
    axes.grid(axis="y", color=GRID)
    missing = [f"{group.method} at {_percent(group.share)}: {group.score}" for group in groups if group.mean is None]
    axes.set_xlabel("\n".join(["share of the weights that move (log scale)", *missing]))
    axes.set_title(groups[0].header, loc="left", size=10.5, color=QUIET)
    _end_labels(axes, [series for series in all_series if series.groups[0].keep is not None or _dense(series)])
    return fig


def canvas(height: float, all_series: Sequence[Series], title: Sequence[str], marks: str) -> tuple[Figure, Axes]:
    """Make an empty white figure with its title, what the marks mean, and no frame.

    Args:
        height: Height in inches.
        title: Words of the title between data set and model, and the number of seeds.
        marks: Sentences on what the marks mean.
    """
    groups = [group for series in all_series for group in series.groups]
    fig = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
    words = ", ".join([f"{groups[0].data} on {groups[0].model}", *title, seeds_text(groups)])
    fig.text(0.02, 1 - 0.15 / height, words, va="top", size=13.5, weight="bold")
    marks += " †: uncommitted code." if any(group.uncommitted for group in groups) else ""
    fig.text(0.02, 1 - 0.45 / height, marks, va="top", color=QUIET)
    fig.set_layout_engine("constrained", rect=(0.01, 0.01, 0.98, 1 - 0.8 / height))
    axes = fig.add_subplot()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=QUIET)
    axes.set_axisbelow(True)
    return fig, axes


def _row_labels(axes: Axes, row: int, series: Series, group: Group) -> None:
    """Write the method over its share of the weights on the left, and the score on the right."""
    small = f"{_percent(group.share)} of weights" + (f"\n{series.detail}" if series.detail else "")
    left = {"xy": (0, row), "xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "ha": "right"}
    axes.annotate(_name(series), xytext=(-10, 1.5), va="bottom", weight="bold", color=series.colour, **left)
    axes.annotate(small, xytext=(-10, -1.5), va="top", size=9, color=QUIET, **left)
    axes.annotate(group.score, (1, row), (10, 0), axes.get_yaxis_transform(), "offset points", va="center")


def _line(axes: Axes, series: Series) -> None:
    """Draw a line and a band; a dashed line for dense training, a point for a method that has its own share."""
    means = [math.nan if group.mean is None else group.mean for group in series.groups]
    stds = [group.std or 0 for group in series.groups]
    low = [mean - std for mean, std in zip(means, stds, strict=True)]
    high = [mean + std for mean, std in zip(means, stds, strict=True)]
    if math.isnan(means[0]) and series.groups[0].keep is None:
        return
    if _dense(series):
        axes.axhspan(low[0], high[0], color=series.colour, alpha=0.07, linewidth=0)
        axes.axhline(means[0], color=series.colour, linestyle=(0, (5, 4)), linewidth=1.4)
    elif series.groups[0].keep is None:
        point = (series.groups[0].share or math.nan, means[0])
        axes.errorbar(*point, stds[0], color=series.colour, marker="D", markersize=6, zorder=4)
        axes.annotate(
            _label(series), point, (9, 0), textcoords="offset points", va="center", weight="bold", color=series.colour
        )
    else:
        keeps = [group.keep for group in series.groups if group.keep is not None]
        axes.fill_between(keeps, low, high, color=series.colour, alpha=0.15, linewidth=0)
        axes.plot(keeps, means, color=series.colour, marker="o", markersize=5, linewidth=2)


def _end_labels(axes: Axes, all_series: Sequence[Series]) -> None:
    """Write names at the right edge, each at the height of its line's end or as near above it as there is room."""
    bottom, top = axes.get_ylim()
    drawn = [([group.mean for group in series.groups if group.mean is not None], series) for series in all_series]
    ends = [(means[-1], series) for means, series in drawn if means]
    free = -math.inf  # no name reaches above this
    for end, series in sorted(ends, key=lambda pair: pair[0]):
        half = 0.03 * (top - bottom) * (2 if series.detail else 1)
        height = max(end, free + half)
        free = height + half
        at = axes.get_yaxis_transform()
        axes.annotate(
            _label(series), (1, height), (6, 0), at, "offset points", va="center", weight="bold", color=series.colour
        )


def _dense(series: Series) -> bool:
    """Tell whether all weights move."""
    return series.groups[0].share == 1


def _name(series: Series) -> str:
    """Name the method, with a mark if code was not committed."""
    return series.method + (" †" if any(group.uncommitted for group in series.groups) else "")


def _label(series: Series) -> str:
    return _name(series) + (f"\n{series.detail}" if series.detail else "")


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.3g} %"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the records of the files named on the command line; return 2 if there is nothing to draw."""
    parser = argparse.ArgumentParser(prog="python -m fishexp.report.plot", description="Make a picture of records.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the picture to write, a .png")
    return command.run(parser, arguments, lambda pooled, options: save(figure(pooled), options.output))


if __name__ == "__main__":
    sys.exit(main())
