"""The settings in which serving is measured."""

from dataclasses import dataclass
from typing import ClassVar, Literal

ALL = ("dense", "LoRA", "Super-Tuning", "ours")


@dataclass(frozen=True)
class ServeCase:
    """Describe a model in memory that answers for many tasks in turn, one sentence at a time.

    Attributes:
        contenders: Names of the ways to keep the tasks, in the order of a round.
        tasks: How many there are.
        keep: Fraction of all weights that a task moves; the head is kept whole.
        length: Tokens of the sentence.
    """

    benchmark: ClassVar[str] = "serve"

    model: str
    contenders: tuple[str, ...] = ALL
    tasks: int = 100
    keep: float = 0.005
    length: int = 32
    precision: Literal["fp32"] = "fp32"


def cases(device: str) -> list[ServeCase]:
    """List all settings for a device type; none for CUDA, as deltas are handled on the CPU."""
    return [] if device == "cuda" else [ServeCase("minilm")]


def quick_cases(device: str) -> list[ServeCase]:
    """List a setting with few tasks."""
    return [] if device == "cuda" else [ServeCase("minilm", tasks=3)]
