"""Made-up records of an experiment's runs, and what its report says of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.lib.settings import Settings
from experiments.lib.study import C, Study

_GROUPS = ("data", "model", "method", "regime")


def line(
    settings: Settings,
    score: float | None,
    *,
    seed: int = 0,
    status: str = "finished",
    metrics: Mapping[str, float | None] | None = None,
    streams: int = 2,
    **sizes: int,
) -> dict[str, Any]:
    """Make up the record of a run with ``settings``; its run_id stands for its settings.

    Args:
        score: Its accuracy, the headline metric unless there are ``metrics``.
        streams: Version of its random streams.
        sizes: Entries of its bytes.
    """
    config: dict[str, Any] = {group: {} for group in _GROUPS} | {"keep": None, "seed": seed}
    config["data"]["holdout"] = 0
    for key, value in settings.items():
        group, _, last = key.partition(".")
        if group in _GROUPS:
            config[group][last or "name"] = value
        elif key != "seed":
            config[key] = value
    metric = "accuracy_holdout" if config["data"]["holdout"] else "accuracy"
    return {
        "run_id": json.dumps([config, streams], sort_keys=True),
        "config": config,
        "status": status,
        "kept": 100,
        "total": 1000,
        "metrics": (metrics or {metric: score}) if status == "finished" else {},
        "seconds": {"train": 1800.0},
        "bytes": {"delta": 10**6, "dense": 44_734_408} | sizes,
        "commit": "0123456789ab",
        "streams": streams,
    }


def chosen(study: Study[C], cell: C, scores: Mapping[float, float | None], **more: Any) -> list[dict[str, Any]]:
    """Make up held-out runs of ``cell``: learning rate -> accuracy."""
    settings = {lr: study.settings(cell, study.choose or {}, {"regime.lr": lr}) for lr in scores}
    return [line(settings[lr], score, **more) for lr, score in scores.items()]


def reported(study: Study[C], cell: C, lr: float, scores: Sequence[float], **more: Any) -> list[dict[str, Any]]:
    """Make up runs of the table, one for each seed."""
    settings = study.settings(cell, study.report, {"regime.lr": lr})
    return [line(settings, score, seed=seed, **more) for seed, score in enumerate(scores)]


def write_records(folder: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    """Write these records to a file."""
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "records.jsonl"


def rows(text: str, title: str) -> list[list[str]]:
    """Return the cells of the first table after ``title``."""
    return _cells(_tables(text.partition(title)[2])[0])


def figures(text: str, title: str, index: int = 0) -> list[list[str]]:
    """Return the cells of a table of scores below ``title``; the first is the one behind the table of settings."""
    tables = _tables(text.partition(title)[2].partition("| seeds ")[2].partition("\n")[2])
    return _cells(tables[index])


def _tables(text: str) -> list[str]:
    return [part.strip() for part in text.split("\n\n") if part.strip().startswith("|")]


def _cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines()]


def words(text: str) -> set[str]:
    """Return the words of ``text`` without their order."""
    return set(text.split())
