"""Random: every weight is as likely to move as any other. A method has to beat this baseline."""

import torch

from fishexp.masks.allocation import AllocationSettings
from fishexp.masks.random_masks import random_scores
from fishexp.masks.topk import Scores
from fishexp.masks.units import Unit, unit_shape
from fishexp.sparse.parameter import weights
from fishexp.training.problem import Problem

# keys of the yaml that are used after `scores` is called
RUN_SETTINGS = AllocationSettings


def scores(problem: Problem, *, unit: Unit) -> Scores:
    """Score weights by independent uniform numbers, drawn from a single seed by which a delta can name the mask.

    Args:
        unit: Its entries have a number in common. The mean of numbers of their own would be the nearer to a half the
            larger a unit is, so that only small ones would be the best.
    """
    seed = int(torch.randint(2**62, (), generator=problem.generator))
    shapes = {name: p.shape for name, p in weights(problem.model).items()}
    drawn = random_scores({name: unit_shape(shape, unit) for name, shape in shapes.items()}, seed)
    return drawn if unit == "entry" else {name: score.expand(shapes[name]) for name, score in drawn.items()}
