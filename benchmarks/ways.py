"""``python -m benchmarks.ways``: time the gradient methods of a layer's kept entries, and what the cost model chooses.

Each line gives the time of every method as a fraction of the dense method's, and the method that the cost model chooses
by what fishexp/sparse/calibration.py measured on this machine. The last line says how much longer its choices take than
the fastest single method.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import Effort, interleave, single_thread
from fishexp.sparse.calibration import calibrated
from fishexp.sparse.conv import ConvGeometry, conv2d_gradient
from fishexp.sparse.costs import Costs
from fishexp.sparse.linear import linear_gradient
from fishexp.sparse.modules import sparse_parameter
from fishexp.sparse.parameter import GradientMethod, SparseParameter
from fishexp.system import hardware
from fishexp.system.program import carry_out

METHODS: tuple[GradientMethod, ...] = ("dense", "sddmm", "submatrix")
# (out, in) of Linear layers
LINEARS = ((384, 384), (1536, 384), (384, 1536), (768, 768), (3072, 768), (1024, 1024))
TOKENS = (512, 2048)  # in a batch
# (in, out, height and width of an image, stride) of 3x3 convolutions
CONVOLUTIONS = ((64, 64, 32, 1), (64, 128, 32, 2), (128, 128, 16, 1), (256, 256, 8, 1), (512, 512, 4, 1))
IMAGES = 64  # in a batch
DENSITIES = (0.001, 0.005, 0.02, 0.1)  # fractions of a weight's entries


def patterns(shape: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    """Make masks of entries spread at random, and one of half of four columns, as outlying inputs cause them."""
    generator = torch.Generator().manual_seed(0)
    for density in DENSITIES:
        yield f"{density:g} spread", torch.rand(shape, generator=generator) < density
    columns = torch.zeros(shape, dtype=torch.bool)
    columns[:, :: shape[1] // 4] = torch.rand(columns[:, :: shape[1] // 4].shape, generator=generator) < 0.5
    yield "4 columns", columns


def layers(dtype: torch.dtype) -> Iterator[tuple[str, tuple[int, ...], nn.Module, Callable[[SparseParameter], Tensor]]]:
    """Return for each layer its label, the weight's shape, a module of its type, and the gradient's function."""
    for out, width in LINEARS:
        for tokens in TOKENS:
            g, x = torch.randn(tokens, out).to(dtype), torch.randn(tokens, width).to(dtype)
            form: Callable[[SparseParameter], Tensor] = partial(linear_gradient, g=g, x=x)
            yield f"Linear {width} to {out}, {tokens} tokens", (out, width), nn.Linear(1, 1), form
    for width, out, size, stride in CONVOLUTIONS:
        module = nn.Conv2d(width, out, 3, stride, padding=1)
        x = torch.randn(IMAGES, width, size, size).to(dtype)
        conv = ConvGeometry((3, 3), (stride, stride), (1, 1), (1, 1), 1)
        for layout in (torch.contiguous_format, torch.channels_last):
            g = torch.randn(IMAGES, out, size // stride, size // stride).to(dtype).contiguous(memory_format=layout)
            weight = torch.zeros(out, width, 3, 3, dtype=dtype).contiguous(memory_format=layout)
            form = partial(conv2d_gradient, g=g, x=x.contiguous(memory_format=layout), weight=weight, conv=conv)
            label = f"Conv2d {width} to {out}, {size}x{size}, stride {stride}"
            label += ", channels last" if layout is torch.channels_last else ""
            yield label, (out, width, 3, 3), module, form


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the methods, which takes minutes; there are no options but ``--help``."""
    argparse.ArgumentParser(prog="python -m benchmarks.ways", description=__doc__).parse_args(arguments)
    return carry_out("benchmarks.ways", time_methods)


def time_methods() -> None:
    """Print a line for each layer and mask, then how much time the cost model's choices lose, with one thread."""
    hardware.keep_freed_memory()
    costs = calibrated()
    with single_thread():
        for dtype in (torch.float32, torch.bfloat16):
            losses = list(_losses(dtype, costs))
            print(
                f"{str(dtype)[6:]}: of {len(losses)} choices, the worst takes {max(losses):.2f} of the best method's "
                f"time, the median {median(losses):.2f}; {sum(loss > 1.1 for loss in losses)} take over 1.1"
            )


def _losses(dtype: torch.dtype, costs: Costs) -> Iterator[float]:
    """Time the methods for each layer and mask, print a line, and yield the chosen one's time over the least."""
    for label, shape, user, form in layers(dtype):
        for pattern, mask in patterns(shape):
            kept = sparse_parameter("weight", nn.Parameter(torch.zeros(shape)), mask, user, None, costs)
            calls: dict[str, Callable[[], Any]] = {method: partial(_form, kept, form, method) for method in METHODS}
            times = interleave(calls, Effort(0.0, least=7, warmup=1), torch.device("cpu"))
            least = {method: min(times[method]) for method in METHODS}  # other programs only add to a time
            _form(kept, form, None)
            chosen = kept.last_method
            assert chosen is not None
            loss = least[chosen] / min(least.values())
            shares = ", ".join(f"{method} {least[method] / least['dense']:.2f}" for method in METHODS[1:])
            print(
                f"{str(dtype)[6:]:8} {label:47} {pattern:12} dense {least['dense'] * 1e3:7.2f} ms, {shares}; "
                f"{chosen}, {loss:.2f} of the best",
                flush=True,
            )
            yield loss


def _form(kept: SparseParameter, form: Callable[[SparseParameter], Tensor], method: GradientMethod | None) -> Tensor:
    kept.way = method
    return form(kept)


if __name__ == "__main__":
    sys.exit(main())
