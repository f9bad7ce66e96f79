"""The gradient of a Linear's kept entries, and of those only: what makes a sparse step cheaper than a dense one."""

import warnings
from functools import cache

import torch
from torch import Tensor

from fishexp.kept import Kept, Way

TOKENS = 1024  # rows of a Linear's input that `sampled` takes at once, so that both factors stay in cache
GAIN = 0.9  # a sparse way is taken where its predicted time is below this share of the dense one's

# Nanoseconds on one core of an AMD EPYC with AVX-512 (torch 2.15.0), fitted by benchmarks/ways.py: a multiply-add of
# the dense product, a number transposed for the sampled one, a multiply-add of that, and a call. More threads divide
# all alike.
PRODUCT = {torch.float64: 0.040, torch.float32: 0.0188, torch.bfloat16: 0.0041, torch.float16: 0.0041}
TRANSPOSED = {torch.float64: 0.9, torch.float32: 0.43, torch.bfloat16: 0.46, torch.float16: 0.46}
SAMPLED = 0.10
CALL = 30_000.0


def choose(kept: Kept, tokens: int, dtype: torch.dtype) -> Way:
    """The way of least predicted time for the gradient of a Linear's kept entries.

    ``sampled`` computes each entry on its own, as the product of two rows over the tokens. ``touched`` is the dense
    product of the rows and columns that hold kept entries. ``dense`` is the whole product; the kept entries are then
    gathered from it. A sparse way has to promise a gain of more than a tenth.

    CUDA takes ``dense``: a sampled product there has not been measured. So does bf16 on a processor with AMX, whose
    dense product is several times faster than the one this rule was fitted to.

    Args:
        tokens: Rows of the layer's input.
        dtype: Of the product.
    """
    if kept.weight.device.type != "cpu" or dtype not in PRODUCT:
        return "dense"
    rows, columns = kept.shape
    moved = tokens * (rows + columns)
    times: dict[Way, float] = {
        "dense": tokens * kept.weight.numel() * PRODUCT[dtype],
        "touched": tokens * rows * columns * PRODUCT[dtype] + moved * TRANSPOSED[dtype] + CALL,
    }
    if _samples() and not (dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()):
        times["sampled"] = moved * TRANSPOSED[dtype] + tokens * len(kept.positions) * SAMPLED + 2 * CALL
    best = min(times, key=times.__getitem__)
    return best if times[best] < GAIN * times["dense"] else "dense"


@cache
def _samples() -> bool:
    """Whether this build of torch has the sampled product."""
    one = torch.ones(1, 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "CSR is in beta", said once in a process
            torch.sparse.sampled_addmm(one.to_sparse_csr(), one, one)
    except RuntimeError:
        return False
    return True


def linear_gradient(kept: Kept, g: Tensor, x: Tensor) -> Tensor:
    """The kept entries of ``g.T @ x``.

    Args:
        g: (tokens, out), gradient of the layer's output.
        x: (tokens, in), the layer's input.
    """
    kept.found = kept.way or choose(kept, len(x), x.dtype)
    if kept.found == "dense":
        return kept.gather(g.t() @ x)
    if kept.found == "touched":
        g = g if kept.rows is None else g.index_select(1, kept.rows)
        x = x if kept.columns is None else x.index_select(1, kept.columns)
        return _pick(kept, g.t() @ x).to(kept.values.dtype)
    return _sampled(kept, g, x).to(kept.values.dtype)


def _pick(kept: Kept, block: Tensor) -> Tensor:
    """The kept entries of the touched rows and columns."""
    row_of = torch.repeat_interleave(kept.row_starts.diff())
    return block.take(row_of.long() * block.shape[1] + kept.column_of)


def _sampled(kept: Kept, g: Tensor, x: Tensor) -> Tensor:
    assert _samples()  # and torch has said once what it says of CSR
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32  # what the sampled product knows
    pattern = torch.zeros(len(kept.positions), dtype=dtype, device=x.device)
    for part_g, part_x in zip(g.split(TOKENS), x.split(TOKENS), strict=True):
        csr = torch.sparse_csr_tensor(kept.row_starts, kept.column_of, pattern, kept.shape, check_invariants=False)
        left, right = _transposed(part_g, kept.rows, dtype), _transposed(part_x, kept.columns, dtype)
        pattern = torch.sparse.sampled_addmm(csr, left, right.t()).values()
    return pattern


def _transposed(matrix: Tensor, columns: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``columns`` of ``matrix`` as rows, each contiguous: transposed first, then cast, which is the faster order."""
    chosen = matrix if columns is None else matrix.index_select(1, columns)
    return chosen.t().contiguous().to(dtype)
