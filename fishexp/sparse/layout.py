"""Where the kept entries of a weight stand in the matrices that its layer multiplies by."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# share of a matrix's rows or columns; if more than this of both hold kept entries, no submatrix is worth its selection
MAX_SUBMATRIX_SHARE = 0.4


class Layout(NamedTuple):
    """Place the kept entries of a weight in the matrices that its layer multiplies by, one for each kernel offset.

    Attributes:
        offset: (kept,) the matrix of each kept entry; all 0 for a layer without a kernel.
        row: (kept,) its row there: the output that it adds to.
        column: (kept,) its column there: the input that it is multiplied by.
        shape: Numbers of matrices, rows and columns.
        groups: Parts into which a convolution divides its channels.
    """

    offset: Tensor
    row: Tensor
    column: Tensor
    shape: tuple[int, int, int]
    groups: int = 1


class LayerKind(NamedTuple):
    """Describe how layers of a kind train through the kept entries of their weights.

    Attributes:
        forward: (module, *inputs) -> output; takes the place of the class's own ``forward``.
        layout: (module, positions, weight's shape) -> the layout of the kept entries at these ascending positions.
    """

    forward: Callable[..., Tensor]
    layout: Callable[[Any, Tensor, torch.Size], Layout]


def csr(layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Return the entries' order matrix by matrix, (matrices, rows + 1) starts of rows, and each entry's column."""
    matrices, rows, _ = layout.shape
    line = layout.offset * rows + layout.row
    order = line.argsort(stable=True)
    counts = torch.bincount(line, minlength=matrices * rows).view(matrices, rows)
    return order, F.pad(counts.cumsum(1), (1, 0)), layout.column[order]


def submatrix_lines(starts: Tensor, columns: Tensor, layout: Layout) -> tuple[Tensor | None, bool]:
    """Return the columns (true) or rows (false) with kept entries, whichever are the smaller share; None if large."""
    if layout.groups > 1:
        return None, False  # some channels of a group are no convolution of their own
    rows, used = starts.diff(dim=1).any(0).nonzero().squeeze(1), columns.unique()
    shares = len(rows) / layout.shape[1], len(used) / layout.shape[2]
    by_column = shares[1] <= shares[0]
    return (None if min(shares) > MAX_SUBMATRIX_SHARE else used if by_column else rows), by_column


def matrix_layout(module: nn.Module, positions: Tensor, shape: torch.Size) -> Layout:
    """Lay out the kept entries of a weight that is itself the matrix of outputs by inputs."""
    return Layout(torch.zeros_like(positions), positions // shape[1], positions % shape[1], (1, shape[0], shape[1]))
