"""Tables of how much the masks of a budget have in common, from the deltas of runs whose folders are at hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fishexp.report.group import number
from fishexp.report.overlap import Masks, masks_of, overlap
from fishexp.report.page.comparison import Line
from fishexp.report.page.markup import Markup, tag

# run_id -> the run's delta
Deltas = Mapping[str, Path]


def draw_overlaps(lines: Sequence[Line], deltas: Deltas) -> Markup | None:
    """Write a table for each budget of which two masks are at hand; None if there is none.

    Raises:
        FishexpError: If a delta is damaged.
    """
    by_keep: dict[float, dict[str, Masks]] = {}
    for line in lines:
        for group in line.groups:
            if group.keep is not None and (masks := masks_of(group.runs, deltas)):
                by_keep.setdefault(group.keep, {})[line.name] = masks
    tables = [_table(keep, masks) for keep, masks in by_keep.items() if len(masks) > 1]
    if not tables:
        return None
    note = (
        "Share of the weights kept by the row's method that the column's keeps as well, in percent, the classifier and "
        "weights kept whole aside; the mean over common seeds."
    )
    return tag("figure", tag("figcaption", "What masks have in common"), tables, tag("p", note, class_="note"))


def _table(keep: float, masks: Mapping[str, Masks]) -> Markup:
    title = f"keep {number(keep)}"
    head = [tag("th", title, scope="col"), *(tag("th", name, scope="col") for name in masks)]
    body = []
    for name, own in masks.items():
        shares = [overlap(own, theirs) for theirs in masks.values()]
        body.append(tag("tr", tag("th", name, scope="row"), [_cell(share) for share in shares]))
    table = tag("table", tag("thead", tag("tr", head)), tag("tbody", body), class_="heat")
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=f"Overlap of masks, {title}")


def _cell(share: float | None) -> Markup:
    return tag("td", "–" if share is None else f"{100 * share:.0f}", style=f"--part:{share or 0:.2f}")
