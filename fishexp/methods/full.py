"""Full: every weight, ordinary dense training."""

import torch

from fishexp.kept import weights
from fishexp.masks import Mask
from fishexp.problem import Problem


def mask(problem: Problem) -> Mask:
    """All true."""
    return {name: torch.ones_like(p, dtype=torch.bool) for name, p in weights(problem.model).items()}
