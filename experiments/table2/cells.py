"""The cells of Table 2, and how large the table may be made."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from experiments.study import Study

METHODS, KEEP = ("fish", "random", "full"), 0.005
LOGS = json.loads((Path(__file__).parent / "authors_logs.json").read_text())
_RATES = {"fish": 5e-5, "random": 5e-5, "full": 1e-5}  # of the authors' scripts, for every task
_PAPER_TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
_INTERVALS = (10, 30, 100)
# two workers in one process give the bits of two processes, and need one device
_TWO = (
    "data=glue regime=distributed regime.workers=2 regime.backend=simulated regime.shard=true regime.refresh_every=10 "
    "regime.warmup_epochs=0"
)


@dataclass(frozen=True)
class Cell:
    """Runs that differ in the seed only.

    Attributes:
        sync: Steps from one merge to the next.
    """

    method: str
    task: str
    sync: int

    @property
    def told(self) -> str:
        """See :class:`experiments.study.Cell`."""
        keep = "" if self.method == "full" else f" keep={KEEP:g}"
        return f"data.task={self.task} regime.sync_every={self.sync}{keep}"


def cells(tasks: Sequence[str], syncs: Sequence[int]) -> list[Cell]:
    """In the order of the table."""
    return [Cell(method, task, sync) for task, sync, method in product(tasks, syncs, METHODS)]


def methods(masks: str) -> dict[str, str]:
    """Overrides of each method; dense training has no masks."""
    return {"fish": f"method.samples=256 regime.masks={masks}", "random": f"regime.masks={masks}", "full": ""}


def published(common: str, tasks: Sequence[str], seeds: Sequence[int]) -> list[Study[Cell]]:
    """The original's setting at its rates, and with means of the same masks."""
    of = {cell: cell for cell in cells(tasks, _INTERVALS)}
    whole = Study(
        name="sum",
        about="As the original merges: disjoint masks, and the sum of what the workers changed.",
        common=f"{_TWO} regime.merge=sum model=bert_large regime.epochs=7 {common}",
        methods=methods("disjoint"),
        choose=None,
        rates={},
        sources=of,
        report="",
        seeds=seeds,
        known={cell: _RATES[cell.method] for cell in of},
    )
    mean = "The same with one mask for both workers, and the mean of what they changed."
    return [
        whole,
        replace(whole, name="mean", about=mean, common=whole.common.replace("=sum", "=mean"), methods=methods("same")),
    ]


PROFILES: dict[str, Sequence[Study[Cell]]] = {
    "cpu": [
        Study(
            name="",
            about="For about an hour of one idle core a seed, the choice of rates included: a small BERT on 1,400 "
            "training sentences or pairs of three tasks, reported on at most 1,000. A worker has 132 steps, and the "
            "intervals between merges are those of MRPC in the original, where it has 802, in proportion.",
            common=f"{_TWO} regime.merge=sum model=minilm precision=bf16 threads=1 device=cpu data.train_limit=1400",
            methods=methods("disjoint"),
            choose="data.holdout=500 regime.epochs=2",
            rates={"fish": (5e-4, 2e-3), "random": (5e-4, 2e-3), "full": (3e-5, 1e-4)},
            sources={cell: replace(cell, sync=7) for cell in cells(("mrpc", "sst2", "stsb"), (2, 7, 22))},
            report="data.valid_limit=1000 regime.epochs=3",
            seeds=range(3),
        )
    ],
    "gpu": published("precision=bf16 device=cuda", ("cola", "mrpc", "rte", "stsb"), (0,)),
    "paper": published("precision=fp32", _PAPER_TASKS, (0, 1, 2, 4, 5)),
}
