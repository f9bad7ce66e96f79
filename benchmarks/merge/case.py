"""The settings in which merges are measured."""

from dataclasses import dataclass
from typing import ClassVar, Literal

KEPT = ("ours", "ring")  # contenders that merge the kept values only
ALL = (*KEPT, "dense")
KEEPS = (0.001, 0.02, 0.1)  # measured for one size of model, beside the half percent of all sizes


@dataclass(frozen=True)
class MergeCase:
    """Describe workers, as processes of a machine, that merge what they changed. A model is only its number of weights.

    Attributes:
        weights: Number of the model's weights.
        contenders: Names of the implementations, in the order of a round.
        keep: Fraction of all weights that the workers exchange; dense exchanges all.
    """

    benchmark: ClassVar[str] = "merge"

    workers: int
    weights: int
    contenders: tuple[str, ...] = ALL
    keep: float = 0.005
    precision: Literal["fp32"] = "fp32"

    def values(self, contender: str) -> int:
        """Count the values that ``contender`` merges."""
        return self.weights if contender == "dense" else round(self.keep * self.weights)


def cases(device: str) -> list[MergeCase]:
    """List all settings for a device type; none for CUDA, as the workers are on the CPU."""
    if device == "cuda":
        return []
    return [case for workers in (1, 2, 4, 8) for case in _of_workers(workers)]


def _of_workers(workers: int) -> list[MergeCase]:
    """List models up to the size whose weights fit in memory, and a larger model for which dense is extrapolated."""
    sizes = [MergeCase(workers, weights) for weights in (10**6, 10**7, 10**8)]
    return [*sizes, MergeCase(workers, 10**9, KEPT), *(MergeCase(workers, 10**8, KEPT, keep) for keep in KEEPS)]


def quick_cases(device: str) -> list[MergeCase]:
    """List the settings of the smallest model with at most two workers."""
    return [case for case in cases(device) if case.workers <= 2 and case.weights == 10**6]
