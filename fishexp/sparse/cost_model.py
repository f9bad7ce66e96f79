"""The gradient method that is predicted to be the fastest for a layer, from what its parts cost on this processor."""

from collections.abc import Mapping

import torch

from fishexp.sparse import sddmm
from fishexp.sparse.costs import Kind
from fishexp.sparse.parameter import GradientMethod, SparseParameter

# share of the dense method's predicted time, below which a sparse method is taken
MAX_TIME_SHARE = 0.95
# weights of a Linear from which on a GPU's 16-bit product of a few of its lines is faster than that of all
CUDA_SUBMATRIX_SIZE = 2**21
# terms of the sum that an entry's gradient is, for which methods are compared: the tokens of a batch, or its pixels
NOMINAL_LENGTHS: dict[Kind, int] = {"linear": 1024, "conv": 16384}


def gradient_method(
    kept: SparseParameter, kind: Kind, dtype: torch.dtype, reordered: Mapping[str, float]
) -> GradientMethod:
    """Return the method for the gradient of the kept entries of a layer's weight, and note it in ``kept.last_method``.

    It is the method that was asked for, or the one that :func:`choose` takes the first time that it is needed in this
    type: later batches, whatever their size, get the same.
    """
    if torch.compiler.is_compiling():
        torch._dynamo.graph_break()  # which layer does what is no part of a graph: it runs as it is
    method = kept.way or kept.chosen.get(dtype)
    if method is None:
        method = kept.chosen[dtype] = choose(kept, kind, dtype, reordered)
    kept.last_method = "dense" if method == "submatrix" and kept.submatrix_lines is None else method
    return kept.last_method


def choose(kept: SparseParameter, kind: Kind, dtype: torch.dtype, reordered: Mapping[str, float]) -> GradientMethod:
    """Return the method of least predicted time for the gradient of the kept entries of a layer's weight.

    ``sddmm`` computes each entry on its own, as the product of two rows of numbers (sampled dense-dense matrix
    product). ``submatrix`` is the dense product of the rows, or of the columns, that hold kept entries. ``dense`` is
    the whole product; the kept entries are then gathered from it. A sparse method has to promise a gain of more than a
    twentieth. What is predicted depends on the mask, the type and ``kept.costs`` only: not on the batch, and not on
    what the machine is doing.

    CUDA takes ``submatrix`` for Linears whose kept entries lie in at most a quarter of the lines, in 16 bits only where
    the layer is large; else ``dense``. On an H200 the narrow product of a Linear took 0.04 to 0.63 of the whole one's
    time in float32 and 0.35 to 0.9 in bf16 from 2**21 weights on, and more than the whole one's below; that of a 3x3
    convolution of 64 to 256 channels 1.5 to 6 times as long in bf16. A sampled product there has not been measured.

    Args:
        kind: ``linear`` or ``conv``, of the layer.
        dtype: Type of the product's factors.
        reordered: How many numbers for each term of the sum a sampled product would have to bring into its order, by
            the attribute of :class:`PartCosts` that says what one takes.
    """
    costs = kept.costs.parts[kind].get(str(dtype).removeprefix("torch."))
    if kept.weight.device.type != "cpu":
        wide = dtype not in (torch.bfloat16, torch.float16) or kept.weight.numel() >= CUDA_SUBMATRIX_SIZE
        return "submatrix" if kind == "linear" and wide and kept.submatrix_lines is not None else "dense"
    if costs is None:
        return "dense"
    call = kept.costs.call / NOMINAL_LENGTHS[kind]
    times: dict[GradientMethod, float] = {"dense": kept.weight.numel() * costs.dense}
    if (lines := kept.submatrix_lines) is not None:
        narrow, wide = kept.weight.shape[int(kept.by_column)], kept.weight.numel()
        wide //= narrow
        times["submatrix"] = wide * (costs.read + len(lines) * costs.narrow) + 3 * call
    if sddmm.is_available():
        moved = sum(number * getattr(costs, name) for name, number in reordered.items())
        times["sddmm"] = moved + len(kept.positions) * costs.sampled + (len(kept.offset_starts) + 1) * call
    best = min(times, key=times.__getitem__)
    return best if times[best] < MAX_TIME_SHARE * times["dense"] else "dense"
