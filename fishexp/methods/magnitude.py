"""Magnitude: weights matter by their absolute value before training."""

from typing import Literal

from fishexp.masks.allocation import SelectionSettings
from fishexp.masks.topk import Scores
from fishexp.sparse.parameter import weights
from fishexp.training.problem import Problem

# keys of the yaml that are used after `scores` is called
RUN_SETTINGS = SelectionSettings


def scores(problem: Problem, *, order: Literal["largest", "smallest"]) -> Scores:
    """Score weights by their absolute values, or by the negatives of these if the smallest are to move."""
    sign = 1 if order == "largest" else -1
    return {name: p.detach().abs() * sign for name, p in weights(problem.model).items()}
