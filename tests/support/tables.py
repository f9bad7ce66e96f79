"""Made-up records of a table's runs, and what a report says of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.study import C, Study


def line(
    told: Sequence[str],
    score: float | None,
    *,
    seed: int = 0,
    status: str = "finished",
    metrics: Mapping[str, float | None] | None = None,
    **sizes: int,
) -> dict[str, Any]:
    """A record of a run that was told ``told``; its run_id stands for its settings.

    Args:
        score: Its accuracy, the headline metric unless there are ``metrics``.
        sizes: Entries of its bytes.
    """
    groups: dict[str, Any] = {key: {} for key in ("data", "model", "method", "regime")} | {"keep": None, "seed": seed}
    groups["data"]["holdout"] = 0
    for word in told:
        key, _, text = word.partition("=")
        group, _, last = key.partition(".")
        value = _value(text)
        if group in ("data", "model", "method", "regime"):
            groups[group][last or "name"] = value
        elif key != "seed":
            groups[key] = value
    metric = "accuracy_holdout" if groups["data"]["holdout"] else "accuracy"
    return {
        "run_id": json.dumps(groups, sort_keys=True),
        "config": groups,
        "status": status,
        "kept": 100,
        "total": 1000,
        "metrics": (metrics or {metric: score}) if status == "finished" else {},
        "seconds": {"train": 1800.0},
        "bytes": {"delta": 10**6, "dense": 44_734_408} | sizes,
        "commit": "0123456789ab",
    }


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def chosen(study: Study[C], cell: C, scores: Mapping[float, float | None], **more: Any) -> list[dict[str, Any]]:
    """Held-out runs of ``cell``: learning rate -> accuracy."""
    choose = study.choose or ""
    told = {lr: study.overrides(cell, choose, f"regime.lr={lr:g}") for lr in scores}
    return [line(told[lr], score, **more) for lr, score in scores.items()]


def reported(study: Study[C], cell: C, lr: float, scores: Sequence[float], **more: Any) -> list[dict[str, Any]]:
    """Runs of the table, one for each seed."""
    told = study.overrides(cell, study.report, f"regime.lr={lr:g}")
    return [line(told, score, seed=seed, **more) for seed, score in enumerate(scores)]


def noted(folder: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    """A file of these records."""
    (folder / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder / "records.jsonl"


def rows(text: str, title: str) -> list[list[str]]:
    """The first table after ``title``."""
    table = next(part for part in text.partition(title)[2].split("\n\n") if part.strip().startswith("|")).strip()
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines()]


def words(text: str) -> set[str]:
    """``text`` without its order."""
    return set(text.split())
