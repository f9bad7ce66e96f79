"""Accuracy against the bytes of a checkpoint."""

from matplotlib.figure import Figure

from experiments import picture
from experiments.picture import Line
from experiments.study import Section
from experiments.table4.cells import SCHEDULES as ORDER
from experiments.table4.cells import Cell
from experiments.table4.findings import SCHEDULES, brief, sizes
from fishexp.report.group import Group


def draw(one: Section[Cell]) -> Figure | None:
    """The cells of the first variant, in which weights outside the mask stay; None if no two have results."""
    first = one.study.cells[0].variant
    groups: dict[Cell, list[Group]] = {}
    for result in one.results:
        if result.cell.variant == first and result.group and result.group.mean is not None:
            alike = Cell(result.cell.method, 1, result.cell.schedule, first)
            groups.setdefault(alike, []).append(result.group)
    lines = [
        Line(cell.method, "" if cell.method == "full" else SCHEDULES[cell.schedule], ORDER.index(cell.schedule), found)
        for cell, found in groups.items()
    ]
    return picture.draw(lines, lambda group: sizes(group)[0], "one checkpoint", [brief(first)])
