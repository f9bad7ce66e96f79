"""Records to README.md and its pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from experiments import rates
from experiments.study import Result, Section
from experiments.table4 import picture
from experiments.table4.cells import LOGS, Cell
from experiments.table4.findings import SCHEDULES, brief, findings, sizes
from experiments.wording import MISSING, NAMES, agrees, rate, score, sentence, side_by_side, uncommitted
from fishexp.report.plot import save
from fishexp.report.table import aligned

Logs: TypeAlias = Mapping[tuple[str, float, str], float]  # (method, keep, schedule) -> accuracy

_INTRO = """# Table 4: every epoch kept as a checkpoint

Made by [table4.py](table4.py) from [records.jsonl](records.jsonl). A ResNet is trained from scratch on CIFAR-10 while
only `keep` of its weights may move: those of one fixed mask, or of a new mask every epoch. A checkpoint is what an
epoch changed.

```bash
make table4 PROFILE=cpu DRY=1    # how many runs, hours and gigabytes; runs nothing
make table4 PROFILE=cpu          # or gpu, paper; the same command goes on after an interruption
```

Accuracies are means ± sample standard deviations over seeds, after the last epoch. The bytes of a checkpoint are those
of its file, on average, moved BatchNorm statistics included; the model that training began with is stored once beside
them."""


def write(home: Path, sections: Sequence[Section[Cell]]) -> None:
    """README.md and a picture for each profile that has results; nothing where none has."""
    shown = [one for one in sections if any(result.group or result.tried for result in one.results)]
    parts = [_INTRO]
    for one in shown:
        parts += [f"## Profile {one.profile}", one.study.about, _settings(one)]
        if fig := picture.draw(one):
            save(fig, home / f"{one.profile}.png")
            parts.append(f"![Accuracy against bytes of a checkpoint]({one.profile}.png)")
        parts += [*_tables(one), *_rates(one)]
    if shown:
        (home / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _tables(one: Section[Cell]) -> list[str]:
    """One for each variant, and what it says."""
    parts, variants = [], _variants(one)
    for variant in variants:
        parts += [f"### {brief(variant)}"] if len(variants) > 1 else []
        results = [result for result in one.results if result.cell.variant == variant or result.cell.method == "full"]
        parts += [_table(results, _logs(one, variant)), " ".join(findings(results, len(one.study.seeds)))]
    parts += uncommitted(one.results)
    if any(_logs(one, variant) for variant in variants):
        return [*parts, f"Their logs: {LOGS['what']} They are in [authors_logs.json](authors_logs.json)."]
    return [
        *parts,
        "The runs of the [authors' logs](authors_logs.json) had other settings (ResNet-9, 100 epochs, batches of 512, "
        "every weight decays), so none of their figures stands here.",
    ]


def _variants(one: Section[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.variant for cell in one.study.cells))


def _logs(one: Section[Cell], variant: str) -> Logs:
    """The authors' logs; empty where a setting is not theirs."""
    if not agrees(LOGS["settings"], one.in_table | {"decay": variant.split()[0].removeprefix("decay=")}):
        return {}
    return {(line["method"], line["keep"], line["mask"]): line["accuracy"] for line in LOGS["runs"]}


def _settings(one: Section[Cell]) -> str:
    """What was run, beside the original."""
    run, regime = one.in_table, one.in_table["regime"]
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
        "weights outside the mask": ("; ".join(map(brief, _variants(one))), "decay all the same"),
        "rate chosen on": (rates.chosen_on(one, "images"), "the test images, as far as their code shows"),
        "seeds": (str(len(one.study.seeds)), "5 (in their logs 1)"),
    }
    return side_by_side(rows)


def _rates(one: Section[Cell]) -> list[str]:
    """The learning rates tried and the one taken."""
    if one.chosen is None:
        return [
            "Learning rates are the best of the authors' logs, which they found with every weight decaying: "
            f"nobody tuned the others. {_shared(one.results)}".rstrip()
        ]
    several = len(_variants(one)) > 1

    def columns(cell: Cell) -> dict[str, str]:
        found = {"method": cell.method, "keep": f"{cell.keep:g}"}
        found["mask"] = SCHEDULES[cell.schedule] if cell.method != "full" else ""
        return found | ({"weights outside the mask": brief(cell.variant)} if several else {})

    return rates.paragraphs(
        one,
        score=f"Accuracy in % on {rates.chosen_on(one, 'images')}",
        columns=columns,
        name=lambda cell: f"{NAMES[cell.method]}{f' at {cell.keep:g}' if cell.method != 'full' else ''}",
        shared=_shared(one.results),
    )


def _shared(results: Sequence[Result[Cell]]) -> str:
    """Which cells take the rate of others."""
    keeps = {result.cell.keep: result.source.keep for result in results if result.cell.keep != result.source.keep}
    texts = [f"keep {keep:g} takes the rate of {other:g}" for keep, other in keeps.items()]
    if any(result.cell.schedule != result.source.schedule for result in results):
        texts.append("every cell with a new mask every epoch takes that of the fixed mask")
    return sentence("; ".join(texts)) if texts else ""


def _table(results: Sequence[Result[Cell]], logs: Logs) -> str:
    """A row for each keep and schedule; dense training last."""
    columns: dict[str, list[str]] = {"keep": [], "mask": []}
    by_cell = {(result.cell.method, result.cell.keep, result.cell.schedule): result for result in results}
    rows = dict.fromkeys((keep, schedule) for method, keep, schedule in by_cell if method != "full")
    methods = [method for method in ("fish", "random") if any(key[0] == method for key in by_cell)]
    for keep, schedule in rows:
        columns["keep"].append(f"{keep:g}")
        columns["mask"].append("fixed" if schedule == "fixed" else "every epoch")
        for method in methods:
            _add(columns, method, by_cell[method, keep, schedule], logs)
    columns["keep"].append("1")
    columns["mask"].append("none: dense")
    for method in methods:
        _add(columns, method, by_cell["full", 1.0, "fixed"], logs)
    return aligned(columns, left=("mask",))


def _add(columns: dict[str, list[str]], method: str, result: Result[Cell], logs: Logs) -> None:
    """What is known of a cell, to the columns of ``method``."""
    cells = {
        "%": score(result),
        "lr": rate(result),
        "MB": MISSING,
        "of dense": MISSING,
    }
    if result.group:
        size, whole = sizes(result.group)
        cells |= {"MB": f"{size / 1e6:.2f}", "of dense": f"{size / whole:.2%}"}
    if logs:
        logged = logs.get((result.cell.method, result.cell.keep, result.cell.schedule))
        cells["% in their log"] = "–" if logged is None else f"{logged:.1f}"
    for header, cell in cells.items():
        columns.setdefault(f"{NAMES[method]}: {header}", []).append(cell)
