"""``python -m benchmarks.ways``: time the gradient methods of a layer's kept entries, and what the cost model chooses.

The constants of fishexp/sparse/cost_model.py were fitted to these figures. Each line gives the time of every method as
a fraction of the dense method's, the method that the cost model chooses, and how much slower that is than the fastest.
"""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import Effort, interleave, quartiles
from fishexp.sparse.conv import ConvGeometry, conv2d_gradient
from fishexp.sparse.linear import linear_gradient
from fishexp.sparse.modules import sparse_parameter
from fishexp.sparse.parameter import GradientMethod, SparseParameter
from fishexp.system import hardware

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


def main() -> None:
    """Print a line for each layer and mask, then how much time the cost model's choices lose."""
    hardware.keep_freed_memory()
    regrets = []
    for dtype in (torch.float32, torch.bfloat16):
        for label, shape, user, form in layers(dtype):
            for pattern, mask in patterns(shape):
                kept = sparse_parameter("weight", nn.Parameter(torch.zeros(shape)), mask, user, None)
                calls: dict[str, Callable[[], Any]] = {method: partial(_form, kept, form, method) for method in METHODS}
                times = interleave(calls, Effort(0.0, least=7, warmup=2), torch.device("cpu"))
                middle = {method: quartiles(times[method])[1] for method in METHODS}
                _form(kept, form, None)
                chosen = kept.last_method
                assert chosen is not None
                regrets.append(middle[chosen] / min(middle.values()) - 1)
                shares = ", ".join(f"{method} {middle[method] / middle['dense']:.2f}" for method in METHODS[1:])
                ms = middle["dense"] * 1e3
                print(
                    f"{str(dtype)[6:]:8} {label:47} {pattern:12} dense {ms:7.2f} ms, {shares}; "
                    f"{chosen}, {regrets[-1]:.0%} slower than the best",
                    flush=True,
                )
    print(f"regret: median {median(regrets):.1%}, mean {sum(regrets) / len(regrets):.1%}, worst {max(regrets):.0%}")


def _form(kept: SparseParameter, form: Callable[[SparseParameter], Tensor], method: GradientMethod | None) -> Tensor:
    kept.way = method
    return form(kept)


if __name__ == "__main__":
    main()
