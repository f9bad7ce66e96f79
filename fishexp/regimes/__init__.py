"""Regimes, how training proceeds: one file each.

Each has ``train(problem, choose, logger, snapshots, resumed, decay, *, ...)``. Keys of its yaml that are used before
that, to start several workers, are no arguments of it: its module names them as ``RUN_SETTINGS``.
"""

from dataclasses import dataclass, field
from typing import Any

from fishexp.delta import Delta
from fishexp.errors import FishexpError
from fishexp.training.evaluate import Evaluation


@dataclass(frozen=True)
class Outcome:
    """Hold the result of training.

    Attributes:
        evaluation: Metrics and predictions of the model that is left, after the last epoch or the one that was chosen.
        delta: The trained model against what it was before; None where every weight moved, or none.
        bytes: Sizes of what was stored or sent, for the record.
        epochs: How the epoch was chosen, for the record; empty where it was the last of all.
    """

    evaluation: Evaluation
    delta: Delta | None = None
    bytes: dict[str, int] = field(default_factory=dict)
    epochs: dict[str, Any] = field(default_factory=dict)


def check_warmup(warmup_epochs: int, epochs: int) -> None:
    """Refuse a dense warm-up that leaves no epoch with a mask.

    Raises:
        FishexpError: If it does.
    """
    if warmup_epochs >= epochs:
        raise FishexpError(
            f"regime.warmup_epochs={warmup_epochs} leaves no epoch with a mask: regime.epochs={epochs}; lower it"
        )
