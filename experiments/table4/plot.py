"""The picture: accuracy against the bytes of a checkpoint."""

from matplotlib.figure import Figure

from experiments.lib.plot import Line, draw_score_against_bytes
from experiments.lib.results import Section
from experiments.table4.cells import SCHEDULES, Cell, Schedule
from experiments.table4.findings import SCHEDULE_NAMES, sizes, variant_name
from fishexp.report.group import Group


def draw(section: Section[Cell]) -> Figure | None:
    """Draw the cells of the first variant, if weights outside the mask stay in it; None if no two have results.

    Where they decay, each checkpoint is as large as the model.
    """
    first = section.study.cells[0].variant
    if first.decay == "all":
        return None
    groups: dict[tuple[str, Schedule], list[Group]] = {}
    for result in section.results:
        cell = result.cell
        if cell.variant == first and result.group and result.group.mean is not None:
            groups.setdefault((cell.method, cell.schedule), []).append(result.group)
    lines = [
        Line(method, "" if method == "full" else SCHEDULE_NAMES[schedule], SCHEDULES.index(schedule), joined)
        for (method, schedule), joined in groups.items()
    ]
    return draw_score_against_bytes(lines, lambda group: sizes(group)[0], "one checkpoint", [variant_name(first)])
