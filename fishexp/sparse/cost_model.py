"""The gradient method that is predicted to be the fastest for a layer: a cost model fitted to measurements."""

from collections.abc import Mapping

import torch

from fishexp.sparse import sddmm
from fishexp.sparse.parameter import GradientMethod, SparseParameter

# share of the dense method's predicted time, below which a sparse method is taken
MAX_TIME_SHARE = 0.9

# The costs were measured on one core of an AMD EPYC with AVX-512 (torch 2.15.0), fitted to what benchmarks/ways.py
# prints with one and with two threads.

# nanoseconds for a multiply-add of a Linear's dense product
LINEAR_COST = {torch.float64: 0.040, torch.float32: 0.0188, torch.bfloat16: 0.0041, torch.float16: 0.0041}
# nanoseconds for a multiply-add of a convolution's dense product
CONV_COST = {torch.float64: 0.040, torch.float32: 0.0090, torch.bfloat16: 0.0050, torch.float16: 0.0050}
# nanoseconds for a multiply-add of the sampled product
SAMPLED_COST = 0.09
# nanoseconds for bringing a number into the sampled product's order
REORDER_COST = {torch.float64: 0.9, torch.float32: 0.5, torch.bfloat16: 0.62, torch.float16: 0.62}
# nanoseconds for reading a number in a product with few columns
READ_COST = 0.25
# nanoseconds for copying a number of such a column out of the input or gradient
SELECT_COST = {torch.float64: 0.8, torch.float32: 0.4, torch.bfloat16: 1.6, torch.float16: 1.6}
# nanoseconds for a call
CALL_COST = 20_000.0
# exponent, no unit: n threads divide the time of a dense product by n, of what waits for memory by n ** (1 - this)
MEMORY_BOUND = 0.4


def gradient_method(
    kept: SparseParameter, dtype: torch.dtype, dense_cost: Mapping[torch.dtype, float], length: int, reordered: float
) -> GradientMethod:
    """Return the method that was asked for, or the one that :func:`choose` takes; note it in ``kept.last_method``."""
    method = kept.way or choose(kept, dtype, dense_cost, length, reordered)
    kept.last_method = "dense" if method == "submatrix" and kept.submatrix_lines is None else method
    return kept.last_method


def choose(
    kept: SparseParameter, dtype: torch.dtype, dense_cost: Mapping[torch.dtype, float], length: int, reordered: float
) -> GradientMethod:
    """Return the method of least predicted time for the gradient of the kept entries of a layer's weight.

    ``sddmm`` computes each entry on its own, as the product of two rows of numbers (sampled dense-dense matrix
    product). ``submatrix`` is the dense product of the rows, or of the columns, that hold kept entries. ``dense`` is
    the whole product; the kept entries are then gathered from it. A sparse method has to promise a gain of more than a
    tenth.

    CUDA takes ``dense``: a sampled product there has not been measured. So does bf16 on a processor with AMX, whose
    dense product is several times faster than the one that the costs were fitted to.

    Args:
        dtype: Type of the product's factors.
        dense_cost: Nanoseconds for a multiply-add of the layer's dense product, for each type that was measured.
        length: Terms in the sum that an entry's gradient is: rows of a Linear's input, or numbers in one channel of a
            convolution's output.
        reordered: Inputs and gradients that a sampled product would have to bring into its order, each counted by how
            much slower this is than transposing a matrix.
    """
    if kept.weight.device.type != "cpu" or dtype not in dense_cost:
        return "dense"
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return "dense"
    slower = torch.get_num_threads() ** MEMORY_BOUND
    times: dict[GradientMethod, float] = {"dense": length * kept.weight.numel() * dense_cost[dtype]}
    if (lines := kept.submatrix_lines) is not None:
        narrow, wide = kept.weight.shape[int(kept.by_column)], kept.weight.shape[1 - int(kept.by_column)]
        copied = len(lines) * SELECT_COST[dtype] + wide * READ_COST
        times["submatrix"] = times["dense"] * len(lines) / narrow + length * copied * slower + 3 * CALL_COST
    if sddmm.is_available():
        products = length * len(kept.positions) * SAMPLED_COST
        calls = (len(kept.offset_starts) + 1) * CALL_COST
        times["sddmm"] = slower * (reordered * REORDER_COST[dtype] + products) + calls
    best = min(times, key=times.__getitem__)
    return best if times[best] < MAX_TIME_SHARE * times["dense"] else "dense"
