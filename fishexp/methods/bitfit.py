"""Bit-Fit: every bias and the head (Ben Zaken, Ravfogel & Goldberg, 2022)."""

import re
from collections.abc import Collection

import torch
from torch import nn

from fishexp.masks.topk import Mask
from fishexp.methods import Outline
from fishexp.sparse.parameter import weights
from fishexp.training.problem import Problem

# last part of a bias's name: also ``in_proj_bias`` of torch's attention, ``bias_ih_l0`` of its recurrent layers
_BIAS = re.compile(r"(.*_)?bias|bias_[ih]h(_l\d+(_reverse)?)?")


def mask(problem: Problem) -> Mask:
    """Choose the head and all biases, the shifts of normalisation layers among them."""
    return {
        name: torch.full_like(p, _is_chosen(name, problem.head), dtype=torch.bool)
        for name, p in weights(problem.model).items()
    }


def outline(network: nn.Module, head: Collection[str], keep: float | None) -> Outline:
    """Count the entries that :func:`mask` chooses, by the shapes of a network alone."""
    count = sum(p.numel() for name, p in weights(network).items() if _is_chosen(name, head))
    return Outline(trains=count, changes=count)


def _is_chosen(name: str, head: Collection[str]) -> bool:
    return _BIAS.fullmatch(name.rpartition(".")[2]) is not None or name in head
