"""Records to README.md and its pictures."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments import merges, picture, rates
from experiments.merges import BYTES, sent
from experiments.picture import Line
from experiments.study import Section
from experiments.table3.cells import METHODS, Cell
from experiments.table3.profiles import LOGS
from experiments.wording import NAMES, agrees, side_by_side, uncommitted
from fishexp.report.group import Group
from fishexp.report.plot import save

_INTRO = f"""# Table 3: workers that merge rarely, on CIFAR-10

Made by [table3.py](table3.py) from [records.jsonl](records.jsonl). Two workers train a ResNet from scratch while only
`keep` of its weights may move, and every so many steps they merge what has moved.

```bash
make table3 PROFILE=cpu DRY=1    # how many runs and hours; runs nothing
make table3 PROFILE=cpu          # or gpu, paper; the same command goes on after an interruption
```

Scores are accuracies in %, means ± sample standard deviations over seeds, of the merged model after the last epoch.
{BYTES}"""
_TITLES = {"": "", "june": "the setting of the authors' logs", "original": "as the original code does it"}


def write(home: Path, sections: Sequence[Section[Cell]]) -> None:
    """README.md and a picture for each study that has results; nothing where none has."""
    shown = [one for one in sections if any(result.group or result.tried for result in one.results)]
    parts = [_INTRO]
    for one in shown:
        title = f"Profile {one.profile}" + (f": {_TITLES[one.study.name]}" if one.study.name else "")
        parts += [f"## {title}", one.study.about, _settings(one)]
        if fig := draw(one):
            name = "-".join(filter(None, [one.profile, one.study.name]))
            save(fig, home / f"{name}.png")
            parts.append(f"![Accuracy against bytes sent]({name}.png)")
        parts += [_table(one), _findings(one), *uncommitted(one.results), *_logs_said(one), *_rates(one)]
    if shown:
        (home / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def draw(one: Section[Cell]) -> Figure | None:
    """Accuracy against bytes sent: a line over keep for each method and interval, one over intervals for dense."""
    syncs = list(dict.fromkeys(cell.sync for cell in one.study.cells))
    found: dict[tuple[str, int], list[Group]] = {}
    for result in one.results:
        if result.group and result.group.mean is not None:
            sync = 0 if result.cell.method == "full" else syncs.index(result.cell.sync)
            found.setdefault((result.cell.method, sync), []).append(result.group)
    lines = [
        Line(method, "" if method == "full" else f"a merge every {syncs[sync]} steps", sync, groups)
        for (method, sync), groups in sorted(found.items(), key=lambda item: list(NAMES).index(item[0][0]))
    ]
    return picture.draw(lines, sent, "sent by one worker", [f"{one.in_table['regime']['workers']} workers"])


def _table(one: Section[Cell]) -> str:
    """A row for each interval and keep; of each interval dense training last."""
    by_cell = {result.cell: result for result in one.results}
    rows: list[tuple[dict[str, str], merges.Columns]] = []
    for sync in dict.fromkeys(cell.sync for cell in by_cell):
        keeps = sorted({cell.keep for cell in by_cell})
        for keep in keeps:
            words = {"merge every": f"{sync} steps", "keep": "1: dense" if keep == 1 else f"{keep:g}"}
            method = {name: "full" if keep == 1 else name for name in METHODS}
            rows.append((words, {name: by_cell[Cell(method[name], keep, sync)] for name in METHODS}))
    return merges.table(rows, ("merge every",), _logs(one))


def _findings(one: Section[Cell]) -> str:
    return merges.findings(one, lambda cell: (cell.keep, cell.sync))


def _logs(one: Section[Cell]) -> dict[Cell, float]:
    """The authors' logs; empty where the setting is not theirs."""
    if not agrees(LOGS["settings"], one.in_table):
        return {}
    return {Cell(run["method"], run["keep"], min(run["merge_steps"], 98)): run["accuracy"] for run in LOGS["runs"]}


def _logs_said(one: Section[Cell]) -> list[str]:
    if _logs(one):
        return [f"Their logs: {LOGS['what']} They are in [authors_logs.json](authors_logs.json)."]
    return []


def _settings(one: Section[Cell]) -> str:
    """What was run, beside the original."""
    run, regime = one.in_table, one.in_table["regime"]
    june = one.study.name == "june"
    return side_by_side(
        {
            "network": (f"{run['model']['name']}, {run['precision']}", "resnet9, fp16" if june else "resnet34, fp32"),
            "training images": (f"{run['data']['train_limit'] or 50_000:,}", "50,000"),
            "test images": (f"{run['data']['valid_limit'] or 10_000:,}", "10,000"),
            "batch of a worker": (str(regime["batch_size"]), "512"),
            "epochs": (str(regime["epochs"]), "50"),
            "the rate rises for": (f"{regime['warmup']:g} epochs", "5 epochs"),
            "steps between merges": (
                ", ".join(dict.fromkeys(str(cell.sync) for cell in one.study.cells)),
                "10, 30 and 100 within an epoch, and at its end" if june else "100, 500, 2500",
            ),
            "merge": (
                f"{regime['merge']}, {regime['masks']} masks",
                "sum, disjoint masks" if june else "mean, same masks (random: disjoint)",
            ),
            "a new mask": (f"every {regime['refresh_every']} merges", "every 10 merges"),
            "epochs before the first mask": (str(regime["warmup_epochs"]), "0" if june else "5"),
            "images that FISH scores": (str(run["method"]["samples"]), "256"),
            "weights outside the mask": ("stay" if run["decay"] == "kept" else "decay", "decay"),
            "rate chosen on": (rates.chosen_on(one, "images"), "the test images, as far as their code shows"),
            "seeds": (str(len(one.study.seeds)), "1" if june else "5"),
        }
    )


def _rates(one: Section[Cell]) -> list[str]:
    """The learning rates tried and the one taken."""
    if one.chosen is None:
        return [
            "Learning rates are the best of the authors' logs for the same method, keep and interval, in proportion to "
            "the batch: nobody tuned others."
        ]
    return rates.paragraphs(
        one,
        score=f"Accuracy in % on {rates.chosen_on(one, 'images')}",
        columns=lambda cell: {"method": cell.method, "keep": f"{cell.keep:g}", "merge every": f"{cell.sync} steps"},
        name=lambda cell: f"{NAMES[cell.method]} at {cell.keep:g}, {cell.sync} steps",
        shared=_shared(one),
    )


def _shared(one: Section[Cell]) -> str:
    """Which cells take the rate of others."""
    others = [result for result in one.results if result.source != result.cell]
    return "Every cell takes the rate of its method here." if others else ""
