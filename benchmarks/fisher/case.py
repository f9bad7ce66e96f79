"""The settings in which the Fisher information is measured."""

from dataclasses import dataclass, replace
from typing import ClassVar

TRANSFORMERS = ("loop", "batched", "ours", "check")  # BackPACK has no rule for LayerNorm
CONVOLUTIONS = (*TRANSFORMERS, "BackPACK")


@dataclass(frozen=True)
class FisherCase:
    """Describe a model whose weights are scored, at the true labels.

    Attributes:
        batch: Number of examples in a batch.
        length: Tokens in an example; None for images of 3x32x32.
        contenders: Names of the implementations in the order of a round; ratios refer to the first.
        examples: Number of examples that are scored.
    """

    benchmark: ClassVar[str] = "fisher"

    model: str
    batch: int
    length: int | None
    contenders: tuple[str, ...]
    examples: int


def cases(device: str) -> list[FisherCase]:
    """List all settings for a device type."""
    small = FisherCase("minilm", 16, 64, TRANSFORMERS, 64)
    if device == "cuda":
        return [
            small,
            FisherCase("bert-large-shape", 16, 128, TRANSFORMERS, 32),
            FisherCase("resnet34", 32, None, CONVOLUTIONS, 128),
        ]
    return [
        small,
        FisherCase("minilm", 16, 128, TRANSFORMERS, 32),
        FisherCase("bert-base-shape", 8, 64, TRANSFORMERS, 16),
        FisherCase("resnet18", 16, None, CONVOLUTIONS, 64),
    ]


def quick_cases(device: str) -> list[FisherCase]:
    """List all settings with two batches of two examples."""
    return [replace(case, batch=2, examples=4) for case in cases(device)]
