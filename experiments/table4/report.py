"""Records to README.md and its pictures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from experiments.table4 import picture, rates
from experiments.table4.cells import Result, Section
from experiments.table4.findings import MISSING, NAMES, brief, findings, sizes
from fishexp.report.plot import save
from fishexp.report.table import aligned

Logs: TypeAlias = Mapping[tuple[str, float, str], float]  # (method, keep, schedule) -> accuracy

LOGS = json.loads((Path(__file__).parent / "authors_logs.json").read_text())
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


def write(home: Path, sections: Iterable[Section]) -> None:
    """README.md and a picture for each profile that has results; nothing where none has."""
    shown = [one for one in sections if any(result.group or result.tried for result in one.results)]
    parts = [_INTRO]
    for one in shown:
        parts += [f"## Profile {one.name}", one.profile.about, _settings(one)]
        if fig := picture.draw(one):
            save(fig, home / f"{one.name}.png")
            parts.append(f"![Accuracy against bytes of a checkpoint]({one.name}.png)")
        parts += [*_tables(one), *rates.paragraphs(one)]
    if shown:
        (home / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _tables(one: Section) -> list[str]:
    """One for each variant, and what it says."""
    parts = []
    several = len(one.profile.variants) > 1
    for variant in one.profile.variants:
        parts += [f"### {brief(variant)}"] if several else []
        results = [result for result in one.results if result.cell.variant == variant or result.cell.method == "full"]
        parts += [_table(results, _logs(one, variant)), " ".join(findings(results, len(one.profile.seeds)))]
    dirty = [run_id for result in one.results if result.group for run_id in result.group.uncommitted]
    parts += [f"† with uncommitted code: {', '.join(dirty)}"] if dirty else []
    if any(_logs(one, variant) for variant in one.profile.variants):
        return [*parts, f"Their logs: {LOGS['what']} They are in [authors_logs.json](authors_logs.json)."]
    return [
        *parts,
        "The runs of the [authors' logs](authors_logs.json) had other settings (ResNet-9, 100 epochs, batches of 512, "
        "every weight decays), so none of their figures stands here.",
    ]


def _logs(one: Section, variant: str) -> Logs:
    """The authors' logs; empty where a setting is not theirs."""
    run = one.in_table
    told = {"data.name": run["data"]["name"], "model.name": run["model"]["name"]}
    told |= {f"regime.{key}": run["regime"][key] for key in ("epochs", "batch_size")}
    told["decay"] = variant.split()[0].removeprefix("decay=")
    if told != LOGS["settings"]:
        return {}
    return {(line["method"], line["keep"], line["mask"]): line["accuracy"] for line in LOGS["runs"]}


def _settings(one: Section) -> str:
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
        "weights outside the mask": ("; ".join(map(brief, one.profile.variants)), "decay all the same"),
        "rate chosen on": (rates.chosen_on(one), "the test images, as far as their code shows"),
        "seeds": (str(len(one.profile.seeds)), "5 (in their logs 1)"),
    }
    columns = {"": list(rows), "here": [ours for ours, _ in rows.values()]}
    columns["the original"] = [theirs for _, theirs in rows.values()]
    return aligned(columns, left=columns)


def _table(results: Sequence[Result], logs: Logs) -> str:
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


def _add(columns: dict[str, list[str]], method: str, result: Result, logs: Logs) -> None:
    """What is known of a cell, to the columns of ``method``."""
    cells = {
        "%": score(result),
        "lr": MISSING if result.lr is None else f"{result.lr:g}",
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


def score(result: Result) -> str:
    """``57.1 ± 0.4 (5 seeds)``; says where runs are missing or failed."""
    failed = [f"{result.failed} failed"] if result.failed else []
    if result.group is None:
        return ", ".join([MISSING, *failed])
    seeds = len(result.group.runs)
    counts = ", ".join(["one seed" if seeds == 1 else f"{seeds} seeds", *failed])
    return f"{result.group.score}{' †' if result.group.uncommitted else ''} ({counts})"
