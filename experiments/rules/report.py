"""The report: README.md, made from the results."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from experiments.lib.differences import differences, pairs_of
from experiments.lib.learning_rates import chosen_on, rates_tried
from experiments.lib.report import picture, score_table, signs, write_readme
from experiments.lib.results import Result, Section
from experiments.lib.sentences import Cell, task_of
from experiments.rules.answer import Comparison, answer
from fishexp.report.group import Group

_INTRO = """# The mask rules side by side

Made by `make rules` from [records.jsonl](records.jsonl). At the same `keep` every rule keeps as many weights, the
classifier included; each has its own learning rate, chosen on held-out training examples. Scores are means ± sample
standard deviations over seeds, on the development examples. `largest_change` trains the whole model first, at a rate
that is not chosen."""
_TITLES = {
    "sst2": "SST-2, 0.5 %",
    "sst2-second": "SST-2, 0.5 %, each rule at its second-best rate",
    "stsb": "STS-B, 0.5 %",
    "sst2-per": "SST-2, 0.5 %, a share for each matrix or row",
    "sst2-keeps": "SST-2, other budgets",
}


def write_report(folder: Path, sections: Sequence[Section[Cell]]) -> None:
    """Write README.md and the pictures; nothing where no study has results."""
    intro = "\n\n".join([_INTRO, *answer(sections, _comparisons(sections), _title)])
    write_readme(folder, intro, sections, lambda section, folder: _parts(section, sections, folder))


def _comparisons(sections: Sequence[Section[Cell]]) -> list[Comparison]:
    """List what the sections compare, each comparison once."""
    return [
        Comparison(_title(section), name, pairs, _rule, _told_before(name, pairs))
        for section in sections
        for name, pairs in _compared(section, sections)
    ]


def _told_before(reference: str, cells: Iterable[Cell]) -> list[Cell]:
    """List the cells whose comparison with FISH is that of FISH with them, which is told already."""
    return [cell for cell in cells if (reference, cell.rule) == ("fish", "random")]


def _parts(section: Section[Cell], sections: Sequence[Section[Cell]], folder: Path) -> list[str]:
    unit = task_of(section).score
    rates = rates_tried(
        section, score=f"{unit} on {chosen_on(section, 'examples')}", columns=_columns, name=_name, shared=""
    )
    table = score_table(section.results, _columns, unit, ("rule", "per"))
    drawn = picture(section, folder, f"{unit} of the rules")
    compared = _compared(section, sections)
    others = [other for _, pairs in compared for _, other in pairs.values()]
    parts = [f"## {_title(section)}", section.study.about, *drawn, table, *signs(section.results, others)]
    for name, pairs in compared:
        parts += differences(pairs, section.predicted, name=name, columns=_columns)
    return [*parts, *([] if section.study.rank else rates)]


def _title(section: Section[Cell]) -> str:
    name = section.study.name
    return _TITLES[name] if section.profile == "cpu" else f"{name}, profile {section.profile}"


def _compared(
    section: Section[Cell], sections: Sequence[Section[Cell]]
) -> list[tuple[str, dict[Cell, tuple[Group, Group]]]]:
    """Pair rules with random and with FISH at the same budget, and shares of the budget with none.

    A rule at its second-best rate is compared with itself at its best alone.

    Returns:
        (Name of what all are compared with, cell -> its runs and those that it is compared with) of each that has any.
    """
    tasks = [one for one in sections if (one.profile, task_of(one)) == (section.profile, task_of(section))]
    if section.study.rank:
        return [("the same rule at its best rate", _beside_best(section.results, tasks[0].results))]
    compared = [(rule, pairs_of(section.results, partial(_with_rule, rule))) for rule in ("random", "fish")]
    network = pairs_of(section.results, lambda cell: replace(cell, per="network"), tasks[0].results)
    compared.append(("the same rule over the network", network))
    return [(name, pairs) for name, pairs in compared if pairs]


def _beside_best(results: Sequence[Result[Cell]], best: Sequence[Result[Cell]]) -> dict[Cell, tuple[Group, Group]]:
    """Pair each cell's runs with those at its best rate, where there are both."""
    groups = {result.cell: result.group for result in best}
    found = [(result.cell, result.group, groups[result.cell]) for result in results]
    return {cell: (group, other) for cell, group, other in found if group and other}


def _with_rule(rule: str, cell: Cell) -> Cell:
    return replace(cell, rule=rule)


def _columns(cell: Cell) -> dict[str, str]:
    return {"rule": cell.rule, "per": cell.per, "keep": f"{cell.keep:g}"}


def _rule(cell: Cell) -> str:
    return cell.rule if cell.per == "network" else f"{cell.rule} per {cell.per}"


def _name(cell: Cell) -> str:
    return f"{_rule(cell)} at {cell.keep:g}"
