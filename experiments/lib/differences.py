"""The part of a report on differences between cells: by how much each is ahead of another, with intervals."""

from collections.abc import Callable, Mapping, Sequence

from experiments.lib.results import Result
from experiments.lib.study import C
from fishexp.report.differences import Predicted, difference_table
from fishexp.report.group import Group


def differences(
    pairs: Mapping[C, tuple[Group, Group]],
    predicted: Predicted,
    *,
    name: str,
    columns: Callable[[C], Mapping[str, str]],
) -> list[str]:
    """Return heading, table and text of the differences between cells; nothing of no pairs.

    Args:
        pairs: Cell -> its runs, and those that it is compared with.
        predicted: Predictions of the runs, as far as they are on record.
        name: Of what all are compared with.
        columns: Cell -> (header -> entry that says which cell it is).

    Raises:
        FishexpError: If predictions are not those of the records.
    """
    if not pairs:
        return []
    rows = [columns(cell) for cell in pairs]
    by_header = {header: [row[header] for row in rows] for header in rows[0]}
    return [f"### Differences to {name}", *difference_table(by_header, list(pairs.values()), predicted, name)]


def pairs_of(
    results: Sequence[Result[C]], against: Callable[[C], C | None], beside: Sequence[Result[C]] = ()
) -> dict[C, tuple[Group, Group]]:
    """Pair the runs of each cell with those of the cell that it is compared with, where both have results.

    Args:
        against: Cell -> the cell that it is compared with, on the same data, model and budget; None where it is not.
        beside: Results of another section of the same data and model, whose cells others may be compared with.
    """
    known = {result.cell: result.group for result in (*beside, *results) if result.group}
    others = {result.cell: against(result.cell) for result in results}
    compared = {cell: other for cell, other in others.items() if other is not None and other != cell}
    return {cell: (known[cell], known[other]) for cell, other in compared.items() if {cell, other} <= known.keys()}
