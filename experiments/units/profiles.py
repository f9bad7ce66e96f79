"""The cells of the comparison of units, and how large it is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from experiments.lib.settings import Settings
from experiments.lib.study import Study
from fishexp.masks.units import Unit

UNITS, KEEP = get_args(Unit), 0.005


@dataclass(frozen=True)
class Cell:
    """Stand for runs that differ in the seed only."""

    unit: str
    keep: float = KEEP
    method: str = "fish"

    @property
    def settings(self) -> Settings:
        """Return the settings that distinguish the cell."""
        return {"method.unit": self.unit, "keep": self.keep}


def _study(
    name: str,
    about: str,
    common: Settings,
    choose: Settings,
    rates: Sequence[float],
    report: Settings,
    grow: float | None = None,
) -> Study[Cell]:
    """Return a study in which every unit takes the rate that is the best for it."""
    return Study(
        name=name,
        about=about,
        common=common | {"precision": "fp32", "threads": 1, "device": "cpu"},
        methods={"fish": {"method.samples": 256}},
        choose=choose,
        rates={"fish": rates},
        sources={Cell(unit): Cell(unit) for unit in UNITS},
        report=report,
        seeds=range(3),
        grow=grow,
    )


PROFILES: dict[str, Sequence[Study[Cell]]] = {
    "cpu": [
        _study(
            "sst2",
            "minilm on 1,000 phrases of SST-2, 2 epochs in batches of 16; reported on the 872 development sentences.",
            {"data": "glue", "data.task": "sst2", "model": "minilm", "data.train_limit": 1000, "regime.epochs": 2},
            {"data.holdout": 500, "regime.epochs": 1},
            (5e-4, 2e-3, 8e-3),
            {},
        ),
        _study(
            "cifar10",
            "ResNet-18 from random weights on 2,000 images of CIFAR-10, 4 epochs in batches of 64; reported on 1,000 "
            "test images.",
            {
                "data": "cifar10",
                "model": "resnet18",
                "data.train_limit": 2000,
                "regime.batch_size": 64,
                "regime.epochs": 4,
                "regime.warmup": 0.4,
            },
            {"data.holdout": 500, "regime.epochs": 2},
            (0.01, 0.03),
            {"data.valid_limit": 1000},
            grow=3,
        ),
    ],
}
