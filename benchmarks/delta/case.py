"""The settings in which deltas are measured."""

from dataclasses import dataclass
from typing import ClassVar, Literal

ALL = ("dense", "SHiRA", "Super-Tuning", "ours")


@dataclass(frozen=True)
class DeltaCase:
    """Describe a model whose delta is stored, loaded, applied and undone, with several masks of the same size.

    Attributes:
        precision: Type of the weights.
        contenders: Names of the ways to store the delta, in the order of a round.
        keep: Fraction of all weights that the delta has; the head is kept whole.
    """

    benchmark: ClassVar[str] = "delta"

    model: str
    precision: Literal["fp32", "bf16"]
    contenders: tuple[str, ...] = ALL
    keep: float = 0.005


def cases(device: str) -> list[DeltaCase]:
    """List all settings for a device type; none for CUDA, as deltas are handled on the CPU."""
    if device == "cuda":
        return []
    return [
        DeltaCase("minilm", "fp32"),
        DeltaCase("bert-large-cased-shape", "bf16"),
        DeltaCase("bert-large-cased-shape", "fp32"),
    ]


def quick_cases(device: str) -> list[DeltaCase]:
    """List the settings of the small model."""
    return [case for case in cases(device) if case.model == "minilm"]
