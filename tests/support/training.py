"""A tiny problem in float64 whose examples remember how they were used."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fishexp.data.datasets import Dataset
from fishexp.data.metrics import accuracy
from fishexp.training.problem import Problem
from tests.support.cases import CLASSES

# of a Recipe: no epoch is chosen
ALL_EPOCHS: dict[str, Any] = {"patience": None, "best": False, "metric": None, "validation_fraction": 0.1}
EXAMPLES = 22  # batches of 4 leave a ragged last one, and groups of 2 batches a ragged last group


@dataclass
class Rows:
    """Remember which examples were asked for, and whether augmented."""

    inputs: Tensor
    labels: Tensor
    asked: list[list[int]] = field(default_factory=list)
    augmented: list[bool] = field(default_factory=list)
    lengths: None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "Rows":
        return Rows(self.inputs[index], self.labels[index])

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        self.asked.append(index.tolist())
        self.augmented.append(generator is not None)
        return self.inputs[index], self.labels[index]


def problem(model: nn.Module, shape: tuple[int, ...], **options: object) -> Problem:
    """Give ``model`` random examples of this shape to learn."""
    generator = torch.Generator().manual_seed(7)
    rows = Rows(
        torch.randn(EXAMPLES, *shape, generator=generator).double(),
        torch.randint(CLASSES, (EXAMPLES,), generator=generator),
    )
    data = Dataset(rows, {"": Rows(rows.inputs, rows.labels)}, CLASSES, 1, accuracy)
    seeds = {"generator": torch.Generator().manual_seed(0), "order": torch.Generator().manual_seed(1)}
    return Problem(model, (), data, torch.device("cpu"), seed=0, **seeds, **options)  # type: ignore[arg-type]


def mlp() -> nn.Module:
    """Build a network of two layers, for examples of five numbers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()
