"""Random: every weight is as likely to move as any other. A method has to beat this baseline."""

import torch

from fishexp.masks.random_masks import random_scores
from fishexp.masks.topk import Scores
from fishexp.sparse.parameter import weights
from fishexp.training.problem import Problem


def scores(problem: Problem) -> Scores:
    """Score weights by independent uniform numbers, drawn from a single seed by which a delta can name the mask."""
    seed = int(torch.randint(2**62, (), generator=problem.generator))
    return random_scores({name: p.shape for name, p in weights(problem.model).items()}, seed)
