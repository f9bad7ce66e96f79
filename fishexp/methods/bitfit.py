"""Bit-Fit: every bias and the head (Ben Zaken, Ravfogel & Goldberg, 2022)."""

import torch

from fishexp.masks.topk import Mask
from fishexp.sparse.parameter import weights
from fishexp.training.problem import Problem


def mask(problem: Problem) -> Mask:
    """Choose the head and all parameters named ``bias``, the shifts of normalisation layers among them."""
    return {
        name: torch.full_like(p, name.rpartition(".")[2] == "bias" or name in problem.head, dtype=torch.bool)
        for name, p in weights(problem.model).items()
    }
