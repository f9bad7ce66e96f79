"""The part of a report on learning rates: which were tried, and which taken."""

from collections.abc import Callable, Mapping
from typing import Any

from experiments.lib.report import MISSING
from experiments.lib.results import Result, Section
from experiments.lib.study import CHOICE_SEED, C
from fishexp.report.marks import marked_score, one_class_note
from fishexp.run.tuning import MOST_GROWN
from fishexp.system.text_table import markdown_table


def chosen_on(section: Section[Any], examples: str) -> str:
    """Say on which ``examples``, such as ``images``, rates are chosen and in how many epochs; if known, by whom."""
    if section.chosen is None:
        return "the authors' logs"
    data, regime = section.chosen["data"], section.chosen["regime"]
    epochs = f"{regime['epochs']} epoch{'s' * (regime['epochs'] != 1)}"
    return f"{data['holdout']:,} held-out training {examples}, {epochs}, seed {CHOICE_SEED}"


def rates_tried(
    section: Section[C],
    *,
    score: str,
    columns: Callable[[C], Mapping[str, str]],
    name: Callable[[C], str],
    shared: str,
) -> list[str]:
    """Return heading, text and table of the learning rates tried on held-out examples, and the one taken.

    Args:
        score: Name of the scores and what they are on: ``Accuracy in % on 2,000 images``.
        columns: Cell -> (header -> entry that says which cell it is).
        name: Cell -> its name in a sentence.
        shared: Sentence that says which cells take the rate of others; may be empty.
    """
    sources = {result.source: result for result in section.results}
    rows = [columns(cell) for cell in sources]
    table = {header: [row[header] for row in rows] for header in rows[0]}
    left = [header for header in table if header != "keep"]
    for lr in sorted({lr for result in sources.values() for lr in _rates(section, result)}):
        table[f"{lr:g}"] = [_tried(section, result, lr) for result in sources.values()]
    text = f"{score}; the rate taken is in bold, of equals the smallest."
    return [
        "### Learning rates",
        " ".join(filter(None, [text, shared, _edges(section, sources, name)])),
        markdown_table(table, left=left),
        *one_class_note([group for result in sources.values() for group in result.tried.values() if group]),
    ]


def _rates(section: Section[Any], result: Result[Any]) -> list[float]:
    """Return the rates of the grid for the result's source, as far as it has grown."""
    return [*section.study.rates[result.source.method], *result.beyond]


def _tried(section: Section[Any], result: Result[Any], lr: float) -> str:
    """Return the score of the runs with ``lr`` as the entry of a table, in bold if it is the rate taken."""
    if lr not in _rates(section, result):
        return ""
    if lr not in result.tried:
        return MISSING
    group = result.tried[lr]
    text = marked_score(group, group.metric) if group else "failed"
    return f"**{text}**" if lr == result.lr else text


def _edges(section: Section[C], sources: Mapping[C, Result[C]], name: Callable[[C], str]) -> str:
    """Say for which cells a better rate may lie beyond those tried."""
    found = []
    for cell, result in sources.items():
        rates = _rates(section, result)
        ends = {min(rates): "smallest", max(rates): "largest"}
        found += [f"{name(cell)} ({ends[result.lr]})"] if result.lr in ends else []
    limit = f" (a grid grows at most {MOST_GROWN} times at each end)" if section.study.grow else ""
    about = f"At the edge of those tried{limit}, so that a better one may lie beyond"
    return f"{about}: {', '.join(found)}." if found else ""
