"""The report: README.md, made from the results."""

from collections.abc import Sequence
from pathlib import Path

from experiments.lib.differences import differences, pairs_of
from experiments.lib.learning_rates import chosen_on, rates_tried
from experiments.lib.report import METHOD_NAMES, picture, score_table, signs, write_readme
from experiments.lib.results import Result, Section
from experiments.lib.sentences import Cell, task_of
from fishexp.report.group import Group, number

_INTRO = """# Table 1: GLUE

Made by `make table1`; its records stand in [../rules](../rules), as some of its runs are those of the rules'
comparison. Scores are means ± sample standard deviations over seeds, on the development examples. The paper reports the
benchmark's test set, of which second-hand quotes give three averages over eight tasks: dense training 82.5, FISH at
0.5 % 82.6, at 0.08 % 81.3. No other cell of it could be had. Diff Pruning and LoRA are outside references: Diff
Pruning keeps as many changes, but trains all weights to find them; LoRA trains fewer numbers, which the table counts as
moved, and changes all weights of the Linears that it adapts. `python -m experiments.table1.submission RUN_FOLDER ...`
predicts the test sets, for a zip that the benchmark's site takes."""
_FISH = Cell("fish")


def write_report(folder: Path, sections: Sequence[Section[Cell]]) -> None:
    """Write README.md and the pictures; nothing where no study has results."""
    write_readme(folder, _INTRO, sections, _parts)


def _parts(section: Section[Cell], folder: Path) -> list[str]:
    task = task_of(section)
    title = f"## {task.name}, profile {section.profile}"
    rates = ["Learning rates are those of the authors' scripts; of magnitude and LoRA, which have none there, ours."]
    if section.chosen is not None:
        about = f"{task.score} on {chosen_on(section, 'examples')}"
        rates = rates_tried(section, score=about, columns=_columns, name=_name, shared="")
    table = score_table(section.results, _columns, task.score, ("method",))
    drawn = picture(section, folder, f"{task.score} of the methods")
    compared = differences(beside_fish(section.results), section.predicted, name=_name(_FISH), columns=_columns)
    return [title, task.about, *drawn, table, *signs(section.results), *_times(section.results), *compared, *rates]


def beside_fish(results: Sequence[Result[Cell]]) -> dict[Cell, tuple[Group, Group]]:
    """Pair the runs of each method with those of FISH at its first budget, but not FISH at another."""
    return pairs_of(results, lambda cell: None if cell.rule == "fish" else _FISH)


def times_of_fish(results: Sequence[Result[Cell]]) -> dict[Cell, float]:
    """Return by how much a run of each method took longer than one of FISH at its first budget, as a multiple."""
    seconds = {result.cell: _fastest(result.group) for result in results if result.group}
    return {cell: took / seconds[_FISH] for cell, took in seconds.items() if _FISH in seconds and cell != _FISH}


def _times(results: Sequence[Result[Cell]]) -> list[str]:
    """Say how long a run of each method took, scores and masks included, beside one of FISH at its first budget."""
    found = times_of_fish(results)
    if not found:
        return []
    times = f"as a multiple of {_name(_FISH)}'s: {', '.join(f'{_name(cell)} {x:.2g}' for cell, x in found.items())}."
    beside = "Runs had other work beside them, some more than others: the steps' own times are in benchmarks."
    return [f"The time of a run, scores and masks included, of the seeds the fastest, {times} {beside}"]


def _fastest(group: Group) -> float:
    """Return the seconds of the run that least other work held up."""
    return min(sum(run["seconds"].values()) for run in group.runs)


def _columns(cell: Cell) -> dict[str, str]:
    return {"method": METHOD_NAMES[cell.rule], "keep": number(cell.keep)}


def _name(cell: Cell) -> str:
    return " at ".join(filter(None, [METHOD_NAMES[cell.rule], number(cell.keep) if cell.keep else ""]))
