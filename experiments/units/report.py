"""The report: README.md, made from the results."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from experiments.lib.differences import differences, pairs_of
from experiments.lib.learning_rates import chosen_on, rates_tried
from experiments.lib.report import score_table, signs, write_readme
from experiments.lib.results import Section
from experiments.units.profiles import Cell

_INTRO = """# Rows, columns and channels beside single entries

Made by `python -m experiments units` from [records.jsonl](records.jsonl). FISH keeps the same budget of entries, rows,
columns or channels (`method.unit`), those of the highest mean Fisher information. Of a matrix columns and channels are
the same, so that on SST-2 they agree to the last digit. Scores are accuracies in %, means ± sample standard deviations
over seeds. What a step costs is in [benchmarks](../../benchmarks), measured side by side."""
_TITLES = {"sst2": "## SST-2", "cifar10": "## CIFAR-10"}


def write_report(folder: Path, sections: Sequence[Section[Cell]]) -> None:
    """Write README.md; nothing where no study has results."""
    write_readme(folder, _INTRO, sections, lambda section, _: _parts(section))


def _parts(section: Section[Cell]) -> list[str]:
    name = section.study.name
    rates = rates_tried(
        section,
        score=f"Accuracy in % on {chosen_on(section, 'phrases' if name == 'sst2' else 'images')}",
        columns=_columns,
        name=lambda cell: f"{cell.unit} at {cell.keep:g}",
        shared="The rates tried were the same for all units.",
    )
    table = score_table(section.results, _columns, "accuracy, %", ("unit",))
    entries = partial(replace, unit="entry")
    compared = differences(pairs_of(section.results, entries), section.predicted, name="entries", columns=_columns)
    return [_TITLES[name], section.study.about, table, *signs(section.results), *compared, *rates]


def _columns(cell: Cell) -> dict[str, str]:
    return {"unit": cell.unit, "keep": f"{cell.keep:g}"}
