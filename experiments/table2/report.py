"""The report: README.md and its pictures, made from the results."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from experiments.lib.differences import differences, pairs_of
from experiments.lib.distributed import ABOUT_BYTES, bytes_sent, dense_runs, findings, score_table
from experiments.lib.learning_rates import chosen_on, rates_tried
from experiments.lib.plot import Line, draw_score_against_bytes
from experiments.lib.report import (
    METHOD_NAMES,
    MISSING,
    about_logs,
    section_name,
    side_by_side,
    signs,
    write_readme,
)
from experiments.lib.results import Result, Section
from experiments.lib.settings import agrees
from experiments.table2.cells import METHODS, Cell
from fishexp.report.group import Group, settings_of
from fishexp.report.style import save
from fishexp.system.text_table import markdown_table

_INTRO = f"""# Table 2: workers that merge rarely, on GLUE

Made by `python -m experiments table2` from [records.jsonl](records.jsonl). Two workers fine-tune a BERT while only
0.5 % of its weights may move on each, and every so many steps they merge what has moved.

```bash
make table2 PROFILE=cpu DRY=1    # how many runs and hours; runs nothing
make table2 PROFILE=cpu          # or gpu, paper; the same command goes on after an interruption
```

Scores are means ± sample standard deviations over seeds, of the merged model after the last epoch, on the development
set. {ABOUT_BYTES}"""
LOGS = json.loads((Path(__file__).parent / "authors_logs.json").read_text())
# task -> its other metric
_SECOND = {"mrpc": "f1", "qqp": "f1", "stsb": "spearman"}


def write_report(folder: Path, sections: Sequence[Section[Cell]]) -> None:
    """Write README.md and a picture for each task that has results; nothing where none has."""
    write_readme(folder, _INTRO, sections, _parts)


def _parts(section: Section[Cell], folder: Path) -> list[str]:
    """Return the paragraphs, tables and headings of a section; write its pictures."""
    title = " ".join(["## Profile", section.profile, section.study.name]).rstrip()
    parts = [title, section.study.about, _settings(section)]
    for task in dict.fromkeys(cell.task for cell in section.study.cells):
        if fig := draw(section, task):
            picture = f"{section_name(section)}-{task}.png"
            save(fig, folder / picture)
            parts.append(f"![{task}: score against bytes sent]({picture})")
    dense = dense_runs(section.results, lambda cell: replace(cell, method="full"))
    pairs = pairs_of(section.results, lambda cell: replace(cell, method="random") if cell.method == "fish" else None)
    parts += [_table(section, dense), *_second(section), findings(section, pairs.values(), dense)]
    parts += signs(section.results)
    compared = differences(pairs, section.predicted, name="random", columns=_columns)
    return [*parts, *([about_logs(LOGS)] if _logs(section) else []), *compared, *_rates(section)]


def draw(section: Section[Cell], task: str) -> Figure | None:
    """Draw the score against bytes sent: a line over the intervals for each method."""
    groups: dict[str, list[Group]] = {}
    for result in section.results:
        if result.cell.task == task and result.group and result.group.mean is not None:
            groups.setdefault(result.cell.method, []).append(result.group)
    lines = [Line(method, "", 0, joined) for method, joined in groups.items()]
    title = [f"{section.in_table['regime']['workers']} workers"]
    return draw_score_against_bytes(lines, bytes_sent, "sent by one worker", title)


def _rows(section: Section[Cell]) -> dict[tuple[str, int], dict[str, Result[Cell]]]:
    """Return (task, interval) -> method -> its result."""
    rows: dict[tuple[str, int], dict[str, Result[Cell]]] = {}
    for result in section.results:
        rows.setdefault((result.cell.task, result.cell.sync), {})[result.cell.method] = result
    return rows


def _table(section: Section[Cell], dense: Mapping[Cell, Group | None]) -> str:
    """Make the table of scores: a row for each task and interval."""
    rows = []
    for (task, sync), results in _rows(section).items():
        header = next((result.group.header for result in results.values() if result.group), "")
        rows.append(({"task": task, "score": header, "merge every": f"{sync} steps"}, results))
    return score_table(rows, ("task", "score", "merge every"), dense, _logs(section))


def _columns(cell: Cell) -> dict[str, str]:
    return {"method": cell.method, "task": cell.task, "merge every": f"{cell.sync} steps"}


def _second(section: Section[Cell]) -> list[str]:
    """Make the table of the other metric of the tasks that have two."""
    rows = {key: results for key, results in _rows(section).items() if key[0] in _SECOND}
    if not any(result.group for results in rows.values() for result in results.values()):
        return []
    columns = {
        "task": [task for task, _ in rows],
        "score": [f"{_SECOND[task]}, x100" for task, _ in rows],
        "merge every": [f"{sync} steps" for _, sync in rows],
    }
    for method in METHODS:
        entries = [_second_score(results[method], _SECOND[task]) for (task, _), results in rows.items()]
        columns[METHOD_NAMES[method]] = entries
    return [markdown_table(columns, left=("task", "score", "merge every"))]


def _second_score(result: Result[Cell], metric: str) -> str:
    """Return the mean of ``metric``, times 100, as text."""
    if result.group is None:
        return MISSING
    values = [run["metrics"][metric] for run in result.group.runs]
    return "undefined" if None in values else f"{100 * mean(values):.1f}"


def _logs(section: Section[Cell]) -> dict[Cell, float]:
    """Return cell -> its score in the authors' logs; empty where the setting is not theirs."""
    if not agrees(LOGS["settings"], settings_of({"config": section.in_table})):
        return {}
    return {Cell(run["method"], run["task"], run["merge_steps"]): run["score"] for run in LOGS["runs"]}


def _settings(section: Section[Cell]) -> str:
    """Make the table of what was run beside the original."""
    run, data, regime = section.in_table, section.in_table["data"], section.in_table["regime"]
    half = "each worker has its half of them" if regime["shard"] else "each worker has all of them"
    limit = f"{data['train_limit']:,}" if data["train_limit"] else "all"
    return side_by_side(
        {
            "network": (f"{run['model']['name']}, {run['precision']}", "bert_large, fp32"),
            "training examples": (f"{limit}; {half}", "all; each worker has all of them"),
            "reported examples": (f"at most {data['valid_limit']:,}" if data["valid_limit"] else "all", "all"),
            "epochs": (
                f"{regime['epochs']} of a worker's half" if regime["shard"] else str(regime["epochs"]),
                "3.5 of all: as many steps as 7 of a half",
            ),
            "steps between merges": (
                ", ".join(dict.fromkeys(str(cell.sync) for cell in section.study.cells)),
                "10, 30, 100",
            ),
            "merge": (f"{regime['merge']}, {regime['masks']} masks", "sum, disjoint masks"),
            "a new mask": (f"every {regime['refresh_every']} merges", "every 10 merges"),
            "examples that FISH scores": (str(run["method"]["samples"]), "256"),
            "classifier": ("mean of the workers", "sum of their changes"),
            "rate chosen on": (
                "not chosen: the authors'" if section.chosen is None else chosen_on(section, "examples"),
                "5e-05 (dense 1e-05), for every task",
            ),
            "seeds": (str(len(section.study.seeds)), "5"),
        }
    )


def _rates(section: Section[Cell]) -> list[str]:
    """Say which learning rates were tried and which taken."""
    if section.chosen is None:
        return [
            "Learning rates are those of the authors' scripts: 5e-05 for FISH and random, 1e-05 for dense training."
        ]
    return rates_tried(
        section,
        score=f"Score on {chosen_on(section, 'examples')}",
        columns=lambda cell: {"task": cell.task, "method": cell.method, "merge every": f"{cell.sync} steps"},
        name=lambda cell: f"{METHOD_NAMES[cell.method]} on {cell.task}",
        shared="Every interval takes the rate of its method and task here.",
    )
