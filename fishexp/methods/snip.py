"""SNIP: weights matter as much as the loss would change without them (Lee, Ajanthan & Torr, 2019, arXiv:1810.02340)."""

from typing import Annotated

from annotated_types import Ge

from fishexp.masks.allocation import SelectionSettings
from fishexp.masks.topk import Scores
from fishexp.sparse.parameter import weights
from fishexp.training.problem import Problem
from fishexp.training.scoring import mean_gradient

# keys of the yaml that are used after `scores` is called
RUN_SETTINGS = SelectionSettings
# as long as some steps of training do, so that runs with the same weights and examples share them
SCORES_TAKE_LONG = True


def scores(problem: Problem, *, samples: Annotated[int, Ge(1)]) -> Scores:
    """Score weights by |w g|, with the gradient g of the mean loss: to first order, the loss changes by it at w = 0.

    Weights that are zero are never chosen for their scores, so that biases and fresh layers that begin at zero stay.

    Args:
        samples: Number of training examples; all of them if there are fewer.
    """
    parameters = weights(problem.model)
    return {name: (parameters[name].detach() * g).abs() for name, g in mean_gradient(problem, samples).items()}
