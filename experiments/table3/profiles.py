"""The profiles of Table 3: how large it may be made."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.lib.settings import Settings
from experiments.lib.study import Study
from experiments.table3.cells import KEEPS, METHODS, Cell, cells, methods

LOGS = json.loads((Path(__file__).parent / "authors_logs.json").read_text())
# two workers in one process give the bits of two processes, and need one device
_TWO_WORKERS: Settings = {
    "data": "cifar10",
    "regime": "distributed",
    "regime.workers": 2,
    "regime.backend": "simulated",
    "regime.shard": False,
    "regime.refresh_every": 10,
}
# weights outside the mask stay; or all is as in the original code, where they decay
_KEPT: Settings = {"decay": "kept", "compat": "none"}
_ORIGINAL: Settings = {"decay": "all", "compat": "fish"}


def own(keeps: Sequence[float], syncs: Sequence[int]) -> dict[Cell, Cell]:
    """Return cell -> source such that every cell has its own rate chosen."""
    return {cell: cell for cell in cells(keeps, syncs)}


def borrowed(syncs: Sequence[int], keep: float, sync: int) -> dict[Cell, Cell]:
    """Return cell -> source such that every cell takes the rate of its method at ``keep`` and ``sync``."""
    return {cell: replace(cell, keep=cell.keep if cell.keep == 1 else keep, sync=sync) for cell in cells(KEEPS, syncs)}


def same_rates(*rates: float) -> dict[str, Sequence[float]]:
    """Return method -> ``rates``, the same for every method."""
    return dict.fromkeys((*METHODS, "full"), rates)


def june(
    *,
    about: str,
    common: Settings,
    batch: int,
    report: Settings,
    seeds: int,
    keeps: Sequence[float],
    merges: Sequence[int],
    steps: int,
) -> Study[Cell]:
    """Return the study of the authors' logs: disjoint masks, sum, no warm-up, the code as it was.

    Args:
        batch: Examples in a batch of a worker; rates are in proportion to it.
        merges: Which of the intervals in the logs: 10, 30 and 100 of 97 steps an epoch, the last therefore its end.
        steps: Steps of an epoch. The original counts one more.
    """
    syncs = {merge: min(round(merge * steps / 97), steps + 1) for merge in merges}
    known = {
        Cell(run["method"], run["keep"], syncs[run["merge_steps"]]): run["lr"] * batch / 512
        for run in LOGS["runs"]
        if run["merge_steps"] in syncs
    }
    return Study(
        name="june",
        about=about,
        common=_TWO_WORKERS | {"regime.merge": "sum"} | _ORIGINAL | {"regime.batch_size": batch} | common,
        methods=methods(0, "disjoint"),
        choose=None,
        rates={},
        sources=own(keeps, list(syncs.values())),
        report=report,
        seeds=range(seeds),
        known=known,
    )


_FULL = Study(
    name="",
    about="The network, the epochs and the rates of the paper, in fp32; weights outside the mask stay. Which rate, "
    "held-out images say.",
    common=_TWO_WORKERS
    | {
        "regime.merge": "mean",
        "model": "resnet34",
        "precision": "fp32",
        "regime.batch_size": 512,
        "regime.epochs": 50,
        "regime.warmup": 5,
    }
    | _KEPT,
    methods=methods(5),
    choose={"data.holdout": 5000},
    rates=same_rates(0.8, 0.4, 0.2, 0.08, 0.04, 0.02),
    sources=own(KEEPS, (100, 500, 2500)),
    report={},
    seeds=range(5),
)
PROFILES: dict[str, Sequence[Study[Cell]]] = {
    "cpu": [
        Study(
            name="",
            about="For about 2 hours of one idle core for the first seed and 1.5 for each other: a smaller network, "
            "2,240 of the 50,000 training images, a fifth of the test images, 6 of 50 epochs. A run has 210 steps, and "
            "the intervals between merges are as many of them as the paper's are of its 4,850: 53, 10 and 2 merges, "
            "with masks one more, as the dense epoch ends. One epoch of six is dense, of the paper's one of ten.",
            common=_TWO_WORKERS
            | {
                "regime.merge": "mean",
                "model": "resnet18",
                "precision": "fp32",
                "threads": 1,
                "device": "cpu",
                "data.train_limit": 2240,
                "regime.batch_size": 64,
            }
            | _KEPT,
            methods=methods(1),
            choose={"data.holdout": 1000, "regime.epochs": 5, "regime.warmup": 0.5},
            rates=same_rates(0.01, 0.04, 0.16),
            grow=4,
            sources=borrowed((4, 21, 105), 0.02, 35),
            report={"data.valid_limit": 2000, "regime.epochs": 6, "regime.warmup": 0.6},
            seeds=range(3),
        ),
        june(
            about="A few cells of the setting of the authors' logs, with their network: a twenty-sixth of the images, "
            "6 of 50 epochs, batches of 64, and merges at the same shares of an epoch.",
            common={"model": "resnet9", "precision": "fp32", "threads": 1, "device": "cpu", "data.train_limit": 1920},
            batch=64,
            report={"data.valid_limit": 2000, "regime.epochs": 6, "regime.warmup": 0.6},
            seeds=1,
            keeps=(0.02,),
            merges=(10, 100),
            steps=30,
        ),
    ],
    "gpu": [
        replace(
            _FULL,
            about="The network and the epochs of the paper, in bf16; weights outside the mask stay. The rates are "
            "chosen at keep 0.02 and one interval.",
            common=_FULL.common | {"precision": "bf16", "device": "cuda"},
            rates=same_rates(0.4, 0.2, 0.08, 0.02),
            sources=borrowed((100, 500, 2500), 0.02, 500),
            seeds=range(3),
        ),
        june(
            about="The setting of the authors' logs at their rates, in bf16 where theirs is fp16.",
            common={"model": "resnet9", "precision": "bf16", "device": "cuda"},
            batch=512,
            report={"regime.epochs": 50, "regime.warmup": 5},
            seeds=3,
            keeps=KEEPS,
            merges=(10, 30, 100),
            steps=97,
        ),
    ],
    "paper": [
        _FULL,
        replace(
            _FULL,
            name="original",
            about="The same as the original code does it: every weight decays, random masks are disjoint.",
            common=_FULL.common | _ORIGINAL,
        ),
    ],
}
