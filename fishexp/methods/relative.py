"""Relative gradient: weights matter by their gradient beside their size (Agarwal et al., 2025, arXiv:2408.14470)."""

from typing import Annotated

from annotated_types import Ge, Gt, Le

from fishexp.masks.allocation import SelectionSettings
from fishexp.masks.topk import Scores
from fishexp.sparse.parameter import weights
from fishexp.training.problem import Problem
from fishexp.training.scoring import mean_gradient

# keys of the yaml that are used after `scores` is called
RUN_SETTINGS = SelectionSettings
# as long as some steps of training do, so that runs with the same weights and examples share them
SCORES_TAKE_LONG = True


def scores(
    problem: Problem,
    *,
    samples: Annotated[int, Ge(1)],
    exponent: Annotated[float, Ge(0), Le(1)],
    epsilon: Annotated[float, Gt(0)],
) -> Scores:
    """Score weights by |g| / (|w| + epsilon) ** exponent, with the gradient g of the mean loss.

    Args:
        samples: Number of training examples; all of them if there are fewer.
        exponent: From 0, which is the rule ``gradient``, to 1.
        epsilon: Size of a weight below which its own size counts little, so that weights that are zero can be compared.
    """
    parameters = weights(problem.model)
    gradients = mean_gradient(problem, samples)
    return {name: g.abs() / (parameters[name].detach().abs() + epsilon) ** exponent for name, g in gradients.items()}
