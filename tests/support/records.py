"""Made-up records of runs, and the cells of a table that is made of them."""

import copy
import json
import resource
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fishexp.report import table
from fishexp.report.pool import pool

FISH = {"name": "fish", "samples": 1024, "labels": "true_label"}
METHODS = {
    "fish": FISH,
    "bitfit": {"name": "bitfit", "ignores_keep": True},
    "full": {"name": "full", "ignores_keep": True},
}
CONFIG = {
    "model": {"name": "resnet10", "module": "resnet", "layers": 10},
    "data": {"name": "digits", "train_limit": None, "valid_limit": None, "holdout": 0},
    "regime": {"name": "transfer", "epochs": 10, "lr": 0.1, "optimiser": "sgd"},
    "precision": "fp32",
    "decay": "kept",
    "compat": "none",
}


def record(
    score: float | None = 0.8,
    *,
    seed=0,
    method="fish",
    keep=0.005,
    metric="accuracy",
    status="finished",
    streams: int | None = 2,
    more: Mapping[str, float | None] | None = None,
    **settings,
) -> dict[str, Any]:
    """Make up the record of a run, whose run_id stands for its settings; a dot in a setting's name is written __.

    Args:
        more: Metrics beside the headline.
        streams: Version of its random streams; None for a record from before there were versions.
    """
    run_id, commit = settings.pop("run_id", None), settings.pop("commit", "0123456789ab")
    kept = settings.pop("kept", {"bitfit": 1290, "full": 307466}.get(method, 1537))
    keep = None if method in ("bitfit", "full") else keep
    config = copy.deepcopy(CONFIG | {"method": METHODS.get(method, {"name": method}), "keep": keep, "seed": seed})
    for key, value in settings.items():
        *groups, last = key.split("__")
        place = config
        for group in groups:
            place = place[group]
        place[last] = value
    made = {
        "run_id": run_id or json.dumps([config, streams], sort_keys=True),
        "config": config,
        "status": status,
        "kept": kept,
        "total": 307466,
        "metrics": {metric: score, "loss": 0.3, **(more or {})} if status == "finished" else {},
        "seconds": {"data": 1.0, "train": 2.0 + seed} if status == "finished" else {},
        "commit": commit,
    }
    return made if streams is None else made | {"streams": streams}


def full_records(file: Path, size: int) -> Callable[[], None]:
    """Write a file of records to which nothing can be added in a process that first calls what is returned.

    Such a process writes no file beyond ``size`` bytes, as if the disk of the records alone was full.
    """
    line = {"run_id": "of others", "status": "failed", "config": {}, "metrics": {}, "error": "x" * size}
    file.write_text(json.dumps(line) + "\n")
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))


def held_out(score, lr, **settings):
    """Make up the record of a run on held-out examples."""
    return record(score, metric="accuracy_holdout", data__holdout=1000, regime__lr=lr, **settings)


def one_class(share, **settings):
    """Make up the record of a run that predicted the largest class, of this share, for all examples."""
    return record(share, more={"largest_class": share, "largest_predicted": 1.0}, **settings)


def cells(text, row):
    """Return the cells of a line of Markdown; 0 is the header, 2 the first row."""
    return [cell.strip() for cell in text.splitlines()[row].strip("|").split(" | ")]


def tables(records, **options):
    """Return the tables that are made of ``records``."""
    return [text for text in table.markdown(pool(records, **options)).split("\n\n") if text.startswith("|")]


def column(records, header, **options):
    """Return the cells below ``header`` in the first of the tables made of ``records`` that has it."""
    text = next(text for text in tables(records, **options) if header in cells(text, 0))
    return [cells(text, row)[cells(text, 0).index(header)] for row in range(2, len(text.splitlines()))]


def above(records, **options):
    """Return what stands above the first table that is made of ``records``, without its line breaks."""
    return " ".join(table.markdown(pool(records, **options)).split("\n\n")[0].split())
