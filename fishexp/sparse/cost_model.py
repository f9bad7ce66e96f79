"""Which way to the gradient of the kept entries is the fastest: a rule fitted to measurements."""

import warnings
from functools import cache

import torch

from fishexp.sparse.parameter import GradientMethod, SparseParameter

GAIN = 0.9  # a sparse way is taken where its predicted time is below this share of the dense one's

# Nanoseconds on one core of an AMD EPYC with AVX-512 (torch 2.15.0), fitted to what benchmarks/ways.py prints with one
# and with two threads. Of a multiply-add of the dense product of a Linear and of a convolution, of one of the sampled
# product, of a number brought into the sampled product's order, of one read by a product with few columns, of one of
# these columns selected, of a call.
LINEAR = {torch.float64: 0.040, torch.float32: 0.0188, torch.bfloat16: 0.0041, torch.float16: 0.0041}
CONVOLUTION = {torch.float64: 0.040, torch.float32: 0.0090, torch.bfloat16: 0.0050, torch.float16: 0.0050}
SAMPLED = 0.09
ORDERED = {torch.float64: 0.9, torch.float32: 0.5, torch.bfloat16: 0.62, torch.float16: 0.62}
READ = 0.25
SELECTED = {torch.float64: 0.8, torch.float32: 0.4, torch.bfloat16: 1.6, torch.float16: 1.6}
CALL = 20_000.0
BOUND = 0.4  # n threads divide the time of a dense product by n, of what waits for memory by n to the power 1 - BOUND


def choose(kept: SparseParameter, dtype: torch.dtype, places: int, numbers: float) -> GradientMethod:
    """The way of least predicted time for the gradient of the kept entries of a Linear's or a convolution's weight.

    ``sampled`` computes each entry on its own, as the product of two rows over all places. ``touched`` is the dense
    product of the rows, or of the columns, that hold kept entries. ``dense`` is the whole product; the kept entries are
    then gathered from it. A sparse way has to promise a gain of more than a tenth.

    CUDA takes ``dense``: a sampled product there has not been measured. So does bf16 on a processor with AMX, whose
    dense product is several times faster than the one this rule was fitted to.

    Args:
        dtype: Of the product.
        places: What the gradient is a sum over: rows of a Linear's input, or outputs of a convolution's one channel.
        numbers: Inputs and gradients that a sampled product would have to bring into its order, each counted by how
            much slower this is than transposing a matrix.
    """
    if kept.weight.device.type != "cpu" or dtype not in LINEAR:
        return "dense"
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return "dense"
    product = (LINEAR if kept.weight.dim() == 2 else CONVOLUTION)[dtype]
    slower = torch.get_num_threads() ** BOUND
    times: dict[GradientMethod, float] = {"dense": places * kept.weight.numel() * product}
    if kept.touched is not None:
        narrow, wide = kept.weight.shape[int(kept.by_column)], kept.weight.shape[1 - int(kept.by_column)]
        brought = len(kept.touched) * SELECTED[dtype] + wide * READ
        times["touched"] = times["dense"] * len(kept.touched) / narrow + places * brought * slower + 3 * CALL
    if samples():
        times["sampled"] = (
            slower * (numbers * ORDERED[dtype] + places * len(kept.positions) * SAMPLED) + (len(kept.taps) + 1) * CALL
        )
    best = min(times, key=times.__getitem__)
    return best if times[best] < GAIN * times["dense"] else "dense"


@cache
def samples() -> bool:
    """Whether this build of torch has the sampled product."""
    one = torch.ones(1, 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "CSR is in beta", said once in a process
            torch.sparse.sampled_addmm(one.to_sparse_csr(), one, one)
    except RuntimeError:
        return False
    return True
