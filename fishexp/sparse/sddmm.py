"""Products formed at kept entries, which kinds of layers share: the sampled product (SDDMM) and a submatrix's."""

import warnings
from functools import cache

import torch
from torch import Tensor

from fishexp.sparse.entry_memory import entries_at
from fishexp.sparse.parameter import SparseParameter

# columns that are transposed together
TRANSPOSED_COLUMNS = 8


@cache
def is_available() -> bool:
    """Tell whether this build of torch has the sampled product.

    Trying it also uses up torch's warnings, given once in a process: CSR is in beta, invariants are not checked.
    """
    ones = torch.ones(1, 1, device="cpu")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pattern = torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1), device="cpu", check_invariants=False)
            torch.sparse.sampled_addmm(pattern, ones, ones)
    except RuntimeError:
        return False
    return True


def sampled_zeros(kept: SparseParameter, offset: int, left: Tensor, right: Tensor) -> Tensor:
    """Return zeros at the kept entries of a kernel offset, to which sampled products can be added.

    Args:
        left, right: (outputs, length) and (inputs, length), such as these will be factors of.
    """
    is_available()  # for its trial, which silences torch's warnings of CSR
    columns = kept.col_indices[kept.offset_starts[offset] : kept.offset_starts[offset + 1]]
    zeros = left.new_zeros(len(columns), dtype=sddmm_dtype(left))
    size = len(left), len(right)
    return torch.sparse_csr_tensor(kept.crow_indices[offset], columns, zeros, size, check_invariants=False)


def transposed(matrix: Tensor) -> Tensor:
    """Return the transpose with contiguous rows, in the type of the sampled product.

    Formed as the product with blocks of the unit matrix, which is exact: torch's own transposing copy uses one thread
    only.
    """
    matrix = matrix.to(sddmm_dtype(matrix))
    length, width = matrix.shape
    if width % TRANSPOSED_COLUMNS or not length:
        return matrix.t().contiguous()
    unit = torch.eye(TRANSPOSED_COLUMNS, dtype=matrix.dtype, device=matrix.device)
    unit = unit.expand(width // TRANSPOSED_COLUMNS, TRANSPOSED_COLUMNS, TRANSPOSED_COLUMNS)
    return torch.bmm(unit, matrix.reshape(length, -1, TRANSPOSED_COLUMNS).permute(1, 2, 0)).view(width, length)


def sddmm_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type in which the sampled product takes the tensor's numbers."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def submatrix_factors(kept: SparseParameter, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of the dense product of the lines that hold kept entries.

    Args:
        g: (length, outputs, ...), gradient of the layer's output.
        x: (length, inputs, ...), the layer's input.
    """
    lines = kept.submatrix_lines
    assert lines is not None
    return (g, x.index_select(1, lines)) if kept.by_column else (g.index_select(1, lines), x)


def gather_from_submatrix(kept: SparseParameter, block: Tensor) -> Tensor:
    """Return the kept entries of the product of :func:`submatrix_factors`, (outputs, inputs, ...)."""
    return entries_at(block, kept.submatrix_places()).to(kept.values.dtype)
