"""Scores in, mask out: which weights may move."""

from collections.abc import Collection, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from fishexp.budget import budget
from fishexp.errors import FishexpError

Scores: TypeAlias = Mapping[str, Tensor]  # importance of each weight, in the parameter's shape
Mask: TypeAlias = dict[str, Tensor]  # true where a weight may move, in the parameter's shape


def top_k(scores: Scores, keep: float, always: Collection[str] = ()) -> Mask:
    """Keep the highest-scoring fraction of all weights, over all layers at once.

    Args:
        scores: Importance of each weight. Only the order matters, not the scale.
        keep: Fraction of *all* weights to keep, in (0, 1]; 0.005 is 0.5 %.
        always: Parameters kept whole, such as a new classifier head. They are paid for out of ``keep``.

    Returns:
        name -> bool tensor of the parameter's shape, on its device. Exactly ``floor(keep * total)`` entries are true,
        ``keep`` read as a decimal. Of equal scores the first in the order of ``scores`` wins.

    Raises:
        FishexpError: If ``keep`` is out of range or too small to pay for ``always``, ``always`` names an unknown
            parameter, or a score is NaN.

    Source:
        Sung, Nair & Raffel, "Training Neural Networks with Fixed Sparse Masks", arXiv:2111.09839.
    """
    unknown = sorted(set(always) - set(scores))
    if unknown:
        raise FishexpError(f"always names {unknown[0]}, which has no scores; the scores cover {len(scores)} parameters")
    total = sum(score.numel() for score in scores.values())
    kept = budget(keep, total)
    head = sum(scores[name].numel() for name in set(always))
    if kept < max(head, 1):
        needs = f"fewer than the {head} of {', '.join(always)}, which are always kept" if head else "less than one"
        raise FishexpError(f"keep={keep} pays for {kept} of {total} weights, {needs}; raise keep")

    rest = {name: score for name, score in scores.items() if name not in always}
    chosen = _largest(rest, kept - head)
    return {
        name: chosen[name] if name in chosen else torch.ones_like(scores[name], dtype=torch.bool) for name in scores
    }


def _largest(scores: Scores, k: int) -> Mask:
    """Exactly ``k`` true entries: all above the k-th largest score, then as many equal to it as are left, in order."""
    if k == 0:
        return {name: torch.zeros_like(score, dtype=torch.bool) for name, score in scores.items()}
    dtype = torch.float64 if any(score.dtype == torch.float64 for score in scores.values()) else torch.float32
    flats = {name: score.detach().flatten().to(dtype) for name, score in scores.items()}
    for name, flat in flats.items():
        if flat.isnan().any():
            raise FishexpError(
                f"the scores of {name} hold NaN: the model or its loss is broken on the scoring examples"
            )
    values = torch.cat([flat.cpu() for flat in flats.values()]).numpy()
    values.partition(values.size - k)  # a selection, not a sort: linear in the number of weights
    threshold = values[values.size - k].item()

    ties = k - sum(int((flat > threshold).sum()) for flat in flats.values())
    mask = {}
    for name, flat in flats.items():
        equal = flat == threshold
        if ties < int(equal.sum()):
            equal &= equal.cumsum(0) <= ties
        ties -= int(equal.sum())
        mask[name] = ((flat > threshold) | equal).view(scores[name].shape)
    return mask


def count(mask: Mask) -> int:
    """Number of weights that may move."""
    return sum(int(entries.sum()) for entries in mask.values())
