"""Full: every weight, ordinary dense training."""

import torch

from fishexp.masks.topk import Mask
from fishexp.sparse.parameter import weights
from fishexp.training.problem import Problem


def mask(problem: Problem) -> Mask:
    """Choose all entries of all weights."""
    return {name: torch.ones_like(p, dtype=torch.bool) for name, p in weights(problem.model).items()}
