"""Random: every weight is as likely as any other, the baseline that a method has to beat."""

import torch

from fishexp.kept import weights
from fishexp.masks import Scores, random_scores
from fishexp.problem import Problem


def scores(problem: Problem) -> Scores:
    """Independent uniform numbers, all from one seed, by which a delta can name the mask."""
    seed = int(torch.randint(2**62, (), generator=problem.generator))
    return random_scores({name: p.shape for name, p in weights(problem.model).items()}, seed)
