"""The report: README.md and its pictures, made from the results."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from experiments.lib.differences import differences, pairs_of
from experiments.lib.distributed import ABOUT_BYTES, bytes_sent, dense_runs, findings, score_table
from experiments.lib.learning_rates import chosen_on, rates_tried
from experiments.lib.plot import Line, draw_score_against_bytes
from experiments.lib.report import METHOD_NAMES, about_logs, section_name, side_by_side, signs, write_readme
from experiments.lib.results import Section
from experiments.lib.settings import agrees
from experiments.table3.cells import METHODS, Cell
from experiments.table3.profiles import LOGS
from fishexp.report.group import Group, settings_of
from fishexp.report.style import save

_INTRO = f"""# Table 3: workers that merge rarely, on CIFAR-10

Made by `python -m experiments table3` from [records.jsonl](records.jsonl). Two workers train a ResNet from scratch
while only `keep` of its weights may move, and every so many steps they merge what has moved.

```bash
make table3 PROFILE=cpu DRY=1    # how many runs and hours; runs nothing
make table3 PROFILE=cpu          # or gpu, paper; the same command goes on after an interruption
```

Scores are accuracies in %, means ± sample standard deviations over seeds, of the merged model after the last epoch.
{ABOUT_BYTES} Where weights outside the mask decay, all of them are sent."""
# name of a study -> what it is, in a heading
_TITLES = {"": "", "june": "the setting of the authors' logs", "original": "as the original code does it"}


def write_report(folder: Path, sections: Sequence[Section[Cell]]) -> None:
    """Write README.md and a picture for each study that has results; nothing where none has."""
    write_readme(folder, _INTRO, sections, _parts)


def _parts(section: Section[Cell], folder: Path) -> list[str]:
    """Return the paragraphs, tables and headings of a section; write its picture."""
    title = ": ".join(filter(None, [f"## Profile {section.profile}", _TITLES[section.study.name]]))
    parts = [title, section.study.about, _settings(section)]
    if fig := draw(section):
        picture = f"{section_name(section)}.png"
        save(fig, folder / picture)
        parts.append(f"![Accuracy against bytes sent]({picture})")
    dense = dense_runs(section.results, lambda cell: Cell("full", 1.0, cell.sync))
    pairs = pairs_of(section.results, lambda cell: replace(cell, method="random") if cell.method == "fish" else None)
    parts += [*_tables(section, dense), findings(section, pairs.values(), dense)]
    parts += signs(section.results)
    compared = differences(pairs, section.predicted, name="random", columns=_columns)
    return [*parts, *([about_logs(LOGS)] if _logs(section) else []), *compared, *_rates(section)]


def draw(section: Section[Cell]) -> Figure | None:
    """Draw accuracy against bytes sent: for each method and interval a line over keep, for dense over intervals."""
    syncs = list(dict.fromkeys(cell.sync for cell in section.study.cells))
    groups: dict[tuple[str, int], list[Group]] = {}
    for result in section.results:
        if result.group and result.group.mean is not None:
            sync = 0 if result.cell.method == "full" else syncs.index(result.cell.sync)
            groups.setdefault((result.cell.method, sync), []).append(result.group)
    lines = [
        Line(method, "" if method == "full" else f"a merge every {syncs[sync]} steps", sync, joined)
        for (method, sync), joined in sorted(groups.items(), key=lambda item: list(METHOD_NAMES).index(item[0][0]))
    ]
    title = [f"{section.in_table['regime']['workers']} workers"]
    return draw_score_against_bytes(lines, bytes_sent, "sent by one worker", title)


def _tables(section: Section[Cell], dense: Mapping[Cell, Group | None]) -> list[str]:
    """Make the table with a row for each interval and keep, and that of dense training with a row for each interval."""
    results = {result.cell: result for result in section.results}
    syncs = dict.fromkeys(cell.sync for cell in results)
    keeps = sorted({cell.keep for cell in results if cell.method != "full"})
    masked = [
        (
            {"merge every": f"{sync} steps", "keep": f"{keep:g}"},
            {method: results[Cell(method, keep, sync)] for method in METHODS},
        )
        for sync in syncs
        for keep in keeps
    ]
    without = [({"merge every": f"{sync} steps"}, {"full": results[Cell("full", 1.0, sync)]}) for sync in syncs]
    return [score_table(rows, ("merge every",), dense, _logs(section)) for rows in (masked, without)]


def _columns(cell: Cell) -> dict[str, str]:
    return {"method": cell.method, "keep": f"{cell.keep:g}", "merge every": f"{cell.sync} steps"}


def _logs(section: Section[Cell]) -> dict[Cell, float]:
    """Return cell -> its accuracy in the authors' logs; empty where the setting is not theirs."""
    if not agrees(LOGS["settings"], settings_of({"config": section.in_table})):
        return {}
    return {Cell(run["method"], run["keep"], min(run["merge_steps"], 98)): run["accuracy"] for run in LOGS["runs"]}


def _settings(section: Section[Cell]) -> str:
    """Make the table of what was run beside the original."""
    run, regime = section.in_table, section.in_table["regime"]
    june = section.study.name == "june"
    return side_by_side(
        {
            "network": (f"{run['model']['name']}, {run['precision']}", "resnet9, fp16" if june else "resnet34, fp32"),
            "training images": (f"{run['data']['train_limit'] or 50_000:,}", "50,000"),
            "test images": (f"{run['data']['valid_limit'] or 10_000:,}", "10,000"),
            "batch of a worker": (str(regime["batch_size"]), "512"),
            "epochs": (str(regime["epochs"]), "50"),
            "the rate rises for": (f"{regime['warmup']:g} epochs", "5 epochs"),
            "steps between merges": (
                ", ".join(dict.fromkeys(str(cell.sync) for cell in section.study.cells)),
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
            "rate chosen on": (chosen_on(section, "images"), "the test images, as far as their code shows"),
            "seeds": (str(len(section.study.seeds)), "1" if june else "5"),
        }
    )


def _rates(section: Section[Cell]) -> list[str]:
    """Say which learning rates were tried and which taken."""
    if section.chosen is None:
        return [
            "Learning rates are the best of the authors' logs for the same method, keep and interval, in proportion to "
            "the batch: nobody tuned others."
        ]
    others = any(result.source != result.cell for result in section.results)
    return rates_tried(
        section,
        score=f"Accuracy in % on {chosen_on(section, 'images')}",
        columns=_columns,
        name=lambda cell: f"{METHOD_NAMES[cell.method]} at {cell.keep:g}, {cell.sync} steps",
        shared="Every cell takes the rate of its method here." if others else "",
    )
