"""The part of a report on differences between cells: by how much each is ahead of another, with intervals."""

from collections.abc import Callable, Mapping, Sequence

from experiments.lib.results import Result, Section
from experiments.lib.study import C
from fishexp.report.differences import difference_table


def differences(
    section: Section[C],
    *,
    against: Callable[[C], C | None],
    name: str,
    columns: Callable[[C], Mapping[str, str]],
    beside: Sequence[Result[C]] = (),
) -> list[str]:
    """Return heading, table and text of the differences between cells; nothing where no two have results.

    Args:
        against: Cell -> the cell that it is compared with, on the same data, model and budget; None where it is not.
        name: Of what all are compared with.
        columns: Cell -> (header -> entry that says which cell it is).
        beside: Results of another section of the same data and model, whose cells others may be compared with.

    Raises:
        FishexpError: If predictions are not those of the records.
    """
    known = {result.cell: result.group for result in (*beside, *section.results) if result.group}
    others = {result.cell: against(result.cell) for result in section.results}
    compared = {cell: other for cell, other in others.items() if other is not None and other != cell}
    pairs = {cell: (known[cell], known[other]) for cell, other in compared.items() if {cell, other} <= known.keys()}
    if not pairs:
        return []
    rows = [columns(cell) for cell in pairs]
    by_header = {header: [row[header] for row in rows] for header in rows[0]}
    table = difference_table(by_header, list(pairs.values()), section.predicted, name)
    return [f"### Differences to {name}", *table]
