"""Two-dimensional convolutions: the backward pass forms the gradient of the kept entries, not the dense one."""
# once_differentiable has no types:
# pyright: reportIncompatibleMethodOverride=false

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from fishexp.sparse.cost_model import gradient_method
from fishexp.sparse.forward import function_arguments, without_autocast
from fishexp.sparse.layout import LayerKind, Layout
from fishexp.sparse.parameter import GradientMethod, SparseParameter
from fishexp.sparse.sddmm import gather_from_submatrix, sampled_zeros, sddmm_dtype, submatrix_factors, transposed

# pixels (images * height * width) of a grid that the sampled product takes at once, so that both factors stay in cache
BLOCK_PIXELS = 16384


class ConvGeometry(NamedTuple):
    """Hold the numbers of a two-dimensional convolution, each (vertical, horizontal)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def conv2d_forward(module: Any, input: Tensor) -> Tensor:  # noqa: A002  (the name that callers know)
    """Apply a Conv2d with partly kept parameters."""
    kept = module._modules.get("weight_kept")
    regrouped = kept is not None and kept.groups != module.groups
    own_forward = getattr(module._conv_forward, "__func__", None) is not nn.Conv2d._conv_forward
    plain = input.dim() == 4 and not (input.is_complex() or input.is_meta)
    if not torch.is_grad_enabled() or not plain or regrouped or own_forward:
        return nn.Conv2d.forward(module, input)
    kernel, stride, dilation = _pair(module.kernel_size), _pair(module.stride), _pair(module.dilation)
    x, padding = input, module.padding
    if module.padding_mode != "zeros":
        x, padding = F.pad(x, module._reversed_padding_repeated_twice, module.padding_mode), 0
    elif isinstance(padding, str):
        totals = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        x, padding = F.pad(x, [side for t in reversed(totals) for side in (t // 2, t - t // 2)]), 0
    conv = ConvGeometry(kernel, stride, _pair(padding), dilation, module.groups)
    return Conv2dFunction.apply(*function_arguments(module, x), conv)


class Conv2dFunction(Function):
    """Compute ``F.conv2d``; the backward pass forms the gradient of the kept entries of weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None,
        weight_values: Tensor | None, bias_values: Tensor | None,
        weight_kept: SparseParameter | None, bias_kept: SparseParameter | None, conv: ConvGeometry,
    ) -> Tensor:  # fmt: skip
        """Take the kept values as arguments too, since they get the gradient."""
        ctx.save_for_backward(x, weight)
        ctx.kept, ctx.conv = (weight_kept, bias_kept), conv
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), conv = ctx.saved_tensors, ctx.conv
        weight_kept, bias_kept = ctx.kept
        need_x, need_weight, need_bias, need_weight_values, need_bias_values, *_ = ctx.needs_input_grad
        gradients: list[Tensor | None] = [None] * 8
        with without_autocast(gradient):
            # with the input's gradient in one call, where the whole gradient of the weight is formed anyway
            dense_too = need_weight_values and _method(weight_kept, x, weight, conv) == "dense"
            gradients[0], dense, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, conv.stride, conv.padding, conv.dilation, False, [0, 0],
                conv.groups, [need_x, need_weight or dense_too, False],
            )  # fmt: skip
            if need_weight:
                gradients[1] = dense
            if need_bias:  # not above, where oneDNN forms the weight's gradient as well
                gradients[2] = gradient.sum((0, 2, 3))
            if need_bias_values:
                gradients[4] = bias_kept.gather(gradient.sum((0, 2, 3)))
            if dense_too:
                gradients[3] = weight_kept.gather(dense)
            elif need_weight_values:
                gradients[3] = conv2d_gradient(weight_kept, gradient, x, weight, conv)
        return tuple(gradients)


def conv2d_gradient(kept: SparseParameter, g: Tensor, x: Tensor, weight: Tensor, conv: ConvGeometry) -> Tensor:
    """Return the kept entries of the gradient of a convolution's weight.

    ``sddmm``: one channel's gradients and inputs are laid out as long rows, on grids so wide that a kernel offset is
    the same rows read from another start on, the gradients' grid being zero where the kernel would leave the image. An
    offset then costs a sampled product and no copy. A stride splits the input into as many interleaved grids.

    Args:
        g: (examples, out, height, width), gradient of the layer's output.
        x: (examples, in, height, width), the layer's input.
        weight: The weight in the type that it was multiplied in.
    """
    method = _method(kept, x, weight, conv)
    if method == "dense":
        return kept.gather(_dense_gradient(g, x, weight, conv))
    if method == "submatrix":
        g, x = submatrix_factors(kept, g, x)
        block = weight.new_empty(g.shape[1], x.shape[1], *conv.kernel)
        return gather_from_submatrix(kept, _dense_gradient(g, x, block, conv))
    margin = [d * (k - 1) // s for k, s, d in zip(conv.kernel, conv.stride, conv.dilation, strict=True)]
    size = g.shape[2] + margin[0], g.shape[3] + margin[1]
    examples = max(BLOCK_PIXELS // (size[0] * size[1]), 1)
    totals: list[Tensor] = []
    for block_g, block_x in zip(g.split(examples), x.split(examples), strict=True):
        _add_sampled_products(kept, totals, block_g, block_x, conv, size)
    return torch.cat([total.values() for total in totals]).to(kept.values.dtype)


def _method(kept: SparseParameter, x: Tensor, weight: Tensor, conv: ConvGeometry) -> GradientMethod:
    return gradient_method(kept, "conv", x.dtype, _reordered(x, weight, conv))


def _reordered(x: Tensor, weight: Tensor, conv: ConvGeometry) -> dict[str, float]:
    """Count the numbers that a sampled product takes in another order, for each pixel of a channel of the output."""
    outputs, inputs = len(weight), x.shape[1] * conv.stride[0] * conv.stride[1]
    if x.is_contiguous(memory_format=torch.channels_last):
        return {"reorder_last": outputs + inputs}
    if max(conv.stride) > 1:
        return {"reorder": outputs, "reorder_strided": inputs}
    return {"reorder": outputs + inputs}


def _dense_gradient(g: Tensor, x: Tensor, weight: Tensor, conv: ConvGeometry) -> Tensor:
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups, [False, True, False]
    )[1]


def _add_sampled_products(
    kept: SparseParameter, totals: list[Tensor], g: Tensor, x: Tensor, conv: ConvGeometry, size: tuple[int, int]
) -> None:
    """Add each kernel offset's sampled product over these examples to ``totals``, which is empty at first."""
    length = len(g) * size[0] * size[1]
    left = _grid(g, (0, 0), (1, 1), (0, 0), size)[: g.shape[1] * length].view(g.shape[1], length)
    grids: dict[tuple[int, int], Tensor] = {}
    for offset in range(len(kept.crow_indices)):
        at = [d * k for d, k in zip(conv.dilation, divmod(offset, conv.kernel[1]), strict=True)]
        phase = at[0] % conv.stride[0], at[1] % conv.stride[1]
        if phase not in grids:
            grids[phase] = _grid(x, phase, conv.stride, conv.padding, size)
        start = at[0] // conv.stride[0] * size[1] + at[1] // conv.stride[1]
        right = grids[phase][start : start + x.shape[1] * length].view(x.shape[1], length)
        if offset == len(totals):
            totals.append(sampled_zeros(kept, offset, left, right))
        totals[offset] = torch.sparse.sampled_addmm(totals[offset], left, right.t())


def _grid(
    images: Tensor, phase: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Return every ``stride``-th row and column of the padded images from ``phase`` on.

    Returns:
        (channels, examples, *size) flat, and some zeros behind, so that the rows may be read from a later start.
    """
    examples, channels, height, width = images.shape
    cuts = []
    for a, s, p, length, limit in zip(phase, stride, padding, (height, width), size, strict=True):
        first = max(-((a - p) // s), 0)  # the first grid line that lies in the image
        source = slice(a + s * first - p, length, s)
        count = min(len(range(length)[source]), limit - first)
        cuts.append((slice(first, first + count), slice(source.start, source.start + s * count, s)))
    (down, rows), (across, columns) = cuts
    total = channels * examples * size[0] * size[1]
    flat = torch.zeros(total + size[0] * size[1], dtype=sddmm_dtype(images), device=images.device)
    if channels > 1 and images.is_contiguous(memory_format=torch.channels_last):
        padded = images.new_zeros(examples, *size, channels)
        padded[:, down, across] = images.permute(0, 2, 3, 1)[:, rows, columns]
        flat[:total].view(channels, -1).copy_(transposed(padded.view(-1, channels)))
    else:
        flat[:total].view(channels, examples, *size)[:, :, down, across] = images.transpose(0, 1)[:, :, rows, columns]
    return flat


def conv2d_layout(module: nn.Conv2d, positions: Tensor, shape: torch.Size) -> Layout:
    """Lay out the kept entries of a convolution's weight (out, in / groups, height, width), an offset a matrix."""
    outputs, inputs, offsets = shape[0], shape[1], shape[2:].numel()
    row = positions // (inputs * offsets)
    column = (
        positions // offsets % inputs + row // (outputs // module.groups) * inputs
    )  # among the inputs of all groups
    return Layout(positions % offsets, row, column, (offsets, outputs, inputs * module.groups), module.groups)


CONV2D = LayerKind(conv2d_forward, conv2d_layout)
