"""Units of a weight: entries that a mask keeps together or not at all; their gradient is a narrow dense product.

A weight is read as the matrix that its layer multiplies by, with the outputs in dimension 0 and the inputs in dimension
1, as in Linears, convolutions and embeddings:

- ``row``: ``weight[o]``, all weights of an output: a row of a Linear, a filter of a convolution, a token's embedding.
- ``column``: the weights of one input number: ``weight[:, i]`` of a matrix, ``weight[:, i, y, x]`` of a convolution.
- ``channel``: ``weight[:, i]``: an input channel with all its kernel positions; of a matrix the same as ``column``.
- ``entry``, and every weight of one dimension or none: each entry is a unit of its own.

Only the shape counts, since scores know no layers. So in a convolution in groups ``weight[:, i]`` is the i-th input of
*every* group, which leaves all groups as narrow; and where a module has its outputs elsewhere (transposed convolutions,
GPT-2's ``Conv1D``) rows and columns change places.
"""

import logging
from collections.abc import Mapping, Sequence
from heapq import heapreplace
from math import prod
from typing import Any, Literal, TypeAlias, TypedDict, get_args

import torch
from torch import Tensor

from fishexp.errors import FishexpError

log = logging.getLogger(__name__)

Unit: TypeAlias = Literal["entry", "row", "column", "channel"]


class UnitSettings(TypedDict):
    """Name the key of a method's yaml that says which entries of a weight move together."""

    unit: Unit


def check_unit(unit: Any) -> Unit:
    """Return ``unit`` itself, the name of a unit.

    Raises:
        FishexpError: If there is no such unit.
    """
    if unit not in get_args(Unit):
        raise FishexpError(f"unit={unit!r} is none of {', '.join(get_args(Unit))}")
    return unit


def unit_shape(shape: Sequence[int], unit: Unit) -> tuple[int, ...]:
    """Return the shape of a tensor with a number for each unit of a weight, which broadcasts to the weight's shape."""
    if unit == "entry" or len(shape) < 2 or not prod(shape):
        return tuple(shape)
    ones = (1,) * (len(shape) - 2)
    return {"row": (shape[0], 1, *ones), "column": (1, *shape[1:]), "channel": (1, shape[1], *ones)}[unit]


def unit_means(scores: Mapping[str, Tensor], unit: Unit) -> dict[str, Tensor]:
    """Compute the mean score of each unit: name -> float64 on the CPU, in the shape that :func:`unit_shape` returns.

    Sums are in float64 and in an order that depends on the shape only: the same bits with any number of threads.
    """
    return {name: _means(score.detach().cpu(), unit_shape(score.shape, unit)) for name, score in scores.items()}


def _means(score: Tensor, shape: Sequence[int]) -> Tensor:
    total = score.to(torch.float64, copy=True)
    for dim in range(total.ndim):
        while total.shape[dim] > shape[dim]:  # add the second half to the first
            length, half = total.shape[dim], total.shape[dim] // 2
            total.narrow(dim, 0, half).add_(total.narrow(dim, length - half, half))
            total = total.narrow(dim, 0, length - half)
    return total / (score.numel() // max(total.numel(), 1))


def deal_units(
    means: Mapping[str, Tensor], like: Mapping[str, Tensor], unit: Unit, budgets: Sequence[int]
) -> list[dict[str, Tensor]]:
    """Select the units of the highest mean scores, for one worker or a share for each of several.

    Units compete over all layers by their *mean* score: a mask pays for every entry alike, so what counts is what a
    unit brings for each entry that it takes, as in the greedy solution of a knapsack problem. By the plain sum a large
    unit would win for its size alone. Going through the units in this order, of equal ones in the order of ``means``,
    each goes to the worker with the most left of its budget, of equal ones to the first. One that fits in nobody's is
    passed over, and smaller ones behind it may still fill what is left. For units of an entry each, worker i of n gets
    the ranks i, i + n, ...

    Args:
        means: As :func:`unit_means` returns them, without NaN.
        like: name -> a tensor of the weight's shape, on the device where its mask is wanted.
        budgets: Of each worker: how many entries it may get at most.

    Returns:
        For each worker: name of ``means`` -> bool tensor of the weight's shape. No entry is in two of them.

    Raises:
        FishexpError: If a worker with a budget gets no unit.

    Source:
        Dantzig, "Discrete-variable extremum problems", Operations Research 5 (1957), for the greedy order; Liu et al.,
        "Group Fisher Pruning for Practical Network Compression", arXiv:2108.00708, divide Fisher scores by size, too.
    """
    score = torch.cat([mean.flatten() for mean in means.values()]) if means else torch.zeros(0, device="cpu")
    counts = [mean.numel() for mean in means.values()]
    sizes = [like[name].numel() // mean.numel() for name, mean in means.items() for _ in range(mean.numel())]
    owners = [-1] * len(sizes)
    budgets_left = [(-budget, worker) for worker, budget in enumerate(budgets)]  # a heap: the most is first
    for index in score.argsort(descending=True, stable=True).tolist():
        most, worker = budgets_left[0]
        if sizes[index] <= -most:
            heapreplace(budgets_left, (most + sizes[index], worker))
            owners[index] = worker
        elif not most:
            break
    for worker, budget in enumerate(budgets):
        if budget and worker not in owners:
            whose = f" of worker {worker}" if len(budgets) > 1 else ""
            raise FishexpError(
                f"unit={unit}: no unit is left that fits in the {budget} weights{whose} that keep pays for beside the "
                "ones that are always kept; raise keep"
            )
    owner = torch.tensor(owners, dtype=torch.int64, device="cpu")
    _warn_of_zeros(score, owner >= 0, unit)
    masks: list[dict[str, Tensor]] = []
    for worker in range(len(budgets)):
        chosen = zip(means.items(), (owner == worker).split(counts), strict=True)
        masks.append(
            {n: c.view(mean.shape).expand(like[n].shape).to(like[n].device, copy=True) for (n, mean), c in chosen}
        )
    return masks


def _warn_of_zeros(score: Tensor, selected: Tensor, unit: Unit) -> None:
    """Warn if some units that score 0 are selected by their position, because no more score above 0."""
    above, zero = score > 0, score == 0
    by_position, missed = int((zero & selected).sum()), bool((zero & ~selected).any())
    if by_position and missed and not (above & ~selected).any() and (above.any() or zero.all()):
        log.warning(
            "only %d of the %d units to select score above 0 (unit=%s); of the %d that score 0, the first %d that fit "
            "are selected too: lower keep, or score more examples",
            int(above.sum()), int(selected.sum()), unit, int(zero.sum()), by_position,
        )  # fmt: skip
