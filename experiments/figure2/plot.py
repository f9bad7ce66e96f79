"""The picture: score over the number of examples that FISH scores, a line for each budget and kind of labels."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.lib.plot import LOOKS, Curve, draw_scores
from experiments.lib.results import Section
from experiments.lib.sentences import Cell
from fishexp.report.colours import COLOURS, SPARE
from fishexp.report.group import Group

_LABEL_COLOURS = {"true_label": COLOURS["fish"], "expected": COLOURS["magnitude"], "sampled": SPARE[0]}
_LABEL_NAMES = {"true_label": "true labels", "expected": "expectation over labels", "sampled": "labels drawn"}


def draw(section: Section[Cell], score: str) -> Figure | None:
    """Draw the cells that have results; None if no two have.

    Args:
        score: The metric and its unit.
    """
    points: dict[tuple[float | None, str], list[tuple[float, Group]]] = {}
    for result in section.results:
        if result.group and result.group.mean is not None:
            cell = result.cell
            points.setdefault((cell.keep, cell.labels), []).append((cell.samples, result.group))
    keeps = sorted({keep for keep, _ in points if keep is not None})
    curves = [
        Curve(
            f"{keep:.3g} of the weights, {_LABEL_NAMES[labels]}",
            _LABEL_COLOURS[labels],
            keeps.index(keep) % len(LOOKS) if keep is not None else 0,
            joined,
        )
        for (keep, labels), joined in points.items()
    ]
    samples = sorted({count for joined in points.values() for count, _ in joined})

    def mark(axes: Axes) -> None:
        axes.set_xscale("log", base=2)
        axes.set_xticks(samples, [f"{count:,.0f}" for count in samples])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("examples that FISH scores (log scale)")

    return draw_scores(curves, mark, ["FISH"], score, columns=2)
