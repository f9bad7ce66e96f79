"""Which weights may move: what the method says of them, and what ``keep`` pays for."""

import logging
from collections.abc import Callable
from typing import Any

from fishexp.errors import FishexpError
from fishexp.masks import top_k
from fishexp.masks.budget import budget, left
from fishexp.masks.topk import Mask, count, split
from fishexp.training.logger import Logger
from fishexp.training.problem import Problem

log = logging.getLogger(__name__)


class MaskSelector:
    """Scores the weights as they are now; called, it gives the mask.

    Args:
        method: A component: its ``scores(problem)``, or its ``mask(problem)`` that needs no ``keep``.
        told: Learns how many weights may move, of all workers together and of one.

    Attributes:
        method: Its name.
        fixed: Whether the method names the mask outright, whatever the weights are.
    """

    def __init__(
        self, problem: Problem, method: Any, keep: float | None, tracker: Logger, told: Callable[[int, int], None]
    ) -> None:
        self._problem, self._method, self._keep, self._tracker, self._told = problem, method, keep, tracker, told
        self.method = method.func.__module__.rpartition(".")[2]
        self.fixed = method.func.__name__ == "mask"
        self._total = sum(p.numel() for p in problem.model.parameters())
        self._head = sum(problem.model.get_parameter(name).numel() for name in problem.head)
        self._said = ""

    def __call__(self) -> Mask:
        """The mask the method names outright, or the best of its scores that ``keep`` pays for."""
        with self._tracker.clock("scores"):
            if self.fixed and not self._said:
                log.info("%s decides by itself which weights move; keep is ignored", self.method)
            mask = self._mask()
        self._say(count(mask), count(mask), "")
        return mask

    def _mask(self) -> Mask:
        if self.fixed:
            return self._method(self._problem)
        return top_k(self._scores(1), self._paid(), always=self._problem.head)

    def count(self, workers: int = 1) -> int:
        """How many weights a worker is going to move, if so many have weights of their own.

        Raises:
            FishexpError: If ``keep`` pays for too few of them, or for more than there are.
        """
        if self.fixed:
            return count(self._method(self._problem))
        return left(self._paid(), self._total, self._head, self._problem.head, workers) + self._head

    def check_disjoint(self) -> None:
        """Whether workers can have masks of their own.

        Raises:
            FishexpError: If the method names its mask outright.
        """
        if self.fixed:
            raise FishexpError(
                f"regime.masks=disjoint: method={self.method} names its weights itself; take regime.masks=same"
            )

    def disjoint(self, workers: int) -> list[Mask]:
        """A mask for each of so many workers, with nothing but the head in common."""
        self.check_disjoint()
        with self._tracker.clock("scores"):
            masks = split(self._scores(workers), self._paid(), workers, always=self._problem.head)
        each = count(masks[0])
        self._say(workers * (each - self._head) + self._head, each, f", {each:,} on each of {workers} workers")
        return masks

    def _scores(self, workers: int) -> Any:
        self._problem.wanted = workers * max(0, budget(self._paid(), self._total) - self._head)
        return self._method(self._problem)

    def _paid(self) -> float:
        assert self._keep is not None  # check_settings: only a method with a mask goes without
        return self._keep

    def _say(self, kept: int, each: int, more: str) -> None:
        self._told(kept, each)
        line = f"{kept:,} of {self._total:,} weights may move ({kept / self._total:.3%}){more}"
        if line != self._said:  # of later masks it is the same
            self._tracker.say(line)
        self._said = line
