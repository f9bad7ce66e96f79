"""Gradient: weights matter as much as the loss falls with a small step (Liu et al., 2024, arXiv:2412.13488)."""

from typing import Annotated

from annotated_types import Ge

from fishexp.masks.allocation import SelectionSettings
from fishexp.masks.topk import Scores
from fishexp.training.problem import Problem
from fishexp.training.scoring import mean_gradient

# keys of the yaml that are used after `scores` is called
RUN_SETTINGS = SelectionSettings
# as long as some steps of training do, so that runs with the same weights and examples share them
SCORES_TAKE_LONG = True


def scores(problem: Problem, *, samples: Annotated[int, Ge(1)]) -> Scores:
    """Score weights by the absolute gradient of the mean loss: |g|. Examples whose gradients are opposed cancel out.

    Args:
        samples: Number of training examples; all of them if there are fewer.
    """
    return {name: g.abs() for name, g in mean_gradient(problem, samples).items()}
