"""Which weights may move: the mask that a method's scores and ``keep`` lead to."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fishexp.delta.sources import source
from fishexp.errors import FishexpError
from fishexp.masks.allocation import Per, check_per
from fishexp.masks.budget import left
from fishexp.masks.started import Started, above_threshold
from fishexp.masks.topk import LazyScores, Mask, check_scores, count, counts_by_name, split, top_k
from fishexp.masks.units import Unit
from fishexp.sparse.modules import plain
from fishexp.training.logger import Logger
from fishexp.training.problem import Problem
from fishexp.training.score_cache import ScoreCache

log = logging.getLogger(__name__)


class MaskSelector:
    """Score the weights as they are now and select those that may move; an instance is called for each new mask.

    Args:
        method: What the configuration named as the method.
        select: The method's ``scores``, or its ``mask`` if it is ``fixed``.
        fixed: Whether the method names the mask outright, whatever the weights are, and needs no ``keep``.
        keep: Fraction of all weights that may move; None for a method that names its mask.
        unit: Which entries of a weight move together.
        per: Within what scores compete.
        report_kept: Called with the number of weights that may move, of all workers together and of each worker, and
            with those of all workers by tensor, name -> [kept entries, *shape].
        cache: Of the scores; None to compute them in any case.

    Attributes:
        method: As given.
        fixed: As given.

    Raises:
        FishexpError: If ``unit`` and ``per`` do not go together.
    """

    def __init__(
        self,
        problem: Problem,
        method: str,
        select: Callable[[Problem], Any],
        keep: float | None,
        unit: Unit,
        per: Per,
        logger: Logger,
        report_kept: Callable[[int, int, dict[str, list[int]]], None],
        cache: ScoreCache | None,
        *,
        fixed: bool,
    ) -> None:
        self._problem, self._select = problem, select
        self._keep = keep
        self._unit: Unit = unit
        self._per: Per = check_per(per, unit)
        self._logger, self._report_kept, self._cache = logger, report_kept, cache
        self.method, self.fixed = method, fixed
        self._total = sum(p.numel() for p in problem.model.parameters())
        self._head = sum(problem.model.get_parameter(name).numel() for name in problem.head)
        self._last_line = ""

    def __call__(self) -> Mask:
        """Select the mask that the method names outright, or the best of its scores that ``keep`` pays for."""
        with self._logger.clock("scores"):
            if self.fixed and not self._last_line:
                log.info("%s decides by itself which weights move; keep is ignored", self.method)
            mask = self._mask()
        self._report_kept(count(mask), count(mask), counts_by_name([mask]))
        self._say_kept(count(mask), "")
        return mask

    def disjoint(self, workers: int) -> list[Mask]:
        """Select a mask for each worker; no two have an entry in common outside the head.

        Raises:
            FishexpError: If :meth:`check_disjoint` does, or ``keep`` pays for more entries than there are.
        """
        self.check_disjoint()
        with self._logger.clock("scores"):
            masks = split(self._selected(), self._paid_keep(), workers, self._problem.head, self._unit)
        counts = [count(mask) for mask in masks]
        in_all = sum(kept - self._head for kept in counts) + self._head
        most = "" if min(counts) == max(counts) else "at most "
        self._report_kept(in_all, max(counts), counts_by_name(masks))
        self._say_kept(in_all, f", {most}{max(counts):,} on each of {workers} workers")
        return masks

    def check_disjoint(self) -> None:
        """Refuse masks of the workers' own for a method that names its mask outright.

        Raises:
            FishexpError: If it does, or gives each matrix or row its share, of which nothing says how to deal it out.
        """
        if self.fixed:
            raise FishexpError(
                f"regime.masks=disjoint: method={self.method} names its weights itself; take regime.masks=same"
            )
        if self._per != "network":
            raise FishexpError(
                f"regime.masks=disjoint deals out the best of the whole network, and method.per={self._per} selects "
                "within each; take regime.masks=same or method.per=network"
            )

    def count(self, workers: int = 1) -> int:
        """Count the weights that each worker is going to move, before any mask is selected; at most so many in units.

        Args:
            workers: Workers with masks of their own; 1 if all have the same mask.

        Raises:
            FishexpError: If ``keep`` pays for too few weights, or for more than there are.
        """
        if self.fixed:
            return count(self._selected())
        return left(self._paid_keep(), self._total, self._head, self._problem.head, workers) + self._head

    def _mask(self) -> Mask:
        if self.fixed:
            return self._selected()
        selected = self._selected()
        if not isinstance(selected, Started):
            return top_k(selected, self._paid_keep(), self._problem.head, self._unit, self._per)
        if self._problem.as_original:
            mask = above_threshold(selected, self._paid_keep(), self._problem.head)
        else:
            mask = top_k(selected, self._paid_keep(), self._problem.head, self._unit, self._per)
        return Started(mask, selected.start)

    def _selected(self) -> Any:
        """Return what the method selects in the model as it is, whose weights are its own while it looks.

        Raises:
            FishexpError: If the method changes a weight, or returns no scores or no mask of these weights. It may move
                running statistics, as the original FISH does.
        """
        cache, self._cache = self._cache, None  # for the first mask: the weights of later ones are of this run alone
        with plain(self._problem.model):
            parameters = dict(self._problem.model.named_parameters())
            before = source(parameters).fingerprints()
            key = cache.key(self._problem, before) if cache else ""
            if cache and (scores := cache.read(key, self._problem)) is not None:
                return scores
            start = time.perf_counter()
            selected = self._select(self._problem)
            seconds = time.perf_counter() - start
            after = source(parameters).fingerprints()
        for name in before:
            if before[name] != after[name]:
                raise FishexpError(
                    f"method={self.method} has changed {name}; it may look at the model, and has to leave it as it is"
                )
        if not isinstance(selected, LazyScores):
            self._check(selected, parameters)
        if cache:
            cache.write(key, selected, self._problem, seconds)
        return selected

    def _check(self, selected: Any, parameters: Mapping[str, nn.Parameter]) -> None:
        """Refuse what a method returns that is not for the weights of this model, with what it should be."""
        kind = "mask" if self.fixed else "scores"
        if not self.fixed:
            check_scores(selected)
        elif not isinstance(selected, Mapping) or not all(isinstance(kept, Tensor) for kept in selected.values()):
            raise FishexpError(f"method={self.method}: a mask is a mapping from parameter names to bool tensors")
        for name, tensor in selected.items():
            what = f"method={self.method}: {kind}[{name!r}]"
            if name not in parameters:
                raise FishexpError(f"{what}: the model has no such parameter; named_parameters() has its names")
            if (own := parameters[name].shape) != tensor.shape:
                raise FishexpError(
                    f"{what} is of the shape {tuple(tensor.shape)}, and the weight of {tuple(own)}; give one for each "
                    "entry: expand_as(weight)"
                )
            if self.fixed and tensor.dtype != torch.bool:
                dtype = str(tensor.dtype).removeprefix("torch.")
                raise FishexpError(f"{what} is {dtype}; a mask is bool, true where a weight may move")

    def _paid_keep(self) -> float:
        assert self._keep is not None  # check_settings: only a method with a mask goes without
        return self._keep

    def _say_kept(self, in_all: int, details: str) -> None:
        units = "" if self._unit == "entry" else f" in {self._unit}s"
        units += "" if self._per == "network" else f", a share of each {self._per}"
        line = f"{in_all:,} of {self._total:,} weights may move{units} ({in_all / self._total:.3%}){details}"
        if line != self._last_line:  # later masks say the same
            self._logger.say(line)
        self._last_line = line
