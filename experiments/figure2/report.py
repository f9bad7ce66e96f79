"""The report: README.md and a picture, made from the results."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.figure2.overlap import overlaps
from experiments.figure2.plot import draw
from experiments.lib.differences import differences, pairs_of
from experiments.lib.learning_rates import chosen_on, rates_tried
from experiments.lib.report import rate, score, section_name, signs, write_readme
from experiments.lib.results import Result, Section
from experiments.lib.sentences import Cell, task_of
from fishexp.report.group import Group
from fishexp.system.text_table import markdown_table

_INTRO = """# Figure 2: how large a mask, how many examples, whose labels

Made by `make figure2`; its records stand in [../rules](../rules), as some of its runs are those of the rules'
comparison. Profile cpu has a single budget, gpu has four. Every cell takes the learning rate chosen for its budget with
1,024 examples and their true labels. The paper shows the original as a picture, whose values could not be had; with the
model's labels instead of the true ones (`expected`, `sampled`) its code has no runs of FISH.

Of two classes, a fresh classifier gives each about one half, and the gradients of the two labels are then opposite:
their squares are the same, whichever label is taken. Labels can matter once a model has learned something, or of more
classes."""
# what the other cells are compared with
USUAL = "1,024 examples and true labels"
_LABEL_NAMES = {"true_label": "true", "expected": "expectation over the model's", "sampled": "drawn from the model's"}


def write_report(folder: Path, sections: Sequence[Section[Cell]]) -> None:
    """Write README.md and the pictures; nothing where no study has results."""
    write_readme(folder, _INTRO, sections, _parts)


def _parts(section: Section[Cell], folder: Path) -> list[str]:
    task, picture = task_of(section), f"{section_name(section)}.png"
    parts = [f"## {task.name}, profile {section.profile}", task.about]
    figure = draw(section, task.score)
    if figure is not None:
        figure.savefig(folder / picture)
        parts.append(f"![{task.score} over the examples that FISH scores]({picture})")
    about = f"{task.score} on {chosen_on(section, 'examples')}"
    rates = rates_tried(section, score=about, columns=lambda cell: {"keep": f"{cell.keep:g}"}, name=_name, shared="")
    gaps = differences(beside_usual(section.results), section.predicted, name=USUAL, columns=_columns)
    table = _table(section.results, task.score)
    return [*parts, table, *signs(section.results), *gaps, *overlaps(section, folder), *rates]


def beside_usual(results: Sequence[Result[Cell]]) -> dict[Cell, tuple[Group, Group]]:
    """Pair the runs of each cell with those of its budget that score 1,024 examples by their true labels."""
    return pairs_of(results, lambda cell: replace(cell, samples=1024, labels="true_label"))


def _name(cell: Cell) -> str:
    return f"{cell.keep:g}"


def _table(results: Sequence[Result[Cell]], header: str) -> str:
    """Make the table with a row for each cell."""
    rows = [_columns(result.cell) for result in results]
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    columns |= {header: [score(result) for result in results], "lr": [rate(result) for result in results]}
    return markdown_table(columns, left=("labels",))


def _columns(cell: Cell) -> dict[str, str]:
    return {"keep": f"{cell.keep:g}", "examples scored": f"{cell.samples:,}", "labels": _LABEL_NAMES[cell.labels]}
