"""LIFT: weights matter by their size after rank reduction of their matrix (Liu et al., 2025, arXiv:2506.00772)."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from fishexp.errors import FishexpError
from fishexp.masks.allocation import SelectionSettings
from fishexp.masks.topk import Scores
from fishexp.sparse.parameter import weights
from fishexp.training.problem import Problem
from fishexp.training.scoring import sum_over_workers

# keys of the yaml that are used after `scores` is called
RUN_SETTINGS = SelectionSettings
# a decomposition of each matrix, so that runs with the same weights share them
SCORES_TAKE_LONG = True


def scores(problem: Problem, *, rank: Annotated[int, Ge(1)] | None) -> Scores:
    """Score the entries of matrices by their absolute value in the best approximation of the matrix of a low rank.

    All weights that are no matrices score 0, those of convolutions too.

    Args:
        rank: None for a quarter of a matrix's smaller side. Of a matrix that has no more, its own values count.

    Raises:
        FishexpError: If the model has no matrix outside the head.
    """
    parameters = weights(problem.model)
    if not any(p.dim() == 2 for name, p in parameters.items() if name not in problem.head):
        raise FishexpError("method=lift scores matrices, and this model has none but its head; take another method")
    collectives = problem.collectives
    # by the first worker alone, as the last bits depend on the machine; what the others add is zero
    found = [
        {name: _scores(p.detach(), rank) if worker == 0 else torch.zeros_like(p) for name, p in parameters.items()}
        for worker in collectives.local_ranks
    ]
    return sum_over_workers(collectives, found)


def _scores(weight: Tensor, rank: int | None) -> Tensor:
    if weight.dim() != 2:
        return torch.zeros_like(weight)
    smaller = min(weight.shape)
    return low_rank(weight, min(rank or max(smaller // 4, 1), smaller)).abs()


def low_rank(matrix: Tensor, rank: int) -> Tensor:
    """Return the closest matrix of a rank: the part in the ``rank`` leading singular directions, computed in float64.

    The directions are eigenvectors of the smaller of its two Gram matrices, which takes a fraction of the time of a
    singular value decomposition. Squaring costs no more than the precision that float64 has beyond float32.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    exact = wide.double()
    leading = torch.linalg.eigh(exact @ exact.t()).eigenvectors[:, -rank:]  # eigenvalues ascend
    part = (leading @ (leading.t() @ exact)).to(matrix.dtype)
    return part if wide is matrix else part.t()
