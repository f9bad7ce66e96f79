"""Tables of differences: each method against a reference in the same setting, with intervals."""

from collections.abc import Mapping, Sequence

from fishexp.report.against import name_columns, pairs_with
from fishexp.report.differences import Predicted, any_interval, difference_columns
from fishexp.report.group import Group
from fishexp.report.page.comparison import Comparison
from fishexp.report.page.markup import Markup, tag

# methods that others are compared with, where a comparison has them
_REFERENCES = ("full", "random", "fish")


def draw_differences(comparison: Comparison, predicted: Predicted) -> Markup | None:
    """Write a table for each reference, below a fold; None if no interval can be given.

    Held-out examples choose learning rates, so that differences on them would favour methods with more of these.

    Raises:
        FishexpError: If predictions are not those of the records.
    """
    if comparison.groups[0].held_out:
        return None
    tables = [table for method in _REFERENCES if (table := _table(comparison.best, method, predicted))]
    return tag("div", tables, class_="differences") if tables else None


def _table(groups: Sequence[Group], method: str, predicted: Predicted) -> Markup | None:
    ours = [group for group in groups if group.label == method]
    pairs = _unambiguous(pairs_with([group for group in groups if group.label != method], ours))
    if not pairs or not any_interval(pairs, predicted):
        return None
    names = name_columns(pairs)
    columns, about = difference_columns(names, pairs, predicted, method)
    clear = sum(cell.startswith("**") for column in columns.values() for cell in column)
    summary = f"Differences to {method}: {len(pairs)}, {clear or 'none'} of them clear"
    region = {"tabindex": "0", "role": "region", "aria_label": f"Differences to {method}"}
    note = tag("p", about, class_="note")
    return tag("details", tag("summary", summary), tag("div", _html(columns, names), class_="scroll", **region), note)


def _unambiguous(pairs: Sequence[tuple[Group, Group]]) -> list[tuple[Group, Group]]:
    """Return the pairs of groups that have a single counterpart of a budget."""
    keys = [(id(group), one.keep) for group, one in pairs]
    return [pair for pair, key in zip(pairs, keys, strict=True) if keys.count(key) == 1]


def _html(columns: Mapping[str, Sequence[str]], names: Mapping[str, Sequence[str]]) -> Markup:
    """Write columns as a table; what is bold in Markdown is bold."""
    head = [tag("th", header, scope="col", class_=None if header in names else "number") for header in columns]
    rows = []
    for cells in zip(*columns.values(), strict=True):
        row = [
            tag("th", cell, scope="row") if header in names else tag("td", _bold(cell), class_="number")
            for header, cell in zip(columns, cells, strict=True)
        ]
        rows.append(tag("tr", row))
    return tag("table", tag("thead", tag("tr", head)), tag("tbody", rows))


def _bold(cell: str) -> Markup | str:
    return tag("strong", cell.strip("*")) if cell.startswith("**") else cell
