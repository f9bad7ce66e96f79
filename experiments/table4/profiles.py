"""The profiles of Table 4: how large it may be made."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.lib.settings import Settings
from experiments.lib.study import Study
from experiments.table4.cells import ALL, KEPT, ORIGINAL, Cell, cells, sources

LOGS = json.loads((Path(__file__).parent / "authors_logs.json").read_text())
_CHECKPOINTING: Settings = {"data": "cifar10", "regime": "checkpointing", "regime.keyframe_every": 1000}
_AS_LOGGED = _CHECKPOINTING | {"model": "resnet9", "precision": "bf16", "device": "cuda", "regime.batch_size": 512}


def logged(cells: Mapping[Cell, Cell], epochs: int) -> dict[Cell, float]:
    """Return the learning rates of the authors' logs of so many epochs, for the cells that others take them from."""
    rates = {(run["method"], run["keep"], run["mask"]): run["lr"] for run in LOGS["runs"] if run["epochs"] == epochs}
    return {cell: rates[cell.method, cell.keep, cell.schedule] for cell in cells.values()}


# the logs of 24 epochs have FISH masks at three budgets and dense training
_SHORT = {cell: cell for cell in cells([ORIGINAL]) if cell.keep != 0.25}
_SMALL, _LARGE = sources([KEPT], {0.02: 0.005, 0.25: 0.1}, ["fixed"]), sources([KEPT, ALL, ORIGINAL], {0.25: 0.1})
PROFILES: dict[str, Sequence[Study[Cell]]] = {
    "cpu": [
        Study(
            name="",
            about="For about 5 hours of one core for the first seed, 2 of which choose rates, and 3 for each other: a "
            "smaller network, a fifth of the training images, half of the test images, a fraction of the epochs with "
            "the warm-up in proportion, fewer images to score.",
            common=_CHECKPOINTING
            | {
                "model": "resnet18",
                "precision": "fp32",
                "threads": 1,
                "device": "cpu",
                "data.train_limit": 10_000,
                "regime.batch_size": 128,
            },
            methods={"fish": {"method.samples": 256}},
            choose={"data.holdout": 2000, "regime.epochs": 4, "regime.warmup": 0.2},
            rates=dict.fromkeys(("fish", "random", "full"), (0.02, 0.08, 0.32)),
            grow=4,
            sources=_SMALL,
            report={"data.valid_limit": 5000, "regime.epochs": 6, "regime.warmup": 0.3},
            seeds=range(3),
        )
    ],
    "gpu": [
        Study(
            name="24-epochs",
            about="The cells of the authors' logs that take a minute or two on a GPU, as their code had them and at "
            "their learning rates, in bf16 where theirs is fp16.",
            common=_AS_LOGGED,
            methods={"fish": {"method.samples": 1024}},
            choose=None,
            rates={},
            sources=_SHORT,
            report={"regime.epochs": 24, "regime.warmup": 5},
            seeds=range(3),
            known=logged(_SHORT, 24),
        ),
        Study(
            name="",
            about="The network, the epochs and the learning rates of the authors' logs, in bf16 where theirs is fp16.",
            common=_AS_LOGGED,
            methods={"fish": {"method.samples": 1024}},
            choose=None,
            rates={},
            sources=_LARGE,
            report={"regime.epochs": 100, "regime.warmup": 5},
            seeds=range(3),
            known=logged(_LARGE, 100),
        ),
    ],
    "paper": [
        Study(
            name="",
            about="The network, the epochs and the rates of the paper, in fp32. Which rate, held-out images say.",
            common=_CHECKPOINTING
            | {
                "model": "resnet34",
                "precision": "fp32",
                "regime.batch_size": 512,
                "regime.epochs": 100,
                "regime.warmup": 5,
            },
            methods={"fish": {"method.samples": 1024}},
            choose={"data.holdout": 5000},
            rates=dict.fromkeys(("fish", "random", "full"), (0.8, 0.4, 0.2, 0.08, 0.04, 0.02)),
            sources=sources([KEPT, ALL], {}),
            report={},
            seeds=range(5),
        )
    ],
}
