"""The picture: score over the number of examples that FISH scores, a line for each budget and kind of labels."""

import matplotlib.style
from matplotlib.figure import Figure

from experiments.lib.plot import LOOKS
from experiments.lib.results import Section
from experiments.lib.sentences import Cell
from fishexp.report.colours import COLOURS, SPARE
from fishexp.report.group import Group
from fishexp.report.majority import majority_of
from fishexp.report.style import GRID, QUIET, STYLE, canvas

_LABEL_COLOURS = {"true_label": COLOURS["fish"], "expected": COLOURS["magnitude"], "sampled": SPARE[0]}
_LABEL_NAMES = {"true_label": "true labels", "expected": "expectation over labels", "sampled": "labels drawn"}


def draw(section: Section[Cell], score: str) -> Figure | None:
    """Draw the cells that have results; None if no two have.

    Args:
        score: The metric and its unit.
    """
    lines: dict[tuple[float | None, str], list[tuple[int, Group]]] = {}
    for result in section.results:
        if result.group and result.group.mean is not None:
            cell = result.cell
            lines.setdefault((cell.keep, cell.labels), []).append((cell.samples, result.group))
    if sum(map(len, lines.values())) < 2:
        return None
    with matplotlib.style.context(STYLE, after_reset=True):
        return _figure(lines, score)


def _figure(lines: dict[tuple[float | None, str], list[tuple[int, Group]]], score: str) -> Figure:
    groups = [group for line in lines.values() for _, group in line]
    marks = "Mean ± sample standard deviation." if any(group.std for group in groups) else "One seed, so no spread."
    majority = majority_of(groups)
    fig, axes = canvas(5, groups, ["FISH"], f"{marks}{majority.beyond}")
    axes.set_xscale("log", base=2)
    keeps = sorted({keep for keep, _ in lines if keep is not None})
    for (keep, labels), line in lines.items():
        style, marker, filled = LOOKS[keeps.index(keep) % len(LOOKS) if keep is not None else 0]
        colour = _LABEL_COLOURS[labels]
        axes.errorbar(
            [samples for samples, _ in line],
            [group.mean or 0 for _, group in line],
            [group.std or 0 for _, group in line],
            label=f"{keep:.3g} of the weights, {_LABEL_NAMES[labels]}",
            color=colour, linestyle=style, marker=marker, markerfacecolor=colour if filled else "white",
            linewidth=1.8, elinewidth=1.2, capsize=3,
        )  # fmt: skip
    samples = sorted({samples for line in lines.values() for samples, _ in line})
    axes.set_xticks(samples, [f"{count:,}" for count in samples])
    axes.set_xticks([], minor=True)
    axes.grid(color=GRID)
    axes.set_xlabel("examples that FISH scores (log scale)")
    axes.set_title(score, loc="left", size=10.5, color=QUIET)
    if majority.drawn is not None:
        axes.axhline(majority.drawn, color=QUIET, linestyle=(0, (1, 2)), linewidth=1.4, label=majority.label, zorder=1)
    fig.legend(loc="outside lower center", ncols=2, frameon=False)
    return fig
