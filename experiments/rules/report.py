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
from experiments.rules.findings import Told, leads_by_rate, told_apart
from fishexp.report.group import Group
from fishexp.system.text_table import markdown_table

_INTRO = """# The mask rules side by side

Made by `make rules` from [records.jsonl](records.jsonl). Every rule keeps the same number of weights, the classifier
included, and has its own learning rate, chosen on held-out training examples. Scores are means ± sample standard
deviations over seeds, on the development examples. `largest_change` trains the whole model first, at a rate that is not
chosen."""
_TITLES = {
    "sst2": "SST-2, 0.5 %",
    "sst2-second": "SST-2, 0.5 %, each rule at its second-best rate",
    "stsb": "STS-B, 0.5 %",
    "sst2-per": "SST-2, 0.5 %, a share for each matrix or row",
    "sst2-keeps": "SST-2, other budgets",
}
_LEADS = """How much of FISH's lead over random is the learning rate: its points on the held-out examples, one seed,
when both have the same rate, and when each has its best of those tried."""
_LIMITS = """Clear is a difference that no interval, over seeds or over examples, and no corrected p leaves open; in
brackets the 95 % interval over seeds; of too few seeds nothing can be claimed (–). p is corrected for the comparisons
of its own table below, not for all of them together; the fourth and the fifth seed on SST-2 were added, for all rules,
after three had been looked at, which no p allows for. No interval covers the choice of a rule's learning rate, by one
seed on 500 examples: below is what the second-best would have given on SST-2. What this does not show: other models
than one of 22.7 million weights, other tasks, more training examples, longer training. Whether more examples or other
labels make better scores is in [Figure 2](../figure2), what Diff Pruning's second training buys in
[Table 1](../table1): these are made of the same records, so that they are no independent evidence."""


def write_report(folder: Path, sections: Sequence[Section[Cell]]) -> None:
    """Write README.md and the pictures; nothing where no study has results."""
    intro = "\n\n".join([_INTRO, *_answer(sections)])
    write_readme(folder, intro, sections, lambda section, folder: _parts(section, sections, folder))


def _answer(sections: Sequence[Section[Cell]]) -> list[str]:
    """Say in short what the numbers of all sections say, and what they do not show; nothing before there are any."""
    told = [
        (_title(section), one)
        for section in sections
        for name, pairs in _compared(section, sections)
        for one in told_apart(pairs, section.predicted, name, _rule, _told_before(name, pairs))
    ]
    parts = [*_differences(told), *_leads(sections)]
    return ["## The answer", *parts, _LIMITS] if parts else []


def _told_before(reference: str, cells: Iterable[Cell]) -> list[Cell]:
    """List the cells whose comparison with FISH is that of FISH with them, which is told already."""
    return [cell for cell in cells if (reference, cell.rule) == ("fish", "random")]


def _differences(told: Sequence[tuple[str, Told]]) -> list[str]:
    """Count the differences that are clear, and show in a table which are and what is said of all others."""
    if not told:
        return []
    clear = sum(len(one.above) + len(one.below) for _, one in told)
    comparisons = sum(one.comparisons for _, one in told)
    columns = {
        "examples": [title for title, _ in told],
        "keep": [f"{one.keep:g}" for _, one in told],
        "against": [one.reference for _, one in told],
        "clearly above": [_clear(one, one.above) for _, one in told],
        "clearly below": [_clear(one, one.below) for _, one in told],
        "not told apart": [one.others for _, one in told],
        "n": [one.seeds for _, one in told],
    }
    return [
        f"Clear are {clear} of the {comparisons} comparisons below that have three seeds or more.",
        markdown_table(columns, left=columns.keys() - {"keep"}),
    ]


def _clear(one: Told, names: Sequence[str]) -> str:
    """Name what is clear of one side; a few seeds can tell nothing."""
    return ", ".join(names) or ("none" if one.comparisons else "–")


def _leads(sections: Sequence[Section[Cell]]) -> list[str]:
    """Show by how much FISH leads random at a common learning rate, and with each at its own best."""
    found = {
        (_title(section), f"{keep:g}"): leads
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


def _parts(section: Section[Cell], sections: Sequence[Section[Cell]], folder: Path) -> list[str]:
    unit = task_of(section).score
    rates = rates_tried(
        section, score=f"{unit} on {chosen_on(section, 'examples')}", columns=_columns, name=_name, shared=""
    )
    table = score_table(section.results, _columns, unit, ("rule", "per"))
    drawn = picture(section, folder, f"{unit} of the rules")
    parts = [f"## {_title(section)}", section.study.about, *drawn, table, *signs(section.results)]
    for name, pairs in _compared(section, sections):
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
