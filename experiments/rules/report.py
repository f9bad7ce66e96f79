"""The report: README.md, made from the results."""

from collections.abc import Sequence
from pathlib import Path

from experiments.lib.learning_rates import chosen_on, rates_tried
from experiments.lib.report import MISSING, rate, score, signs, write_readme
from experiments.lib.results import Result, Section
from experiments.units.profiles import Cell
from fishexp.report.group import span
from fishexp.system.text_table import markdown_table

_INTRO = """# Rows, columns and channels beside single entries

Made by `python -m experiments units` from [records.jsonl](records.jsonl). FISH keeps the same budget of entries, rows,
columns or channels (`method.unit`), those of the highest mean Fisher information. Scores are accuracies in %, means ±
sample standard deviations over seeds. What a step costs is in [benchmarks](../../benchmarks), measured side by side."""
_TITLES = {"sst2": "## SST-2", "cifar10": "## CIFAR-10"}


def write_report(folder: Path, sections: Sequence[Section[Cell]]) -> None:
    """Write README.md; nothing where no study has results."""
    write_readme(folder, _INTRO, sections, lambda section, _: _parts(section))


def _parts(section: Section[Cell]) -> list[str]:
    name = section.study.name
    rates = rates_tried(
        section,
        score=f"Accuracy in % on {chosen_on(section, 'sentences' if name == 'sst2' else 'images')}",
        columns=lambda cell: {"unit": cell.unit, "keep": f"{cell.keep:g}"},
        name=lambda cell: f"{cell.unit} at {cell.keep:g}",
        shared="The rates tried were the same for all units.",
    )
    return [_TITLES[name], section.study.about, _table(section.results), *signs(section.results), *rates]


def _table(results: Sequence[Result[Cell]]) -> str:
    """Make the table with a row for each keep and unit."""
    columns = {
        "keep": [f"{result.cell.keep:g}" for result in results],
        "unit": [result.cell.unit for result in results],
        "accuracy, %": [score(result) for result in results],
        "lr": [rate(result) for result in results],
        "weights moved": [span(result.group.kept) if result.group else MISSING for result in results],
    }
    return markdown_table(columns, left=("unit",))
