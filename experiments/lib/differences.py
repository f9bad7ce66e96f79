"""The part of a report on differences between cells: by how much each is ahead of another, with intervals."""

from collections.abc import Callable, Mapping
from typing import Any

from experiments.lib.results import Section
from experiments.lib.study import C
from fishexp.report.differences import difference_table


def differences(
    section: Section[C], *, against: Callable[[C], C | None], name: str, columns: Callable[[C], Mapping[str, str]]
) -> list[str]:
    """Return heading, table and text of the differences between cells; nothing where no two have results.

    Args:
        against: Cell -> the cell that it is compared with, of the same data, model and budget; None where it is not.
        name: Of what all are compared with, for the header.
        columns: Cell -> (header -> entry that says which cell it is).

    Raises:
        FishexpError: If predictions are not those of the records.
    """
    groups: dict[Any, Any] = {result.cell: result.group for result in section.results if result.group}
    cells = [cell for cell in groups if against(cell) in groups and against(cell) != cell]
    if not cells:
        return []
    rows = [columns(cell) for cell in cells]
    pairs = [(groups[cell], groups[against(cell)]) for cell in cells]
    by_header = {header: [row[header] for row in rows] for header in rows[0]}
    return ["### Differences", *difference_table(by_header, pairs, section.predicted, name)]
