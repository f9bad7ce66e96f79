"""The report: README.md, made from the results."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from experiments.lib.differences import differences
from experiments.lib.learning_rates import chosen_on, rates_tried
from experiments.lib.report import score_table, signs, write_readme
from experiments.lib.results import Section
from experiments.lib.sentences import Cell, task_of
from experiments.rules.findings import lead_by_rate

_INTRO = """# The mask rules side by side

Made by `make rules` from [records.jsonl](records.jsonl). Every rule keeps the same number of weights, the classifier
included, and has its own learning rate, chosen on held-out training examples. Scores are means ± sample standard
deviations over seeds, on the development examples."""
_TITLES = {
    "sst2": "## SST-2, 0.5 %",
    "stsb": "## STS-B, 0.5 %",
    "sst2-per": "## SST-2, 0.5 %, a share for each matrix or row",
    "sst2-keeps": "## SST-2, other budgets",
}


def write_report(folder: Path, sections: Sequence[Section[Cell]]) -> None:
    """Write README.md; nothing where no study has results."""
    write_readme(folder, _INTRO, sections, lambda section, _: _parts(section, sections))


def _parts(section: Section[Cell], sections: Sequence[Section[Cell]]) -> list[str]:
    name = section.study.name
    unit = task_of(section).score
    rates = rates_tried(
        section, score=f"{unit} on {chosen_on(section, 'examples')}", columns=_columns, name=_name, shared=""
    )
    title = _TITLES[name] if section.profile == "cpu" else f"## {name}, profile {section.profile}"
    table = score_table(section.results, _columns, unit, ("rule", "per"))
    parts = [title, section.study.about, table, *signs(section.results), *_differences(section, sections)]
    return [*parts, *rates, *lead_by_rate(section.results)]


def _differences(section: Section[Cell], sections: Sequence[Section[Cell]]) -> list[str]:
    """Compare rules with random and with FISH at the same budget, and shares of the budget with none."""
    tasks = [one for one in sections if (one.profile, task_of(one)) == (section.profile, task_of(section))]
    parts = []
    for rule in ("random", "fish"):
        parts += differences(section, against=partial(_with_rule, rule), name=rule, columns=_columns)
    return parts + differences(
        section,
        against=lambda cell: replace(cell, per="network"),
        name="the same rule over the network",
        columns=_columns,
        beside=tasks[0].results,
    )


def _with_rule(rule: str, cell: Cell) -> Cell:
    return replace(cell, rule=rule)


def _columns(cell: Cell) -> dict[str, str]:
    return {"rule": cell.rule, "per": cell.per, "keep": f"{cell.keep:g}"}


def _name(cell: Cell) -> str:
    shares = "" if cell.per == "network" else f" per {cell.per}"
    return f"{cell.rule}{shares} at {cell.keep:g}"
