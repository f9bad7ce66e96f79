"""A table made of records, in Markdown, LaTeX or CSV: ``python -m fishexp.report.table outputs/records.jsonl``."""

import argparse
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from fishexp.errors import FishexpError
from fishexp.report import command
from fishexp.report.formats import csv_text, latex, latex_table
from fishexp.report.group import Group, about_streams, number, span
from fishexp.report.marks import footnotes, marked_score
from fishexp.report.pool import Pool, differing
from fishexp.report.rates import best_of, bold, chosen_from, compared_on, families
from fishexp.report.scores import told_apart
from fishexp.report.shared import is_shared, shared_text
from fishexp.system.text_table import folded, markdown_table

# (columns, headers of those aligned left) -> text
_WriteTable: TypeAlias = Callable[[Mapping[str, Sequence[str]], list[str]], str]
# columns of which a metric may have the name
_NAMES = (
    "data set", "model", "method", "keep", "lr", "weights moved", "seeds", "seconds", "lr chosen from",
    "held-out examples", "row",
)  # fmt: skip
# columns of words, aligned left; the others are aligned right
_LEFT = ("data set", "lr chosen from")
# columns that each part of a folded table repeats, and how large a part may be
_REPEATED, _MOST_COLUMNS, _WIDTH = ("method",), 10, 120


def markdown(pooled: Pool) -> str:
    """Write the table of the reported runs, the table of runs on held-out examples, and what to know of them.

    What all rows share stands above a table. A table of many columns is folded: its parts follow each other.
    """
    return _document(pooled, markdown_table, str)


def _document(pooled: Pool, write_table: _WriteTable, write: Callable[[str], str]) -> str:
    """Write tables, and the texts above and below them.

    Args:
        write_table: Writes columns, and is told which are aligned left.
        write: Writes a text.
    """
    parts = []
    if pooled.reported:
        parts += [write(_shared(pooled)), *_tables(reported_columns(pooled), write_table)]
    if pooled.held_out:
        parts += [
            write("**Chosen on held-out training examples** (the best learning rate in bold)"),
            write(shared_text(pooled.held_out)),
            *_tables(held_out_columns(pooled), write_table),
        ]
    parts += map(write, footnotes(pooled.reported + pooled.held_out))
    parts += map(write, about_streams(pooled.reported + pooled.held_out))
    if pooled.unfinished:
        counts = ", ".join(f"{count} {status}" for status, count in sorted(pooled.unfinished.items()))
        parts.append(write(f"Not shown, because they did not finish: {counts}."))
    return "\n\n".join(parts)


def latex_document(pooled: Pool) -> str:
    """Write what :func:`markdown` does in LaTeX, for a document that loads the package booktabs."""
    return _document(pooled, latex_table, latex)


# value of --format -> what writes it
_FORMATS: Mapping[str, Callable[[Pool], str]] = {"markdown": markdown, "latex": latex_document, "csv": csv_text}


def reported_columns(pooled: Pool) -> dict[str, list[str]]:
    """Make the columns of the reported runs, header -> cells; they tell how a learning rate was chosen, if any was."""
    groups = pooled.reported
    rates = {} if is_shared(groups, "regime.lr") else {"lr": [number(group.lr) for group in groups]}
    columns = _columns(groups, rates)
    if pooled.held_out:
        basis = len(compared_on(groups, pooled.held_out)) > 1
        columns["lr chosen from"] = [chosen_from(group, pooled.held_out, basis=basis) for group in groups]
    return columns


def held_out_columns(pooled: Pool) -> dict[str, list[str]]:
    """Make the columns of runs on held-out examples: header -> cells, the best learning rate of a family in bold."""
    groups = pooled.held_out
    best = {id(group) for family in families(groups) for group in best_of(family)}
    columns = _columns(groups, {"lr": [bold(group) if id(group) in best else number(group.lr) for group in groups]})
    if len({group.held_out for group in groups}) > 1:
        columns["held-out examples"] = [f"{group.held_out:,}" for group in groups]
    return columns


def _columns(groups: Sequence[Group], rates: dict[str, list[str]]) -> dict[str, list[str]]:
    """Make the columns that both tables have: a row's name, what came of it, what else tells it from others.

    Args:
        rates: The column of the learning rates; empty where all rows share one.
    """
    keys = differing(groups)
    return {
        **_if_varied("data set", [group.data for group in groups]),
        **_if_varied("model", [group.model for group in groups]),
        "method": [group.label for group in groups],
        **_if_varied("keep", [number(group.keep) for group in groups]),
        **rates,
        **_results(groups, (*_NAMES, *keys)),
        **{key: [group.setting(key) for group in groups] for key in keys},
        **_if_varied("weights moved", [span(group.kept) for group in groups]),
        **_if_varied("seeds", [str(len(group.runs)) for group in groups]),
        "seconds": [f"{group.seconds:,.{1 if group.seconds < 100 else 0}f}" for group in groups],
    }


def _if_varied(header: str, cells: list[str]) -> dict[str, list[str]]:
    return {header: cells} if len(set(cells)) > 1 else {}


def _results(groups: Sequence[Group], others: Sequence[str]) -> dict[str, list[str]]:
    """Make a column for each metric that measures success; its cells are empty where a row has other metrics.

    Args:
        others: Headers of other columns.
    """
    metrics = [metric for group in groups for metric in group.metrics]
    return {
        told_apart(groups[0].scores(metric).header, others): [
            marked_score(group, metric) if metric in group.metrics else "" for group in groups
        ]
        for metric in dict.fromkeys(metrics)
    }


def _tables(columns: dict[str, list[str]], write_table: _WriteTable) -> list[str]:
    left = [*_LEFT, *(header for header, cells in columns.items() if any(map(str.isalpha, cells)))]
    parts = folded(columns, repeated=_REPEATED, most=_MOST_COLUMNS, width=_WIDTH)
    return [write_table(part, left) for part in parts]


def _shared(pooled: Pool) -> str:
    basis = compared_on(pooled.reported, pooled.held_out)
    return shared_text(pooled.reported, *(f"learning rates compared on {on}" for on in basis if len(basis) == 1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of the files named on the command line; return 2 if there is none to print."""
    parser = argparse.ArgumentParser(
        prog="python -m fishexp.report.table",
        description="Print the results of runs as a table: a row for each setting, over all of its seeds.",
        epilog="example: python -m fishexp.report.table outputs/records.jsonl > results.md",
    )
    parser.add_argument(
        "--against", metavar="METHOD", help="print the differences to this method instead, with intervals"
    )
    parser.add_argument(
        "--format",
        choices=_FORMATS,
        default="markdown",
        help="markdown; latex, which needs the package booktabs; or csv, with mean and spread as they are (markdown if "
        "you do not say)",
    )
    return command.run(parser, arguments, _print)


def _print(pooled: Pool, options: Namespace) -> None:
    if options.against is None:
        print(_FORMATS[options.format](pooled))
        return
    if options.format != "markdown":
        raise FishexpError(f"--format {options.format}: differences are printed as markdown only; leave --format away")
    from fishexp.report.against import differences_to  # which needs numpy
    from fishexp.report.differences import load_predictions

    print(differences_to(pooled, options.against, load_predictions(options.records)))


if __name__ == "__main__":
    sys.exit(main())
