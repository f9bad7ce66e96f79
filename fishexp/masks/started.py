"""Masks whose kept entries begin to train elsewhere than in the model: where learning the mask has brought them."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fishexp.masks.budget import budget

# width of the interval in which the authors of diff pruning look for their threshold, as they end
_WIDTH = 1e-6


class Started(dict[str, Tensor]):
    """Hold scores, or the mask that was made of them, with the values in which kept entries begin to train.

    Attributes:
        start: name -> values of the parameter's shape; those of entries that are not kept mean nothing.
    """

    def __init__(self, tensors: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self.start = start


def above_threshold(scores: Mapping[str, Tensor], keep: float, always: Collection[str]) -> dict[str, Tensor]:
    """Keep the entries that the authors' code of diff pruning keeps: those above a threshold, and all of ``always``.

    The threshold is the smallest above which at most ``keep`` of all scores are, those of ``always`` among them. It is
    found in [0, 1] by halves, to a millionth; so fewer entries are kept, or more where ``always`` has many below it.

    Source:
        dguo98/DiffPruning, 085fa7d.
    """
    most = budget(keep, sum(score.numel() for score in scores.values()))
    low, high = 0.0, 1.0
    while high - low > _WIDTH:
        middle = (low + high) / 2
        if sum(int((score > middle).sum()) for score in scores.values()) > most:
            low = middle
        else:
            high = middle
    return {
        name: torch.ones_like(score, dtype=torch.bool) if name in always else (score >= high) & (score > 0)
        for name, score in scores.items()
    }
