"""Which merges are timed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MERGE_KEPT = ("ours", "ring")
MERGE = (*MERGE_KEPT, "dense")


@dataclass(frozen=True)
class MergeCase:
    """Workers that merge what they changed, as processes of one machine. Of the model there are only values.

    Attributes:
        weights: Of the model.
        contenders: What is timed, in the order of a round.
        keep: Fraction of all weights that the workers exchange; dense exchanges all.
    """

    workers: int
    weights: int
    contenders: tuple[str, ...] = MERGE
    keep: float = 0.005
    precision: Literal["fp32"] = "fp32"
    benchmark: Literal["merge"] = "merge"

    def values(self, contender: str) -> int:
        """That ``contender`` merges."""
        return self.weights if contender == "dense" else round(self.keep * self.weights)


def merges(workers: int, keeps: Sequence[float]) -> list[MergeCase]:
    """Half a percent of models up to the size whose weights fit, and one for which dense is foretold; other keeps."""
    sizes = [MergeCase(workers, weights) for weights in (10**6, 10**7, 10**8)]
    others = [MergeCase(workers, 10**8, MERGE_KEPT, keep) for keep in keeps if keep != 0.005]
    return [*sizes, MergeCase(workers, 10**9, MERGE_KEPT), *others]
