"""The profiles of Table 2: how large it may be made."""

from collections.abc import Sequence
from dataclasses import replace

from experiments.lib.settings import Settings
from experiments.lib.study import Study
from experiments.table2.cells import Cell, cells, methods

# learning rates of the authors' scripts, for every task
_RATES = {"fish": 5e-5, "random": 5e-5, "full": 1e-5}
_PAPER_TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
# steps
_INTERVALS = (10, 30, 100)
# two workers in one process give the bits of two processes, and need one device
_TWO_WORKERS: Settings = {
    "data": "glue",
    "regime": "distributed",
    "regime.workers": 2,
    "regime.backend": "simulated",
    "regime.shard": True,
    "regime.refresh_every": 10,
    "regime.warmup_epochs": 0,
}


def published(common: Settings, tasks: Sequence[str], seeds: Sequence[int]) -> list[Study[Cell]]:
    """Return the studies of the original's setting at its rates, as it merges and with means of the same masks."""
    sources = {cell: cell for cell in cells(tasks, _INTERVALS)}
    as_original = Study(
        name="sum",
        about="As the original merges: disjoint masks, and the sum of what the workers changed.",
        common=_TWO_WORKERS | {"regime.merge": "sum", "model": "bert_large", "regime.epochs": 7} | common,
        methods=methods("disjoint"),
        choose=None,
        rates={},
        sources=sources,
        report={},
        seeds=seeds,
        known={cell: _RATES[cell.method] for cell in sources},
    )
    as_mean = replace(
        as_original,
        name="mean",
        about="The same with one mask for both workers, and the mean of what they changed.",
        common=as_original.common | {"regime.merge": "mean"},
        methods=methods("same"),
    )
    return [as_original, as_mean]


PROFILES: dict[str, Sequence[Study[Cell]]] = {
    "cpu": [
        Study(
            name="",
            about="For about 2.2 hours of one idle core for the first seed and 1.3 for each other: a small BERT on "
            "1,400 training sentences or pairs of three tasks, reported on at most 1,000. A worker has 132 steps and "
            "merges 66, 19 and 6 times; in the original, on MRPC, it has 802 steps and merges 80, 27 and 8 times.",
            common=_TWO_WORKERS
            | {
                "regime.merge": "sum",
                "model": "minilm",
                "precision": "fp32",
                "threads": 1,
                "device": "cpu",
                "data.train_limit": 1400,
            },
            methods=methods("disjoint"),
            choose={"data.holdout": 500, "regime.epochs": 2},
            rates={"fish": (5e-4, 2e-3), "random": (5e-4, 2e-3), "full": (2.5e-5, 1e-4)},
            grow=4,
            sources={cell: replace(cell, sync=7) for cell in cells(("mrpc", "sst2", "stsb"), (2, 7, 22))},
            report={"data.valid_limit": 1000, "regime.epochs": 3},
            seeds=range(3),
        )
    ],
    "gpu": published({"precision": "bf16", "device": "cuda"}, ("cola", "mrpc", "rte", "stsb"), (0,)),
    "paper": published({"precision": "fp32"}, _PAPER_TASKS, (0, 1, 2, 4, 5)),
}
