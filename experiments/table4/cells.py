"""The cells of Table 4, and how large the table may be made."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal, TypeAlias

from experiments.study import Study

Schedule: TypeAlias = Literal["fixed", "every_epoch"]

METHODS, KEEPS = ("fish", "random"), (0.005, 0.02, 0.1, 0.25)
SCHEDULES: Sequence[Schedule] = ("fixed", "every_epoch")
KEPT, ALL, ORIGINAL = "decay=kept compat=none", "decay=all compat=none", "decay=all compat=fish"
LOGS = json.loads((Path(__file__).parent / "authors_logs.json").read_text())


@dataclass(frozen=True)
class Cell:
    """Runs that differ in the seed only.

    Attributes:
        keep: 1 for dense training, which has no mask.
        schedule: When masks are chosen.
        variant: Overrides on what happens to the weights outside the mask.
    """

    method: str
    keep: float
    schedule: Schedule
    variant: str

    @property
    def told(self) -> str:
        """See :class:`experiments.study.Cell`."""
        keep = "" if self.method == "full" else f" keep={self.keep:g}"
        return f"regime.mask={self.schedule} {self.variant}{keep}"


def cells(variants: Sequence[str]) -> Iterator[Cell]:
    """In the order of the table. Random masks have no scores that compat could change, dense training none frozen."""
    for variant, keep, schedule, method in product(variants, KEEPS, SCHEDULES, METHODS):
        if method == "fish" or variant != ORIGINAL:
            yield Cell(method, keep, schedule, variant)
    yield Cell("full", 1.0, "fixed", variants[0])


def sources(
    variants: Sequence[str], rate_of: Mapping[float, float], tuned: Sequence[Schedule] = SCHEDULES
) -> dict[Cell, Cell]:
    """Cell -> the cell whose learning rate it takes.

    Args:
        rate_of: keep -> the keep at which its rate is chosen, where that is another.
        tuned: The schedules with rates of their own; the others take those of the first.
    """
    found = {}
    for cell in cells(variants):
        schedule = cell.schedule if cell.schedule in tuned else tuned[0]
        found[cell] = replace(cell, keep=rate_of.get(cell.keep, cell.keep), schedule=schedule)
    return found


def logged(of: Mapping[Cell, Cell]) -> dict[Cell, float]:
    """The learning rates of the authors' logs, for the cells that others take them from."""
    rates = {(run["method"], run["keep"], run["mask"]): run["lr"] for run in LOGS["runs"]}
    return {cell: rates[cell.method, cell.keep, cell.schedule] for cell in of.values()}


_SMALL, _LARGE = sources([KEPT], {0.02: 0.005, 0.25: 0.1}, ["fixed"]), sources([KEPT, ALL, ORIGINAL], {0.25: 0.1})
PROFILES: dict[str, Sequence[Study[Cell]]] = {
    "cpu": [
        Study(
            name="",
            about="For about 2 hours of 2 idle cores: a smaller network, a fifth of the training images, half of the "
            "test images, a fraction of the epochs with the warm-up in proportion, fewer images to score.",
            common="data=cifar10 model=resnet18 precision=bf16 threads=1 device=cpu data.train_limit=10000 "
            "regime=checkpointing regime.keyframe_every=1000 regime.batch_size=128",
            methods={"fish": "method.samples=256"},
            choose="data.holdout=2000 regime.epochs=4 regime.warmup=0.2",
            rates=dict.fromkeys(("fish", "random", "full"), (0.02, 0.08, 0.32)),
            sources=_SMALL,
            report="data.valid_limit=5000 regime.epochs=6 regime.warmup=0.3",
            seeds=range(5),
        )
    ],
    "gpu": [
        Study(
            name="",
            about="The network, the epochs and the learning rates of the authors' logs, in bf16 where theirs is fp16.",
            common="data=cifar10 model=resnet9 precision=bf16 device=cuda regime=checkpointing "
            "regime.keyframe_every=1000 regime.batch_size=512",
            methods={"fish": "method.samples=1024"},
            choose=None,
            rates={},
            sources=_LARGE,
            report="regime.epochs=100 regime.warmup=5",
            seeds=range(3),
            known=logged(_LARGE),
        )
    ],
    "paper": [
        Study(
            name="",
            about="The network, the epochs and the rates of the paper, in fp32. Which rate, held-out images say.",
            common="data=cifar10 model=resnet34 precision=fp32 regime=checkpointing regime.keyframe_every=1000 "
            "regime.batch_size=512 regime.epochs=100 regime.warmup=5",
            methods={"fish": "method.samples=1024"},
            choose="data.holdout=5000",
            rates=dict.fromkeys(("fish", "random", "full"), (0.8, 0.4, 0.2, 0.08, 0.04, 0.02)),
            sources=sources([KEPT, ALL], {}),
            report="",
            seeds=range(5),
        )
    ],
}
