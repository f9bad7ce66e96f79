"""The answer: what the numbers of the rules, of Figure 2 and of Table 1 say in short, and what they do not show."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from experiments.figure2.profiles import PROFILES as FIGURE_2
from experiments.figure2.report import USUAL, beside_usual
from experiments.lib.records import RecordedRuns
from experiments.lib.report import METHOD_NAMES
from experiments.lib.results import Result, Section, result_of
from experiments.lib.sentences import RULES, Cell
from experiments.lib.study import Study
from experiments.rules.findings import Told, leads_by_rate, told_apart
from experiments.table1.profiles import PROFILES as TABLE_1
from experiments.table1.report import beside_fish, times_of_fish
from fishexp.report.differences import Predicted
from fishexp.report.group import Group, number
from fishexp.system.text_table import markdown_table

_LEADS = """How much of FISH's lead over random is the learning rate: points by which FISH is ahead on the held-out
examples, one seed, when both have the same rate, and when each has its best of those tried. The largest
leads are over runs that have learned little, at a rate that was too small or too large; ‡ below marks those that
predict a single class."""
_LIMITS = """A difference is clear if neither interval, over seeds or over examples, holds zero, and the corrected p is
below 0.05; in brackets the 95 % interval over seeds, of that comparison alone. A test takes three seeds, and
differences that are not the same in all of them; – where there is none. p is corrected for the comparisons of its own
table, not for all of them together; the fourth and the fifth seed of the rules were added, for all of them, after three
had been looked at, which no p allows for. All seeds train on the same examples, so that no interval covers others. Nor
does one cover the choice of a rule's learning rate, by one seed on 500 examples: below is what the second-best would
have given on SST-2. Figure 2 and Table 1 are made of these records and share runs of FISH with the rules: they are no
independent evidence. What this does not show: other models than one of 22.7 million weights, other tasks, more training
examples, longer training."""

# title of a study -> its results
Results: TypeAlias = Mapping[str, Sequence[Result[Cell]]]


@dataclass(frozen=True)
class Comparison:
    """Hold what is compared with one reference.

    Attributes:
        title: Of the examples and of what distinguishes the cells.
        reference: Name of what all are compared with.
        pairs: Cell -> its runs, and those that it is compared with.
        name: Cell -> its name.
        told_before: Cells whose comparison is told elsewhere.
    """

    title: str
    reference: str
    pairs: Mapping[Cell, tuple[Group, Group]]
    name: Callable[[Cell], str]
    told_before: Collection[Cell] = ()


def answer(
    sections: Sequence[Section[Cell]], comparisons: Sequence[Comparison], title: Callable[[Section[Cell]], str]
) -> list[str]:
    """Say in short what the numbers say, and what they do not show; nothing before there are any.

    Args:
        comparisons: Those of the sections.
        title: Section -> its title.
    """
    if not sections:
        return []
    runs = sections[0].runs  # the same of all sections
    table_1 = _results("Table 1", TABLE_1, runs)
    told = [*comparisons, *_of_figure_2(_results("Figure 2", FIGURE_2, runs)), *_of_table_1(table_1)]
    parts = [*_differences(told, runs.predicted), *_price(table_1), *_leads(sections, title)]
    return ["## The answer", *parts, _LIMITS] if parts else []


def _results(name: str, profiles: Mapping[str, Sequence[Study[Cell]]], runs: RecordedRuns) -> Results:
    """Look up the results of each study of another experiment that shares these records."""
    return {
        f"{name}, {study.name}" + (f", profile {profile}" if profile != "cpu" else ""): [
            result_of(study, cell, runs) for cell in study.cells
        ]
        for profile, studies in profiles.items()
        for study in studies
    }


def _of_figure_2(found: Results) -> Iterator[Comparison]:
    """Yield what the examples scored and their labels change, by the runs of Figure 2."""
    for title, results in found.items():
        yield Comparison(title, USUAL, beside_usual(results), lambda cell: f"{cell.samples:,} {cell.labels}")


def _of_table_1(found: Results) -> Iterator[Comparison]:
    """Yield how methods that are no mask rule compare with FISH, by the runs of Table 1."""
    for title, results in found.items():
        pairs = beside_fish(results)
        rules = [cell for cell in pairs if cell.rule in RULES]
        yield Comparison(title, "fish at 0.005", pairs, lambda cell: METHOD_NAMES[cell.rule], rules)


def _differences(comparisons: Sequence[Comparison], predicted: Predicted) -> list[str]:
    """Count the differences that are clear, and show in a table which are and what is said of all others."""
    told = [
        (one.title, found)
        for one in comparisons
        for found in told_apart(one.pairs, predicted, one.reference, one.name, one.told_before)
    ]
    if not told:
        return []
    clear = sum(len(one.above) + len(one.below) for _, one in told)
    comparisons_made = sum(one.comparisons for _, one in told)
    columns = {
        "examples": [title for title, _ in told],
        "keep": [number(one.keep) for _, one in told],
        "against": [one.reference for _, one in told],
        "clearly above": [_clear(one, one.above) for _, one in told],
        "clearly below": [_clear(one, one.below) for _, one in told],
        "not told apart": [one.others for _, one in told],
        "n": [one.seeds for _, one in told],
    }
    return [
        f"{clear} of the {comparisons_made} comparisons that can be tested are clear: of the rules, of the examples "
        "and labels that FISH scores ([Figure 2](../figure2)), and of other methods ([Table 1](../table1)).",
        markdown_table(columns, left=columns.keys() - {"keep"}),
    ]


def _clear(one: Told, names: Sequence[str]) -> str:
    """Name what is clear of one side; a few seeds can tell nothing."""
    return ", ".join(names) or ("none" if one.comparisons else "–")


def _price(table_1: Results) -> list[str]:
    """Say how much longer a run of Diff Pruning takes than one of FISH, by the runs of Table 1."""
    cell = Cell("diff_pruning")
    found = {title: times_of_fish(results) for title, results in table_1.items()}
    times = [f"{of_fish[cell]:.2g} runs of FISH ({title})" for title, of_fish in found.items() if cell in of_fish]
    about = "A run of Diff Pruning, which trains all weights to find the changes that it keeps, takes as long as"
    return [f"{about} {' or '.join(times)}."] if times else []


def _leads(sections: Sequence[Section[Cell]], title: Callable[[Section[Cell]], str]) -> list[str]:
    """Show by how much FISH leads random at a common learning rate, and with each at its own best."""
    found = {
        (title(section), f"{keep:g}"): leads
        for section in sections
        if not section.study.rank
        for keep, leads in leads_by_rate(section.results).items()
    }
    if not found:
        return []
    rates = sorted({lr for leads in found.values() for lr in leads if lr is not None})
    columns = {"examples": [title for title, _ in found], "keep": [keep for _, keep in found]}
    for lr in (*rates, None):
        header = "each at its best" if lr is None else f"both at {lr:g}"
        columns[header] = [f"{leads[lr]:+.1f}" if lr in leads else "" for leads in found.values()]
    return [_LEADS, markdown_table(columns, left=["examples"])]
