"""The report: README.md and its picture, made from the results."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TypeAlias

from scipy.stats import t

from experiments.lib.differences import differences
from experiments.lib.findings import sentence
from experiments.lib.learning_rates import chosen_on, rates_tried
from experiments.lib.report import (
    METHOD_NAMES,
    MISSING,
    about_logs,
    rate,
    score,
    section_name,
    side_by_side,
    signs,
    write_readme,
)
from experiments.lib.results import Result, Section
from experiments.lib.settings import agrees
from experiments.table4.cells import Cell, Variant
from experiments.table4.findings import SCHEDULE_NAMES, beside_fixed, beside_random, findings, sizes, variant_name
from experiments.table4.plot import draw
from experiments.table4.profiles import LOGS
from fishexp.report.differences import FEWEST_SEEDS
from fishexp.report.group import Group, settings_of
from fishexp.report.style import save
from fishexp.system.text_table import markdown_table

# (method, keep, schedule) -> accuracy
Logs: TypeAlias = Mapping[tuple[str, float, str], float]

_INTRO = """# Table 4: every epoch kept as a checkpoint

Made by `python -m experiments table4` from [records.jsonl](records.jsonl). A ResNet is trained from scratch on
CIFAR-10 while only `keep` of its weights may move: those of one fixed mask, or of a new mask every epoch. A checkpoint
is what an epoch changed.

```bash
make table4 PROFILE=cpu DRY=1    # how many runs, hours and gigabytes; runs nothing
make table4 PROFILE=cpu          # or gpu, paper; the same command goes on after an interruption
```

Accuracies are means ± sample standard deviations over seeds, after the last epoch. The bytes of a checkpoint are those
of its file, on average, moved BatchNorm statistics included; the model that training began with is stored once beside
them. Where every weight decays (`decay=all`), every weight moves, and a checkpoint is as large as the model."""

_SPREAD = (
    "*Inside*: their one run lies within the 95 % prediction interval of one more of ours; it takes three seeds to say "
    "so."
)


def write_report(folder: Path, sections: Sequence[Section[Cell]]) -> None:
    """Write README.md and a picture for each profile that has results; nothing where none has."""
    write_readme(folder, _INTRO, sections, _parts)


def _parts(section: Section[Cell], folder: Path) -> list[str]:
    """Return the paragraphs, tables and headings of a section; write its picture."""
    parts = [f"## Profile {section.profile}", section.study.about, _settings(section)]
    if fig := draw(section):
        picture = f"{section_name(section)}.png"
        save(fig, folder / picture)
        parts.append(f"![Accuracy against bytes of a checkpoint]({picture})")
    return [*parts, *_tables(section), *_compared(section), *_rates(section)]


def _compared(section: Section[Cell]) -> list[str]:
    """Make the tables of differences for each variant: of FISH to random, of a mask every epoch to a fixed one."""
    parts, variants = [], _variants(section)
    for variant in variants:
        results = [result for result in section.results if result.cell.variant == variant]
        about = f" ({variant_name(variant)})" if len(variants) > 1 else ""
        for name, pairs in (("random", beside_random(results)), (SCHEDULE_NAMES["fixed"], beside_fixed(results))):
            parts += differences(pairs, section.predicted, name=f"{name}{about}", columns=_cell_columns)
    return parts


def _cell_columns(cell: Cell) -> dict[str, str]:
    mask = SCHEDULE_NAMES[cell.schedule] if cell.method != "full" else ""
    return {"method": cell.method, "keep": f"{cell.keep:g}", "mask": mask}


def _tables(section: Section[Cell]) -> list[str]:
    """Make a table for each variant, and of dense training below the first; say what they show."""
    parts, variants = [], _variants(section)
    dense = [result for result in section.results if result.cell.method == "full"]
    for variant in variants:
        masked = [result for result in section.results if result.cell.variant == variant and result not in dense]
        parts += [f"### {variant_name(variant)}"] if len(variants) > 1 else []
        parts.append(_table(masked, _logs(section, variant.decay)))
        if variant == variants[0]:
            # with no weights outside the mask, dense training is in the setting of the logs whatever becomes of those
            parts.append(_dense_table(dense, _logs(section, LOGS["settings"]["decay"])))
        parts.append(" ".join(findings([*masked, *dense], len(section.study.seeds), section.predicted)))
    parts += signs(section.results)
    if any(_logs(section, variant.decay) for variant in variants):
        return [*parts, f"{about_logs(LOGS)} {_SPREAD}"]
    return [
        *parts,
        "The runs of the [authors' logs](authors_logs.json) had other settings (ResNet-9, 24 or 100 epochs, batches of "
        "512, every weight decays), so none of their figures stands here.",
    ]


def _variants(section: Section[Cell]) -> list[Variant]:
    return list(dict.fromkeys(cell.variant for cell in section.study.cells))


def _logs(section: Section[Cell], decay: str) -> Logs:
    """Return the authors' logs; empty where a setting is not theirs."""
    if not agrees(LOGS["settings"], settings_of({"config": section.in_table}) | {"decay": decay}):
        return {}
    epochs = section.in_table["regime"]["epochs"]
    return {(r["method"], r["keep"], r["mask"]): r["accuracy"] for r in LOGS["runs"] if r["epochs"] == epochs}


def _settings(section: Section[Cell]) -> str:
    """Make the table of what was run beside the original."""
    run, regime = section.in_table, section.in_table["regime"]
    rows = {
        "network": (f"{run['model']['name']}, {run['precision']}", "resnet34, fp32 (in their logs resnet9, fp16)"),
        "training images": (f"{run['data']['train_limit'] or 50_000:,}", "50,000"),
        "test images": (f"{run['data']['valid_limit'] or 10_000:,}", "10,000"),
        "batch": (str(regime["batch_size"]), "512"),
        "epochs": (str(regime["epochs"]), "100"),
        "the rate rises for": (
            f"{regime['warmup']:g} epochs ({regime['warmup'] / regime['epochs']:.0%})",
            "5 epochs (5%)",
        ),
        "images that FISH scores": (f"{run['method']['samples']:,}", "1,024"),
        "weights outside the mask": ("; ".join(map(variant_name, _variants(section))), "decay all the same"),
        "rate chosen on": (chosen_on(section, "images"), "the test images, as far as their code shows"),
        "seeds": (str(len(section.study.seeds)), "5 (in their logs 1)"),
    }
    return side_by_side(rows)


def _rates(section: Section[Cell]) -> list[str]:
    """Say which learning rates were tried and which taken."""
    if section.chosen is None:
        others = any(variant.decay != "all" for variant in _variants(section))
        untuned = ", which they found with every weight decaying: nobody tuned the others" if others else ""
        return [f"Learning rates are the best of the authors' logs{untuned}. {_shared(section.results)}".rstrip()]
    several = len(_variants(section)) > 1

    def columns(cell: Cell) -> dict[str, str]:
        return _cell_columns(cell) | ({"weights outside the mask": variant_name(cell.variant)} if several else {})

    return rates_tried(
        section,
        score=f"Accuracy in % on {chosen_on(section, 'images')}",
        columns=columns,
        name=lambda cell: f"{METHOD_NAMES[cell.method]}{f' at {cell.keep:g}' if cell.method != 'full' else ''}",
        shared=_shared(section.results),
    )


def _shared(results: Sequence[Result[Cell]]) -> str:
    """Say which cells take the rate of others; empty if none does."""
    keeps = {result.cell.keep: result.source.keep for result in results if result.cell.keep != result.source.keep}
    texts = [f"keep {keep:g} takes the rate of {other:g}" for keep, other in keeps.items()]
    if any(result.cell.schedule != result.source.schedule for result in results):
        texts.append("every cell with a new mask every epoch takes that of the fixed mask")
    return sentence("; ".join(texts)) if texts else ""


def _table(results: Sequence[Result[Cell]], logs: Logs) -> str:
    """Make the table with a row for each keep and schedule, and the methods side by side."""
    by_cell = {(result.cell.method, result.cell.keep, result.cell.schedule): result for result in results}
    rows = dict.fromkeys((keep, schedule) for _, keep, schedule in by_cell)
    columns = {
        "keep": [f"{keep:g}" for keep, _ in rows],
        "mask": ["fixed" if schedule == "fixed" else "every epoch" for _, schedule in rows],
    }
    for method in dict.fromkeys(method for method, _, _ in by_cell):
        columns |= _columns(method, [by_cell[method, keep, schedule] for keep, schedule in rows], logs)
    return markdown_table(columns, left=("mask",))


def _dense_table(results: Sequence[Result[Cell]], logs: Logs) -> str:
    """Make the table of dense training, whose single cell has no mask."""
    return markdown_table(_columns("full", results, logs), left=())


def _beside(group: Group, logged: float) -> str:
    """Return the difference of our mean to their one run, in percent, and whether theirs could be one of ours.

    It could if it lies in the 95 % prediction interval for one more run: t with n - 1 degrees, from n = 3.
    """
    scores = [100 * run["metrics"]["accuracy"] for run in group.runs]
    text = f"{mean(scores) - logged:+.1f}"
    if len(scores) < FEWEST_SEEDS:
        return text
    half = t.ppf(0.975, len(scores) - 1) * stdev(scores) * math.sqrt(1 + 1 / len(scores))
    return f"{text}, {'inside' if abs(mean(scores) - logged) <= half else 'outside'}"


def _columns(method: str, results: Sequence[Result[Cell]], logs: Logs) -> dict[str, list[str]]:
    """Return header -> entries of the results of ``method``."""
    columns: dict[str, list[str]] = {}
    for result in results:
        entries = {"%": score(result), "lr": rate(result), "MB": MISSING, "of dense": MISSING}
        if result.group:
            size, whole = sizes(result.group)
            entries |= {"MB": f"{size / 1e6:.2f}", "of dense": f"{size / whole:.2%}"}
        if logs:
            logged = logs.get((result.cell.method, result.cell.keep, result.cell.schedule))
            entries["% in their log"] = "–" if logged is None else f"{logged:.1f}"
            entries["ours less theirs"] = "–" if logged is None or not result.group else _beside(result.group, logged)
        for header, entry in entries.items():
            columns.setdefault(f"{METHOD_NAMES[method]}: {header}", []).append(entry)
    return columns
