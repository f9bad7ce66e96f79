"""How training proceeds: one file a regime, each with ``train(problem, choose, log, snapshots, decay, *, ...)``."""

from dataclasses import dataclass, field

from fishexp.data.datasets import Metrics
from fishexp.delta import Delta


@dataclass(frozen=True)
class Outcome:
    """What training came to.

    Attributes:
        metrics: After the last epoch; the headline first.
        delta: The trained model against what it was before; None where every weight moved, or none.
        bytes: What was stored or sent, for the record.
    """

    metrics: Metrics
    delta: Delta | None = None
    bytes: dict[str, int] = field(default_factory=dict)
