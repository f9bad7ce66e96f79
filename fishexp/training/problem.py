"""A problem: the model, the data it is to learn, and the loss."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishexp.data.datasets import Dataset, Examples, grouped_order
from fishexp.fisher.batches import Inputs, logits_of, mapped
from fishexp.sparse.calibration import known
from fishexp.sparse.costs import Costs
from fishexp.training.collectives import Collectives, InProcessCollectives

Precision: TypeAlias = Literal["fp32", "bf16"]
Batch: TypeAlias = tuple[Inputs, Tensor]  # inputs, labels


def count_epoch(examples: int, size: int, *, drop_last: bool) -> int:
    """Count the examples of an epoch in batches of ``size``: all, or without a smaller last batch."""
    return examples // size * size if drop_last and examples > size else examples


def without_mask_of_ones(model: nn.Module, inputs: Inputs) -> Inputs:
    """Leave out an attention mask that masks nothing, if it is a model of transformers, which does without one.

    It would look for padding itself, and wait for the device that the mask is on.
    """
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if not isinstance(inputs, Mapping) or not isinstance(mask, Tensor) or not bool(mask.all()):
        return inputs
    theirs = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
    if theirs is None or not any(isinstance(module, theirs) for module in model.modules()):  # PEFT's are around one
        return inputs
    return {name: value for name, value in inputs.items() if name != "attention_mask"}


def _no_progress(total: int, what: str) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda examples: None)


@dataclass
class Problem:
    """Hold a model and the data it is to learn; methods and regimes work on it.

    Attributes:
        model: On ``device``; returns logits (examples, classes), or an object with ``.logits``.
        head: Names of the parameters of the classifier, which always train.
        seed: The run's, from which workers have streams of their own (:mod:`fishexp.training.streams`).
        generator: Draws the mask: scoring examples, sampled labels, random scores.
        order: Draws the order of the training examples and their augmentation. It is another stream than ``generator``,
            so that the method does not change the data the model sees.
        precision: ``bf16`` computes under autocast; the weights stay float32.
        as_original: Score as the original code does where ours is better (``compat=fish``).
        costs: By which the gradient methods of sparse training are chosen.
        fresh: Names of parameters that began at random, which no base has: those of a new head.
        collectives: Connects the workers of the run; most runs have only one worker.
        data_parallel: Whether the workers train one model together, each on its share of every batch
            (:mod:`fishexp.training.data_parallel`); if not, several workers train apart.
        cuda_graphs: Whether batches whose shape comes often are CUDA graphs (:mod:`fishexp.fisher.cuda_graphs`).
        progress: Shows progress over so many examples: a context that yields a function of the examples just done.
    """

    model: nn.Module
    head: tuple[str, ...]
    data: Dataset
    device: torch.device
    seed: int
    generator: torch.Generator
    order: torch.Generator
    precision: Precision = "fp32"
    as_original: bool = False
    costs: Costs = field(default_factory=known)
    fresh: tuple[str, ...] = ()
    collectives: Collectives = field(default_factory=InProcessCollectives)
    data_parallel: bool = False
    cuda_graphs: bool = False
    progress: Callable[[int, str], AbstractContextManager[Callable[[int], None]]] = _no_progress

    @property
    def rank(self) -> int:
        """Return the rank of this process among those that train one model together; 0 if it trains its own."""
        return self.collectives.local_ranks[0] if self.data_parallel else 0

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean loss over the batch: cross-entropy in nats, or the squared error of a regression."""
        if self.data.classes == 1:
            return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        return F.cross_entropy(logits, labels)

    def autocast(self) -> torch.autocast:
        """Return a context in which models compute in ``precision``."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def logits(self, inputs: Inputs) -> Tensor:
        """Compute (examples, classes) logits in ``precision``, returned in float32 or better."""
        with self.autocast():
            logits = logits_of(self.model, inputs)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def random_streams(self) -> dict[str, Tensor]:
        """Return the states of torch's own generators, on the CPU and on ``device``."""
        cuda = {"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}
        return {"torch": torch.get_rng_state(), **cuda}

    def set_random_streams(self, states: Mapping[str, Tensor]) -> None:
        """Set the states that :meth:`random_streams` returned."""
        torch.set_rng_state(states["torch"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self.device)

    def batches(
        self, size: int, *, shuffle: bool = False, limit: int | None = None, augment: bool = False
    ) -> Iterator[Batch]:
        """Yield training examples on the device, each at most once, clean unless ``augment``; sentences longest first.

        Args:
            size: Examples a batch; the last one may be smaller.
            shuffle: Draw them at random, from ``generator``.
            limit: Stop after so many examples.
        """
        count = len(self.data.train)
        index = self.sample(count) if shuffle else torch.arange(count)
        yield from self.batches_of(index[:limit], size, self.generator if augment else None)

    def sample(self, limit: int) -> Tensor:
        """Draw the indices of at most ``limit`` training examples from ``generator``, in a random order."""
        return torch.randperm(len(self.data.train), generator=self.generator)[:limit]

    def batches_of(self, index: Tensor, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield the training examples at ``index`` on the device, longest first; augmented if a generator is given."""
        if self.data.train.lengths is not None:  # little padding, and a batch that is too large fails at once
            index = index[self.data.train.lengths[index].argsort(descending=True, stable=True)]
        for chosen in index.split(size):
            yield self._batch(self.data.train, chosen, generator)

    def epoch(self, size: int, *, drop_last: bool, done: int = 0, order: Tensor | None = None) -> Iterator[Batch]:
        """Yield the training examples once in a new random order, augmented; sentences of like length together.

        Args:
            size: Examples a batch.
            drop_last: Leave out a smaller last batch, unless it is the only one.
            done: Batches to leave out at the beginning.
            order: State of ``self.order`` after these batches, to resume from.
        """
        train: Examples = self.data.train
        if train.lengths is None:
            index = torch.randperm(len(train), generator=self.order)
        else:
            index = grouped_order(train.lengths, size, self.order)
        if order is not None:
            self.order.set_state(order)
        for chosen in index[: self.epoch_size(size, drop_last=drop_last)].split(size)[done:]:
            yield self._batch(train, chosen, self.order)

    def epoch_size(self, size: int, *, drop_last: bool) -> int:
        """Count the examples that :meth:`epoch` yields."""
        return count_epoch(len(self.data.train), size, drop_last=drop_last)

    def evaluation(self, examples: Examples, size: int, share: slice = slice(None)) -> Iterator[Batch]:
        """Yield all examples, clean, longest first; or the batches of a ``share`` of them."""
        for chosen in self.evaluation_order(examples).split(size)[share]:
            yield self._batch(examples, chosen, None)

    def evaluation_order(self, examples: Examples) -> Tensor:
        """Return the indices of the examples in the order in which :meth:`evaluation` yields them."""
        return torch.arange(len(examples)) if examples.lengths is None else examples.lengths.argsort(descending=True)

    def _batch(self, examples: Examples, index: Tensor, generator: torch.Generator | None) -> Batch:
        inputs, labels = examples.batch(index, generator)
        if self.device.type != "cpu":
            inputs = without_mask_of_ones(self.model, inputs)
        moved = mapped(inputs, lambda tensor: tensor.to(self.device, non_blocking=True))
        return moved, labels.to(self.device, non_blocking=True)
