"""Records to README.md and its pictures."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from experiments import merges, picture, rates
from experiments.merges import BYTES, sent
from experiments.picture import Line
from experiments.study import Result, Section
from experiments.table2.cells import LOGS, METHODS, Cell
from experiments.wording import MISSING, NAMES, agrees, side_by_side, uncommitted
from fishexp.report.group import Group
from fishexp.report.plot import save
from fishexp.report.table import aligned

_INTRO = f"""# Table 2: workers that merge rarely, on GLUE

Made by [table2.py](table2.py) from [records.jsonl](records.jsonl). Two workers fine-tune a BERT while only 0.5 % of its
weights may move on each, and every so many steps they merge what has moved.

```bash
make table2 PROFILE=cpu DRY=1    # how many runs and hours; runs nothing
make table2 PROFILE=cpu          # or gpu, paper; the same command goes on after an interruption
```

Scores are means ± sample standard deviations over seeds, of the merged model after the last epoch, on the development
set. {BYTES}"""
_SECOND = {"mrpc": "f1", "qqp": "f1", "stsb": "spearman"}  # task -> its other metric


def write(home: Path, sections: Sequence[Section[Cell]]) -> None:
    """README.md and a picture for each task that has results; nothing where none has."""
    shown = [one for one in sections if any(result.group or result.tried for result in one.results)]
    parts = [_INTRO]
    for one in shown:
        name = "-".join(filter(None, [one.profile, one.study.name]))
        parts += [f"## Profile {' '.join([one.profile, one.study.name]).strip()}", one.study.about, _settings(one)]
        for task in tasks(one):
            if fig := draw(one, task):
                save(fig, home / f"{name}-{task}.png")
                parts.append(f"![{task}: score against bytes sent]({name}-{task}.png)")
        parts += [_table(one), *_second(one), _findings(one), *uncommitted(one.results), *_logs_said(one), *_rates(one)]
    if shown:
        (home / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def tasks(one: Section[Cell]) -> list[str]:
    """In the order of the table."""
    return list(dict.fromkeys(cell.task for cell in one.study.cells))


def draw(one: Section[Cell], task: str) -> Figure | None:
    """The score against bytes sent: a line over the intervals for each method."""
    found: dict[str, list[Group]] = {}
    for result in one.results:
        if result.cell.task == task and result.group and result.group.mean is not None:
            found.setdefault(result.cell.method, []).append(result.group)
    lines = [Line(method, "", 0, groups) for method, groups in found.items()]
    return picture.draw(lines, sent, "sent by one worker", [f"{one.in_table['regime']['workers']} workers"])


def _rows(one: Section[Cell]) -> dict[tuple[str, int], dict[str, Result[Cell]]]:
    """(task, interval) -> method -> its cell."""
    rows: dict[tuple[str, int], dict[str, Result[Cell]]] = {}
    for result in one.results:
        rows.setdefault((result.cell.task, result.cell.sync), {})[result.cell.method] = result
    return rows


def _table(one: Section[Cell]) -> str:
    """A row for each task and interval."""
    rows = []
    for (task, sync), results in _rows(one).items():
        header = next((result.group.header for result in results.values() if result.group), "")
        rows.append(({"task": task, "score": header, "merge every": f"{sync} steps"}, results))
    return merges.table(rows, ("task", "score", "merge every"), _logs(one))


def _second(one: Section[Cell]) -> list[str]:
    """The other metric of the tasks that have two."""
    rows = {key: results for key, results in _rows(one).items() if key[0] in _SECOND}
    if not any(result.group for results in rows.values() for result in results.values()):
        return []
    columns = {
        "task": [task for task, _ in rows],
        "score": [f"{_SECOND[task]}, x100" for task, _ in rows],
        "merge every": [f"{sync} steps" for _, sync in rows],
    }
    for method in METHODS:
        columns[NAMES[method]] = [_other(results[method], _SECOND[task]) for (task, _), results in rows.items()]
    return [aligned(columns, left=("task", "score", "merge every"))]


def _other(result: Result[Cell], metric: str) -> str:
    """The mean of ``metric``, times 100."""
    if result.group is None:
        return MISSING
    values = [run["metrics"][metric] for run in result.group.runs]
    return "undefined" if None in values else f"{100 * mean(values):.1f}"


def _findings(one: Section[Cell]) -> str:
    return merges.findings(one, lambda cell: (cell.task, cell.sync))


def _logs(one: Section[Cell]) -> dict[Cell, float]:
    """The authors' logs; empty where the setting is not theirs."""
    if not agrees(LOGS["settings"], one.in_table):
        return {}
    return {Cell(run["method"], run["task"], run["merge_steps"]): run["score"] for run in LOGS["runs"]}


def _logs_said(one: Section[Cell]) -> list[str]:
    if _logs(one):
        return [f"Their logs: {LOGS['what']} They are in [authors_logs.json](authors_logs.json)."]
    return []


def _settings(one: Section[Cell]) -> str:
    """What was run, beside the original."""
    run, data, regime = one.in_table, one.in_table["data"], one.in_table["regime"]
    half = "each worker has its half of them" if regime["shard"] else "each worker has all of them"
    return side_by_side(
        {
            "network": (f"{run['model']['name']}, {run['precision']}", "bert_large, fp32"),
            "training examples": (f"{data['train_limit'] or 'all'}; {half}", "all; each worker has all of them"),
            "reported examples": (f"at most {data['valid_limit']:,}" if data["valid_limit"] else "all", "all"),
            "epochs": (
                f"{regime['epochs']} of a worker's half" if regime["shard"] else str(regime["epochs"]),
                "3.5 of all: as many steps as 7 of a half",
            ),
            "steps between merges": (
                ", ".join(dict.fromkeys(str(cell.sync) for cell in one.study.cells)),
                "10, 30, 100",
            ),
            "merge": (f"{regime['merge']}, {regime['masks']} masks", "sum, disjoint masks"),
            "a new mask": (f"every {regime['refresh_every']} merges", "every 10 merges"),
            "examples that FISH scores": (str(run["method"]["samples"]), "256"),
            "classifier": ("mean of the workers", "sum of their changes"),
            "rate chosen on": (
                "not chosen: the authors'" if one.chosen is None else rates.chosen_on(one, "examples"),
                "5e-05 (dense 1e-05), for every task",
            ),
            "seeds": (str(len(one.study.seeds)), "5"),
        }
    )


def _rates(one: Section[Cell]) -> list[str]:
    """The learning rates tried and the one taken."""
    if one.chosen is None:
        return [
            "Learning rates are those of the authors' scripts: 5e-05 for FISH and random, 1e-05 for dense training."
        ]
    return rates.paragraphs(
        one,
        score=f"Score on {rates.chosen_on(one, 'examples')}",
        columns=lambda cell: {"task": cell.task, "method": cell.method, "merge every": f"{cell.sync} steps"},
        name=lambda cell: f"{NAMES[cell.method]} on {cell.task}",
        shared="Every interval takes the rate of its method and task here.",
    )
