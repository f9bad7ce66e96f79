"""Which epoch of a run is the best, by held-out training examples; its weights are kept, and training may end early."""

from collections.abc import Mapping, Sequence
from typing import Any, NewType

import torch
from torch import Tensor, nn

from fishexp.data.datasets import Examples, Metrics
from fishexp.data.directions import LESS_IS_BETTER
from fishexp.errors import FishexpError, nearest
from fishexp.training.data_parallel import value_of_first
from fishexp.training.problem import Problem

SET = "validation"  # last part of the names of metrics on the examples that choose
# name of a metric: another type than a text, which in a configuration may name a file
MetricName = NewType("MetricName", str)
BEST = "best."  # prefix of the best epoch's tensors in a snapshot


class EpochChoice:
    """Follow how the epochs of a run do on the data set's validation examples.

    The first of equal epochs is the best. One whose metric is undefined is better than none.

    Args:
        planned: Epochs that are to be trained.
        patience: Epochs without a better one after which training stops; None never stops it.
        best: Take the weights of the best epoch, which are kept until then, and not those of the last.
        metric: By which an epoch is better; None for the data set's headline metric.

    Attributes:
        sets: The examples that choose, for :func:`fishexp.training.evaluate.evaluate`.

    Raises:
        FishexpError: If the data set has no such metric.
    """

    def __init__(self, problem: Problem, planned: int, patience: int | None, best: bool, metric: str | None) -> None:
        if problem.data.validation is None:
            raise FishexpError("there are no examples to choose an epoch by; give the data set some with_validation")
        self._problem, self._planned, self._patience, self._takes_best = problem, planned, patience, best
        self.sets: dict[str, Examples] = {SET: problem.data.validation}
        names = [*problem.data.metric_names(problem.data.validation.labels), "loss"]
        if metric is not None and metric not in names:
            raise FishexpError(f"regime.metric={metric} is no metric of this data set{nearest(metric, names)}")
        self._metric = names[0] if metric is None else metric
        self._trained, self._best, self._value = 0, 0, None
        self._tensors: list[Tensor] = []  # of the best epoch, on the CPU

    @property
    def stopped(self) -> bool:
        """Tell whether the last epochs were none better, as many as patience has."""
        return self._patience is not None and self._trained - self._best >= self._patience

    def note(self, epoch: int, metrics: Metrics, parameters: Sequence[nn.Parameter]) -> None:
        """Note how an epoch did, and keep what it has trained if it is the best so far.

        Args:
            parameters: Those of the optimiser. Beside them only buffers move.
        """
        value = value_of_first(self._problem, metrics[f"{self._metric}_{SET}"])
        self._trained = epoch
        if self._best == 0 or self._is_better(value):
            self._best, self._value = epoch, value
            if self._takes_best:
                self._tensors = [tensor.detach().to("cpu", copy=True) for tensor in self._moving(parameters)]

    @torch.no_grad()
    def take(self, parameters: Sequence[nn.Parameter]) -> list[str]:
        """Give the model the weights and buffers of the best epoch if these are to be taken; write lines about it."""
        for tensor, kept in zip(self._moving(parameters), self._tensors, strict=self._takes_best):
            tensor.copy_(kept)
        lines = []
        if self._trained < self._planned:
            since = self._trained - self._best
            none_better = f"none better than epoch {self._best} in {since} epoch{'s' * (since > 1)}"
            lines.append(f"stopped after {self._trained} of {self._planned} epochs: {none_better}")
        value = "undefined" if self._value is None else f"{self._value:.4g}"
        held_out = f"{len(self.sets[SET]):,} held-out training examples"
        if self._takes_best or self._best == self._trained:
            taken = "its weights are taken"
        else:
            taken = f"those of the last, {self._trained}, are taken: regime.best=true takes the best"
        return [*lines, f"epoch {self._best} is the best by {self._metric} on {held_out}, {value}; {taken}"]

    def about(self) -> dict[str, Any]:
        """Return what the record says of the choice."""
        return {
            "planned": self._planned,
            "trained": self._trained,
            "taken": self._best if self._takes_best else self._trained,
            "best": self._best,
            "metric": self._metric,
            "value": self._value,
            "validation_examples": len(self.sets[SET]),
        }

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` needs beside :meth:`tensors`, in JSON's types."""
        return {"trained": self._trained, "best": self._best, "value": self._value}

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights and buffers of the best epoch so far, for a snapshot."""
        return {f"{BEST}{number}": tensor.contiguous() for number, tensor in enumerate(self._tensors)}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on where a snapshot was taken."""
        self._trained, self._best, self._value = state["trained"], state["best"], state["value"]
        self._tensors = [tensors[f"{BEST}{number}"] for number in range(sum(name.startswith(BEST) for name in tensors))]

    def _is_better(self, value: float | None) -> bool:
        if value is None or self._value is None:
            return value is not None
        return value < self._value if self._metric in LESS_IS_BETTER else value > self._value

    def _moving(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        return [*parameters, *self._problem.model.buffers()]
