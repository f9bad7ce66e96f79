"""Allocation of a mask's budget: to the whole network at once, or the same share to each matrix or each output row."""

import logging
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, TypedDict, get_args

import torch
from torch import Tensor

from fishexp.errors import FishexpError
from fishexp.masks.selection import CHUNK, orders, ranking, select_largest
from fishexp.masks.units import Unit, UnitSettings

log = logging.getLogger(__name__)

Per: TypeAlias = Literal["network", "matrix", "row"]


class AllocationSettings(TypedDict):
    """Name the key of a method's yaml that says within what scores compete for the budget."""

    per: Per


class SelectionSettings(UnitSettings, AllocationSettings):
    """Name the keys of a method's yaml that say how its scores become a mask."""


def check_per(per: Any, unit: Unit = "entry") -> Per:
    """Return ``per`` itself, the name of an allocation.

    Raises:
        FishexpError: If there is no such allocation, or it has no meaning for units larger than entries.
    """
    if per not in get_args(Per):
        raise FishexpError(f"per={per!r} is none of {', '.join(get_args(Per))}")
    if per != "network" and unit != "entry":
        raise FishexpError(
            f"per={per} shares out single entries, and unit={unit} keeps whole {unit}s; take one of both"
        )
    return per


def select_shares(scores: Mapping[str, Tensor], count: int, per: Per) -> dict[str, Tensor]:
    """Select ``count`` entries so that each matrix, or each output row, gets its share of them, its best ones.

    - ``matrix``: a tensor of n of all N entries gets ``count * n / N`` of them, rounded down.
    - ``row``: every row of every tensor (``weight[o]``, all weights of an output) gets the same number of entries, all
      of its entries where it has fewer.

    What rounding leaves over goes to the highest scores among the next best of each: at most one to each matrix that
    was rounded down, or to each row that has entries left. Tensors of one dimension or none are a matrix of one row. Of
    equal scores the first in the order of ``scores`` wins.

    Args:
        scores: name -> scores, without NaN.
        count: At most as many as there are scores.
        per: ``matrix`` or ``row``.

    Returns:
        name -> bool tensor of the scores' shape, on their device; exactly ``count`` entries are true.

    Source:
        Zhang et al., "NeuroAda", arXiv:2510.18940, and Zhang et al., "Gradient-based Parameter Selection for
        Efficient Fine-Tuning", arXiv:2312.10136, select the same number of weights for each output.
    """
    chosen = _matrix_shares(scores, count) if per == "matrix" else _row_shares(scores, count)
    _warn_of_zeros(scores, chosen, per)
    return chosen


def _matrix_shares(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    total = sum(score.numel() for score in scores.values())
    mask, next_best = {}, {}
    for name, score in scores.items():
        share, rest = divmod(count * score.numel(), max(total, 1))
        mask[name] = select_largest({name: score}, share).mask[name]
        if rest:
            one_more = select_largest({name: score}, share + 1).mask[name]
            next_best[name] = (one_more & ~mask[name]).flatten().nonzero().squeeze(1)
    _add_best(scores, mask, next_best, count)
    return mask


def _row_shares(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    shapes = {name: (score.shape[0], -1) if score.dim() > 1 else (1, -1) for name, score in scores.items()}
    rows = {name: score.detach().reshape(shapes[name]) for name, score in scores.items() if score.numel()}
    share = _row_share(rows, count)
    mask = {name: torch.zeros(score.shape, dtype=torch.bool, device=score.device) for name, score in scores.items()}
    next_best = {}
    for name, score in rows.items():
        length, found = score.shape[1], []
        at_once = max(CHUNK // length, 1)
        for start in range(0, len(score), at_once):
            order = orders(score[start : start + at_once])
            mask[name].view(score.shape)[start : start + at_once].scatter_(1, order[:, :share], True)
            if share < length:
                first = torch.arange(start, start + len(order), device=order.device) * length
                found.append(first + order[:, share])
        if found:
            next_best[name] = torch.cat(found)
    _add_best(scores, mask, next_best, count)
    return mask


def _row_share(rows: Mapping[str, Tensor], count: int) -> int:
    """Return the largest number of entries that every row can get, or all of its own, out of ``count``."""
    low, high = 0, max((score.shape[1] for score in rows.values()), default=0)
    while low < high:
        middle = (low + high + 1) // 2
        takes = sum(len(score) * min(middle, score.shape[1]) for score in rows.values())
        low, high = (middle, high) if takes <= count else (low, middle - 1)
    return low


def _add_best(
    scores: Mapping[str, Tensor], mask: Mapping[str, Tensor], next_best: Mapping[str, Tensor], count: int
) -> None:
    """Fill ``mask`` up to ``count`` entries with the highest scores at the positions in ``next_best``."""
    left = count - sum(int(entries.count_nonzero()) for entries in mask.values())
    if not left:
        return
    order = ranking([scores[name].detach().flatten()[index] for name, index in next_best.items()])
    taken = torch.zeros(len(order), dtype=torch.bool, device="cpu")
    taken[order[:left]] = True
    lengths = [len(index) for index in next_best.values()]
    for (name, index), best in zip(next_best.items(), taken.split(lengths), strict=True):
        mask[name].view(-1)[index[best.to(index.device)]] = True


def _warn_of_zeros(scores: Mapping[str, Tensor], mask: Mapping[str, Tensor], per: Per) -> None:
    """Warn if entries that score 0 are selected, as their matrix or row has no better ones left; not if 0 is best."""
    selected = sum(int(entries.count_nonzero()) for entries in mask.values())
    zeros = sum(int((scores[name][entries] == 0).count_nonzero()) for name, entries in mask.items())
    if zeros and not _is_zero_best(scores):
        log.warning(
            "%d of the %d entries selected score 0, the first of their %s (per=%s): it has too few that score more",
            zeros, selected, per, per,
        )  # fmt: skip


def _is_zero_best(scores: Mapping[str, Tensor]) -> bool:
    """Tell whether 0 is the highest of several scores, as where the smallest weights are to move."""
    floats = [score.detach().float() for score in scores.values()]  # of some types torch compares nothing
    return not any(bool((score > 0).any()) for score in floats) and any(bool((score < 0).any()) for score in floats)
