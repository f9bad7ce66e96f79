"""The page from top to bottom: what it is made from, then each data set with its table and its pictures."""

import base64
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fishexp.report.colours import DARK
from fishexp.report.group import about_streams
from fishexp.report.page.beside import Beside
from fishexp.report.page.budget import draw_budget
from fishexp.report.page.chart import legend
from fishexp.report.page.comparison import PALETTE, Comparison, DataSet, data_sets
from fishexp.report.page.curves import Histories, draw_curves
from fishexp.report.page.differences import draw_differences
from fishexp.report.page.markup import Markup, tag
from fishexp.report.page.overlaps import draw_overlaps
from fishexp.report.page.rows import draw_table
from fishexp.report.page.tradeoff import draw_rates, draw_tradeoffs
from fishexp.report.pool import Pool
from fishexp.report.shared import shared_text

_HERE = Path(__file__).parent
_READING = (
    "A score is the mean over n runs that differ in the seed alone, ± their sample standard deviation where n > 1; "
    "bars in pictures are the same. Press a method in a table for its runs, its command and its commit; a point in a "
    "picture leads to its row. Pictures show, of the learning rates tried, the one that was best on held-out examples, "
    "or on the reported ones where none were held out."
)
_NO_CURVES = "No learning curves: no run folder of these runs is at hand; --runs FOLDER names where they are."
_NONE_BEST = "No picture: for every row here, another learning rate was better on the held-out examples."
_NO_BUDGET = "No picture of the budget: these records do not say what was kept of each tensor (kept_by)."


def document(pooled: Pool, files: Sequence[Path], beside: Beside) -> str:
    """Write the page.

    Args:
        pooled: All runs.
        files: Where their records were read, to be named.
        beside: What is at hand beside them.

    Raises:
        FishexpError: If predictions are not those of the records, or a delta is damaged.
    """
    script, style = (_HERE / "page.js").read_text(), (_HERE / "page.css").read_text() + _colours()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    found = data_sets(pooled)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"fishexp: {', '.join(one.name for one in found)}"),
        tag("style", Markup(style)),
    )
    missing = [tag("p", text, class_="note") for text in _missing(pooled, beside.histories)]
    sections = [_section(one, index, pooled, beside) for index, one in enumerate(found)]
    body = tag(
        "body",
        tag("header", tag("h1", "fishexp: results of runs"), _contents(found), tag("p", _READING), missing),
        tag("main", sections, _sources(pooled, files)),
        tag("script", Markup(script)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _missing(pooled: Pool, histories: Histories) -> list[str]:
    """Say which pictures the page lacks altogether, and how to get them."""
    runs = [run for group in pooled.reported + pooled.held_out for run in group.runs]
    curves = [] if any(run["run_id"] in histories for run in runs) else [_NO_CURVES]
    return curves if any(run.get("kept_by") for run in runs) else [*curves, _NO_BUDGET]


def _contents(found: Sequence[DataSet]) -> Markup:
    links = [tag("a", one.name, href=f"#data{index}") for index, one in enumerate(found)]
    items = [tag("li", link) for link in [*links, tag("a", "What this page is made from", href="#sources")]]
    return tag("nav", tag("ul", items), aria_label="Contents")


def _section(data: DataSet, index: int, pooled: Pool, beside: Beside) -> Markup:
    """Write the part of a data set: the reported runs, and below a fold those on held-out examples."""
    name, parts = f"data{index}", []
    held_out = [group for comparison in data.held_out for group in comparison.groups]
    if data.reported:
        parts.append(draw_table(data.reported, pooled.held_out, f"{name}-reported", f"{data.name}, reported examples"))
        parts += [_comparison(one, f"{name}-{one.letter}", beside) for one in data.reported]
    if data.held_out:
        title = f"{data.name}, held-out training examples"
        table = draw_table(data.held_out, pooled.held_out, f"{name}-held", title)
        pictures = [_comparison(one, f"{name}-{one.letter}", beside) for one in data.held_out]
        about = f"Runs on held-out training examples, to choose learning rates: {len(held_out)} rows"
        parts.append(tag("details", tag("summary", about), table, pictures, open=not data.reported))
    return tag("section", tag("h2", data.name), parts, id=name)


def _comparison(comparison: Comparison, name: str, beside: Beside) -> Markup:
    """Write the pictures of a comparison, and what all of its runs share."""
    lines = comparison.lines
    title = tag("h3", f"{comparison.letter}. {comparison.title}")
    if not lines:
        return tag("section", title, tag("p", _NONE_BEST, class_="note"))
    shared = tag("p", shared_text(comparison.groups), class_="note")
    tradeoffs = draw_tradeoffs(comparison, lines, name) if len(comparison.best) > 1 else None
    rates, curves = draw_rates(comparison, lines), draw_curves(lines, beside.histories)
    pictures = tag("div", rates, tradeoffs, curves, class_="pictures")
    tables = draw_differences(comparison, beside.predicted), draw_budget(lines), draw_overlaps(lines, beside.deltas)
    return tag("section", title, shared, legend(lines), pictures, *tables, class_="comparison", id=name)


def _sources(pooled: Pool, files: Sequence[Path]) -> Markup:
    """Write what the page is made from: files, numbers of runs, commits, versions, devices, dates."""
    groups = pooled.reported + pooled.held_out
    runs = [run for group in groups for run in group.runs]
    unfinished = [f"{count} {status}" for status, count in sorted(pooled.unfinished.items())]
    versions = dict.fromkeys(
        f"{name} {version}"
        for run in runs
        if isinstance(run.get("versions"), dict)
        for name, version in run["versions"].items()
    )
    dates = sorted(str(run["ended"])[:10] for run in runs if run.get("ended"))
    facts = {
        "files of records": [_short(file) for file in files],
        "runs": [f"{len(runs)} finished", *unfinished],
        "commits": _distinct(runs, "commit") or ["of no repository"],
        "versions": sorted(versions),
        "devices": _distinct(runs, "device"),
        "ended": dates and [dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"],
    }
    rows = [tag("tr", tag("th", key, scope="row"), tag("td", ", ".join(texts) or "–")) for key, texts in facts.items()]
    notes = [tag("p", note, class_="note") for note in about_streams(groups)]
    table = tag("div", tag("table", tag("tbody", rows), class_="facts"), class_="scroll")
    return tag("section", tag("h2", "What this page is made from"), table, notes, id="sources")


def _distinct(runs: Iterable[dict[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(str(run[key]) for run in runs if run.get(key)))


def _short(file: Path) -> str:
    """Write a path without folders of this machine."""
    path = os.path.relpath(file)
    return file.name if path.startswith("..") else path


def _colours() -> str:
    """Write the classes of the colours, by their number, on light pages and on dark ones."""
    rules = [f".fill{i}{{fill:var(--c{i})}}.stroke{i}{{stroke:var(--c{i})}}" for i in range(len(PALETTE))]
    light = ";".join(f"--c{i}:{colour}" for i, colour in enumerate(PALETTE))
    dark = ";".join(f"--c{i}:{DARK[colour]}" for i, colour in enumerate(PALETTE))
    scheme = f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return "\n".join([scheme, *rules])
