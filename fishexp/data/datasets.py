"""A data set: examples in memory, handed out a batch at a time, and the metrics that are reported on them."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from fishexp.delta.fingerprint import raw
from fishexp.errors import FishexpError
from fishexp.fisher.batches import Inputs

# name -> number in the metric's own range, None where it is undefined
Metrics: TypeAlias = dict[str, float | None]


log = logging.getLogger(__name__)

# examples in a chunk that is hashed
_HASHED_TOGETHER = 1_000
# batches in a chunk that is sorted by length
_CHUNK_BATCHES = 50


class Outline(NamedTuple):
    """Say what is known of a data set before any example is loaded; None where nothing is.

    A module of a data set may have a function ``outline``, which takes options of ``load`` and returns it.

    Attributes:
        classes: Number of labels; 1 is a regression.
        channels: Number of channels of its images; 0 for text.
        train: Number of training examples, before any limit.
    """

    classes: int | None
    channels: int | None
    train: int | None


class Examples(Protocol):
    """Hold the examples that a data set has for training, or for evaluation."""

    labels: Tensor  # (examples,)
    lengths: Tensor | None  # (examples,), in tokens; None where all are of one length

    def __len__(self) -> int: ...

    def subset(self, index: Tensor) -> "Examples":
        """Return the examples at ``index``, in that order."""
        ...

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Inputs, Tensor]:
        """Return inputs and labels of the examples at ``index``, augmented if there is a generator to draw from."""
        ...


@dataclass(frozen=True)
class Dataset:
    """Hold the examples of a data set, and how success on it is measured.

    Attributes:
        train: The training examples; :class:`fishexp.data.text.Sentences` until the model's tokenizer has seen them.
        valid: Sets of examples to report on. A set's key becomes a part of its metrics' names, as in accuracy_matched;
            the key of a single set is empty.
        classes: Number of labels; 1 is a regression.
        channels: Number of channels of its images; 0 for text.
        metrics: (logits, labels) of all examples of a reported set -> metrics, the headline first,
            of which more has to be better.
        names: Names of the classes in the order of their numbers; empty for a regression, or if they have none.
        columns: Names of the columns that its sentences are in, of a table of the user's or on the hub; empty if it has
            none.
        validation: Training examples that are held out to choose the epoch by; None where it is not chosen.
    """

    train: Any
    valid: dict[str, Any]
    classes: int
    channels: int
    metrics: Callable[[Tensor, Tensor], Metrics]
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    validation: Any | None = None

    def limited(self, train_limit: int | None, valid_limit: int | None, holdout: int) -> "Dataset":
        """Limit the numbers of examples to the first of a fixed permutation, which is the same for every seed.

        Args:
            train_limit: Number of training examples; None for all.
            valid_limit: Number of examples of each reported set; None for all.
            holdout: Number of training examples to hold out and to report on, instead of all other sets: for choosing
                hyper-parameters. They are the last of the permutation, so that no ``train_limit`` reaches them.

        Raises:
            FishexpError: If ``holdout`` leaves nothing to train on.
        """
        size = len(self.train)
        count = count_trained(size, train_limit, holdout)
        order = _permutation(size)
        train = self.train.subset(order[:count])
        if holdout:
            held_out = self.train.subset(order[size - holdout :][:valid_limit])
            return replace(self, train=train, valid={"holdout": held_out})
        valid = {
            name: examples.subset(_permutation(len(examples))[:valid_limit]) if valid_limit else examples
            for name, examples in self.valid.items()
        }
        return replace(self, train=train if train_limit else self.train, valid=valid)

    def with_validation(self, fraction: float) -> "Dataset":
        """Hold out a share of the training examples to choose the epoch by, and say so.

        They are the last of a permutation that is the same for every seed, and none of them is reported on.

        Raises:
            FishexpError: If nothing is left to train on.
        """
        count = count_validation(len(self.train), fraction)
        log.info("%s of %s training examples are held out to choose the epoch by", f"{count:,}", f"{len(self.train):,}")
        order = _permutation(len(self.train))
        return replace(self, train=self.train.subset(order[:-count]), validation=self.train.subset(order[-count:]))

    def metric_names(self, labels: Tensor) -> list[str]:
        """List the names of the metrics of examples with these labels, (examples,), the headline first."""
        return list(self.metrics(torch.zeros(len(labels), self.classes), labels.cpu()))

    def digest(self) -> str:
        """Hash all examples as a model gets them, not augmented, to 12 hexadecimal digits."""
        held_out = {} if self.validation is None else {"held out to choose the epoch": self.validation}
        return _digest({"train": self.train, **self.valid, **held_out})

    def reported_digest(self, name: str) -> str:
        """Hash the examples of a reported set as :meth:`digest` does: the same whatever the model trained on."""
        return _digest({"": self.valid[name]})


def count_trained(size: int, train_limit: int | None, holdout: int) -> int:
    """Count the training examples that the limits of a data set leave of ``size``.

    Raises:
        FishexpError: If ``holdout`` leaves nothing to train on.
    """
    if holdout >= size:
        raise FishexpError(f"data.holdout={holdout} leaves nothing to train on: there are {size} training examples")
    return min(size - holdout, train_limit or size)


def count_validation(size: int, fraction: float) -> int:
    """Count those of ``size`` training examples that are held out to choose the epoch by.

    Raises:
        FishexpError: If nothing is left to train on.
    """
    count = count_share(size, fraction)
    if count >= size:
        raise FishexpError(
            f"regime.validation_fraction={fraction} leaves nothing to train on: there are {size} training examples"
        )
    return count


def count_share(size: int, fraction: float) -> int:
    """Count the examples of a share of ``size``, at least one."""
    return max(1, round(fraction * size))


def _digest(sets: Mapping[str, Any]) -> str:
    """Hash the examples of these sets as a model gets them, not augmented, to 12 hexadecimal digits."""
    hashed = hashlib.sha256()
    for name, examples in sets.items():
        hashed.update(f"{name} {len(examples)}".encode())
        for index in torch.arange(len(examples)).split(_HASHED_TOGETHER):
            inputs, labels = examples.batch(index)
            named = inputs if isinstance(inputs, Mapping) else {"": inputs}
            for key, tensor in {**named, "labels": labels}.items():
                hashed.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                hashed.update(raw(tensor))
    return hashed.hexdigest()[:12]


def split_off(examples: Any, fraction: float, source: str) -> tuple[Any, Any]:
    """Split examples that come without any to report on, and say so.

    Args:
        fraction: Share of the examples to report on: the last of a permutation that is the same for every seed.
        source: Where they came from, for messages.

    Returns:
        Those to train on, and those to report on.

    Raises:
        FishexpError: If nothing is left to train on.
    """
    order, count = _permutation(len(examples)), count_share(len(examples), fraction)
    if count >= len(examples):
        raise FishexpError(f"{source} has {len(examples)} examples, too few to report on some of them")
    log.info("%s: %d of its %d examples, the same for every seed, are reported on", source, count, len(examples))
    return examples.subset(order[:-count]), examples.subset(order[-count:])


def _permutation(size: int) -> Tensor:
    """Draw the permutation of ``size`` examples that is the same for every seed."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))


def grouped_order(lengths: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Draw a random order of examples in which each batch of ``size`` holds examples of similar length.

    Random chunks of 50 batches are sorted by length, longest first. Then the batches are shuffled; the last stays the
    last if it is smaller.
    """
    order = torch.randperm(len(lengths), generator=generator)
    chunks = [
        chunk[lengths[chunk].argsort(descending=True, stable=True)] for chunk in order.split(_CHUNK_BATCHES * size)
    ]
    batches = [batch for chunk in chunks for batch in chunk.split(size)]
    last = [batches.pop()] if len(batches[-1]) < size else []
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return torch.cat([batches[i] for i in shuffled] + last)
