"""The table of a data set: a row for each group, which unfolds to its runs, its command and its commits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fishexp.report.group import Group, number, percent, span
from fishexp.report.marks import footnotes, marked_score
from fishexp.report.page.comparison import Comparison, row_id
from fishexp.report.page.markup import Markup, joined, tag
from fishexp.report.page.tradeoff import bytes_of, write_bytes, write_number
from fishexp.report.pool import details, differing
from fishexp.report.rates import chosen_from
from fishexp.report.reproduce import command_of
from fishexp.report.scores import scores_of, told_apart

# columns that a reader may choose the values of
_CHOICES = ("set", "method", "model", "keep")


@dataclass(frozen=True)
class _Cell:
    """Hold what a cell shows, and the number by which it is sorted; None sorts by the text."""

    text: str
    by: float | None = None


@dataclass(frozen=True)
class _Row:
    group: Group
    cells: dict[str, _Cell]


def draw_table(comparisons: Sequence[Comparison], held_out: Sequence[Group], name: str, title: str) -> Markup:
    """Write the table of all groups of some comparisons, what it is filtered by, and its footnotes.

    Args:
        held_out: Groups on held-out examples, from which learning rates may have been chosen.
        name: Names the table within the page.
        title: Says what it shows.
    """
    groups = [group for comparison in comparisons for group in comparison.groups]
    rows = [_Row(group, cells) for group, cells in zip(groups, _cells(groups, comparisons), strict=True)]
    headers = list(rows[0].cells)
    sorts = [_header(header, all(row.cells[header].by is None for row in rows)) for header in headers]
    bodies = [_body(row, len(headers), held_out) for row in rows]
    table = tag("table", tag("caption", title), tag("thead", tag("tr", sorts)), bodies, id=name, class_="runs")
    scroll = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=title)
    notes = [tag("p", note, class_="note") for note in footnotes(groups)]
    titles = {comparison.letter: f"{comparison.letter}: {comparison.title}" for comparison in comparisons}
    return joined(_filters(rows, name, titles), scroll, notes)


def _cells(groups: Sequence[Group], comparisons: Sequence[Comparison]) -> list[dict[str, _Cell]]:
    """Make the cells of each group: header -> cell, without columns in which all rows have the same name."""
    sets = {id(group): comparison for comparison in comparisons for group in comparison.groups}
    keys = {comparison.letter: differing(comparison.groups) for comparison in comparisons}
    metrics = dict.fromkeys(metric for group in groups for metric in group.metrics)
    before: dict[str, Callable[[Group], _Cell]] = {
        "method": lambda group: _Cell(group.label),
        "keep": lambda group: _Cell(number(group.keep), 2.0 if group.keep is None else group.keep),
        "lr": lambda group: _Cell(number(group.lr), group.lr),
    }
    after: dict[str, Callable[[Group], _Cell]] = {
        "n": lambda group: _Cell(str(len(group.runs)), len(group.runs)),
        "kept weights": lambda group: _Cell(span(group.kept), group.share and group.share * group.runs[0]["total"]),
        "share": lambda group: _Cell(percent(group.share), group.share),
        "bytes": _bytes,
        "seconds": lambda group: _Cell(write_number(group.seconds), group.seconds),
        "set": lambda group: _Cell(sets[id(group)].letter),
        "model": lambda group: _Cell(group.model),
        "differs in": lambda group: _Cell(_settings(group, keys[sets[id(group)].letter])),
    }
    others = before | after
    headers = {metric: told_apart(scores_of(metric, groups[0].runs).header, others) for metric in metrics}
    columns = before | {headers[metric]: _score(metric) for metric in metrics} | after
    found = [{header: make(group) for header, make in columns.items()} for group in groups]
    alone = [header for header in ("set", "model", "differs in") if len({cells[header].text for cells in found}) == 1]
    return [{header: cell for header, cell in cells.items() if header not in alone} for cells in found]


def _settings(group: Group, keys: Sequence[str]) -> str:
    """Write the settings that tell a group from others of its set."""
    return ", ".join(f"{word}={value}" for word, value in details(group, keys))


def _score(metric: str) -> Callable[[Group], _Cell]:
    def cell(group: Group) -> _Cell:
        if metric not in group.metrics:
            return _Cell("")
        return _Cell(marked_score(group, metric), group.scores(metric).mean)

    return cell


def _bytes(group: Group) -> _Cell:
    count, word = bytes_of(group)
    return _Cell("" if count is None else write_bytes(count) + (" sent" if word.startswith("sent") else ""), count)


def _header(header: str, is_text: bool) -> Markup:
    button = tag("button", header, tag("span", class_="arrow", aria_hidden="true"), type="button")
    return tag("th", button, scope="col", aria_sort="none", class_=None if is_text else "number")


def _body(row: _Row, columns: int, held_out: Sequence[Group]) -> Markup:
    """Write a group: its row, and what that unfolds to."""
    identity, cells = row_id(row.group), []
    for index, (header, cell) in enumerate(row.cells.items()):
        by = None if cell.by is None else repr(float(cell.by))
        if index == 0:
            fold = tag("button", cell.text, type="button", aria_expanded="false", aria_controls=f"{identity}-more")
            cells.append(tag("th", fold, scope="row", data_key=header))
        else:
            cells.append(tag("td", cell.text, data_by=by, data_key=header, class_=None if by is None else "number"))
    more = tag("td", _more(row.group, held_out), colspan=columns)
    return tag("tbody", tag("tr", cells), tag("tr", more, class_="more", id=f"{identity}-more"), id=identity)


def _more(group: Group, held_out: Sequence[Group]) -> Markup:
    """Write where the numbers of a group come from: command, commits, files, learning rates, each run."""
    command = command_of(group)
    commits = f"Code: commit {', '.join(command.commits)}." if command.commits else "Code: of no repository."
    tried = chosen_from(group, held_out, basis=True).replace("**", "") if not group.held_out else ""
    rates = tag("p", f"Learning rate: {f'chosen from {tried}' if tried != 'not tuned' else tried}.") if tried else None
    pre = tag("pre", tag("code", command.text), tabindex="0", aria_label="Command")
    copy = tag("button", "Copy command", type="button", class_="copy")
    remarks = [tag("p", f"{remark}.") for remark in command.remarks]
    return tag("div", tag("p", commits, " n = ", str(len(group.runs)), "."), rates, pre, copy, remarks, _runs(group))


def _runs(group: Group) -> Markup:
    """Write a table of the runs of a group."""
    others = ("seconds", "run", *_ABOUT)
    headers = [told_apart(group.scores(metric).header, ("seed", *others)) for metric in group.metrics]
    values = [group.scores(metric).values for metric in group.metrics]
    body = []
    for index, run in enumerate(group.runs):
        scores = ["undefined" if column[index] is None else f"{column[index]:.4g}" for column in values]
        seconds = write_number(sum(run["seconds"].values()))
        cells = [str(run["config"]["seed"]), *scores, seconds, run["run_id"], *(_text(run, k) for k in _ABOUT)]
        body.append(tag("tr", [tag("td", cell) for cell in cells]))
    head = tag("thead", tag("tr", [tag("th", header, scope="col") for header in ("seed", *headers, *others)]))
    return tag("table", head, tag("tbody", body), class_="seeds")


# what a record says of the circumstances of a run
_ABOUT = ("commit", "device", "ended")


def _text(run: Mapping[str, Any], key: str) -> str:
    return str(run.get(key) or "–")


def _filters(rows: Sequence[_Row], name: str, titles: Mapping[str, str]) -> Markup:
    """Write the fields by which rows are filtered: any text, and the values of a column that has several.

    Args:
        titles: What a set is called among the values to choose from.
    """
    search = tag("input", type="search", placeholder="any text, also of settings", data_table=name)
    fields = [tag("label", "Filter ", search)]
    for key in _CHOICES:
        texts = list(dict.fromkeys(row.cells[key].text for row in rows if key in row.cells))
        if len(texts) > 1:
            options = [
                tag("option", "all", value=""),
                *(tag("option", titles.get(text, text) if key == "set" else text, value=text) for text in texts),
            ]
            fields.append(tag("label", f"{key} ", tag("select", options, data_table=name, data_key=key)))
    count = tag("output", f"{len(rows)} of {len(rows)} rows", data_table=name)
    return tag("div", fields, count, class_="filters", role="search", aria_label="Filter the table")
