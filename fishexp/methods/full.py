"""Full: every weight, ordinary dense training."""

from collections.abc import Collection

import torch
from torch import nn

from fishexp.masks.topk import Mask
from fishexp.methods import Outline
from fishexp.sparse.parameter import weights
from fishexp.training.problem import Problem


def outline(network: nn.Module, head: Collection[str], keep: float | None) -> Outline:
    """Count the entries that :func:`mask` chooses, by the shapes of a network alone."""
    count = sum(p.numel() for p in weights(network).values())
    return Outline(trains=count, changes=count)


def mask(problem: Problem) -> Mask:
    """Choose all entries of all weights."""
    return {name: torch.ones_like(p, dtype=torch.bool) for name, p in weights(problem.model).items()}
