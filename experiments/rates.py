"""Which learning rates were tried, and which taken."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from experiments.study import Cell, Result, Section
from experiments.wording import MISSING
from fishexp.report.table import aligned

C = TypeVar("C", bound=Cell)


def chosen_on(one: Section[Any], examples: str) -> str:
    """The ``examples`` that decide, such as ``images``, and how long the runs were; of known rates, whose they are."""
    if one.chosen is None:
        return "the authors' logs"
    data, regime = one.chosen["data"], one.chosen["regime"]
    return f"{data['holdout']:,} held-out training {examples}, {regime['epochs']} epochs, seed 0"


def paragraphs(
    one: Section[C],
    *,
    score: str,
    columns: Callable[[C], Mapping[str, str]],
    name: Callable[[C], str],
    shared: str,
    heading: str = "### Learning rates",
) -> list[str]:
    """The learning rates tried on held-out examples, and the one taken.

    Args:
        score: What is shown and on what: ``Accuracy in % on 2,000 images``.
        columns: Header -> what it says of a cell.
        name: Of a cell, in a sentence.
        shared: Which cells take the rate of others.
    """
    sources = {result.source: result for result in one.results}
    rows = [columns(cell) for cell in sources]
    table = {header: [row[header] for row in rows] for header in rows[0]}
    words = tuple(table)
    for lr in sorted({lr for cell in sources for lr in one.study.rates[cell.method]}):
        table[f"{lr:g}"] = [_tried(one, result, lr) for result in sources.values()]
    text = f"{score}; the rate taken is in bold, of equals the smallest."
    return [
        heading,
        " ".join(filter(None, [text, shared, _edges(one, sources, name)])),
        aligned(table, left=[header for header in words if header != "keep"]),
    ]


def _tried(one: Section[Any], result: Result[Any], lr: float) -> str:
    if lr not in one.study.rates[result.source.method]:
        return ""
    if lr not in result.tried:
        return MISSING
    group = result.tried[lr]
    text = group.score if group else "failed"
    return f"**{text}**" if lr == result.lr else text


def _edges(one: Section[C], sources: Mapping[C, Result[C]], name: Callable[[C], str]) -> str:
    """Where a better rate may lie beyond those tried."""
    found = []
    for cell, result in sources.items():
        rates = one.study.rates[cell.method]
        ends = {min(rates): "smallest", max(rates): "largest"}
        found += [f"{name(cell)} ({ends[result.lr]})"] if result.lr in ends else []
    return f"At the edge of those tried, so that a better one may lie beyond: {', '.join(found)}." if found else ""
