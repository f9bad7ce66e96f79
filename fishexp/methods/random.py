"""Random: every weight is as likely as any other, the baseline that a method has to beat."""

import torch

from fishexp.kept import weights
from fishexp.masks import Scores
from fishexp.problem import Problem


def scores(problem: Problem) -> Scores:
    """Independent uniform numbers."""
    return {name: torch.rand(p.shape, generator=problem.generator) for name, p in weights(problem.model).items()}
