"""A data set, whatever it holds: examples in memory, handed out a batch at a time."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from fishexp.errors import FishexpError
from fishexp.fisher.batches import Inputs

Metrics: TypeAlias = dict[str, float | None]  # name -> number in the metric's own range, None where it is undefined


class Examples(Protocol):
    """What a data set's training and evaluation parts can do."""

    labels: Tensor  # (examples,)
    lengths: Tensor | None  # (examples,), tokens; None where all are alike

    def __len__(self) -> int: ...
    def subset(self, index: Tensor) -> "Examples":
        """The examples at ``index``, in that order."""
        ...

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Inputs, Tensor]:
        """Inputs and labels at ``index``; augmented if a generator is given to draw from."""
        ...


@dataclass(frozen=True)
class Dataset:
    """A data set and how success on it is measured.

    Attributes:
        train: The training examples; :class:`fishexp.data.text.Sentences` until the model's tokenizer has seen them.
        valid: The reported examples. The key goes into the metrics' names: accuracy_matched; empty for a single set.
        classes: Number of labels; 1 is a regression.
        channels: Of its images; 0 for text.
        metrics: (logits, labels) of all reported examples -> metrics, the headline first.
    """

    train: Any
    valid: dict[str, Any]
    classes: int
    channels: int
    metrics: Callable[[Tensor, Tensor], Metrics]

    def limited(self, train_limit: int | None, valid_limit: int | None, holdout: int) -> "Dataset":
        """The first so many of one fixed permutation, the same for every seed.

        Args:
            train_limit: Training examples; None for all.
            valid_limit: Examples of each reported set; None for all.
            holdout: Take this many training examples out and report on them, and on nothing else: for choosing
                hyper-parameters. They are the last of the permutation, so no ``train_limit`` reaches them.

        Raises:
            FishexpError: If ``holdout`` leaves nothing to train on.
        """
        size = len(self.train)
        if holdout >= size:
            raise FishexpError(f"data.holdout={holdout} leaves nothing to train on: there are {size} training examples")
        order = _permutation(size)
        train = self.train.subset(order[: size - holdout][:train_limit])
        if holdout:
            held = self.train.subset(order[size - holdout :][:valid_limit])
            return replace(self, train=train, valid={"holdout": held})
        valid = {
            name: part.subset(_permutation(len(part))[:valid_limit]) if valid_limit else part
            for name, part in self.valid.items()
        }
        return replace(self, train=train if train_limit else self.train, valid=valid)


def _permutation(size: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))


def grouped_order(lengths: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random order in which each batch of ``size`` holds examples of similar length.

    Random chunks of 50 batches are sorted by length, longest first; then the batches are shuffled, but for the last if
    it is smaller.
    """
    order = torch.randperm(len(lengths), generator=generator)
    chunks = [chunk[lengths[chunk].argsort(descending=True, stable=True)] for chunk in order.split(50 * size)]
    batches = [batch for chunk in chunks for batch in chunk.split(size)]
    last = [batches.pop()] if len(batches[-1]) < size else []
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return torch.cat([batches[i] for i in shuffled] + last)
