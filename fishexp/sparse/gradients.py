"""The gradient of the kept entries of a Linear or a convolution, and of those only: what makes a sparse step cheap."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fishexp.sparse.cost_model import choose, samples
from fishexp.sparse.parameter import GradientMethod, SparseParameter

TOKENS = 1024  # rows of a Linear's input that the sampled product takes at once, so that both factors stay in cache
UNIT = 16  # columns that are transposed together
PLACES = 16384  # likewise places in a convolution's images
CHANNELS_LAST = 3.0  # how much slower images are laid out as rows of one channel if channels are last,
STRIDED = 5.0  # or if they are not and every other row and column is taken


class Conv(NamedTuple):
    """The numbers of a two-dimensional convolution, each (vertical, horizontal)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def linear_gradient(kept: SparseParameter, g: Tensor, x: Tensor) -> Tensor:
    """The kept entries of ``g.T @ x``.

    Args:
        g: (tokens, out), gradient of the layer's output.
        x: (tokens, in), the layer's input.
    """
    if _way(kept, x.dtype, len(x), g.numel() + x.numel()) == "dense":
        return kept.gather(g.t() @ x)
    if kept.found == "touched":  # the narrow factor first: the other way round MKL is up to 18 times slower
        g, x = _chosen(kept, g, x)
        return _pick(kept, (x.t() @ g).t() if kept.by_column else g.t() @ x)
    total: Any = None
    for part_g, part_x in zip(g.split(TOKENS), x.split(TOKENS), strict=True):
        total = _sampled(kept, 0, _by_column(part_g), _by_column(part_x), total)
    return total.to(kept.values.dtype)


def convolution_gradient(kept: SparseParameter, g: Tensor, x: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    """The kept entries of the gradient of a convolution's weight.

    ``sampled``: one channel's gradients and inputs are laid out as long rows, on grids so wide that a tap is the same
    rows read from another start on, the gradients' grid being zero where the kernel would leave the image. A tap then
    costs a sampled product and no copy. A stride splits the input into as many interleaved grids.

    Args:
        g: (examples, out, height, width), gradient of the layer's output.
        x: (examples, in, height, width), the layer's input.
        weight: In the type that it was multiplied in.
    """
    if _way(kept, x.dtype, g.numel() // g.shape[1], _numbers(g, x, conv)) == "dense":
        return kept.gather(_dense_convolution(g, x, weight, conv))
    if kept.found == "touched":
        g, x = _chosen(kept, g, x)
        block = weight.new_empty(g.shape[1], x.shape[1], *conv.kernel)
        return _pick(kept, _dense_convolution(g, x, block, conv))
    room = [d * (k - 1) // s for k, s, d in zip(conv.kernel, conv.stride, conv.dilation, strict=True)]
    size = g.shape[2] + room[0], g.shape[3] + room[1]
    examples = max(PLACES // (size[0] * size[1]), 1)
    totals: list[Tensor | None] = [None] * len(kept.row_starts)
    for part_g, part_x in zip(g.split(examples), x.split(examples), strict=True):
        _convolve(kept, totals, part_g, part_x, conv, size)
    return torch.cat([total for total in totals if total is not None]).to(kept.values.dtype)


def embedding_gradient(kept: SparseParameter, ids: Tensor, sums: Tensor) -> Tensor:
    """The kept entries of the gradient of an embedding's weight, of which few rows are looked at.

    Args:
        ids: (rows that occur,), ascending.
        sums: (rows that occur, width), their gradients.
    """
    starts = kept.row_starts[0].long()
    first, entries = starts[ids], starts[ids + 1] - starts[ids]
    row = torch.repeat_interleave(entries)  # of each kept entry in rows that occur, and the entry itself
    entry = torch.arange(len(row), device=row.device) + (first - entries.cumsum(0) + entries)[row]
    found = kept.values.new_zeros(len(kept.values))
    found[entry] = sums[row, kept.column_of[entry]].to(found.dtype)
    return found


def _way(kept: SparseParameter, dtype: torch.dtype, places: int, numbers: float) -> GradientMethod:
    """What was asked for, or what the rule chooses; noted in ``kept.found``."""
    way = kept.way or choose(kept, dtype, places, numbers)
    kept.found = "dense" if way == "touched" and kept.touched is None else way
    return kept.found


def _numbers(g: Tensor, x: Tensor, conv: Conv) -> float:
    """Numbers to be brought into the sampled product's order, weighed by how slow that is."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return CHANNELS_LAST * (g.numel() + x.numel())
    return g.numel() + x.numel() * (STRIDED if max(conv.stride) > 1 else 1)


def _dense_convolution(g: Tensor, x: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups, [False, True, False]
    )[1]


def _convolve(
    kept: SparseParameter, totals: list[Tensor | None], g: Tensor, x: Tensor, conv: Conv, size: tuple[int, int]
) -> None:
    """Add each tap's sampled product over these examples to ``totals``."""
    row = len(g) * size[0] * size[1]
    left = _grid(g, (0, 0), (1, 1), (0, 0), size)[: g.shape[1] * row].view(g.shape[1], row)
    grids: dict[tuple[int, int], Tensor] = {}
    for tap in range(len(totals)):
        at = [d * k for d, k in zip(conv.dilation, divmod(tap, conv.kernel[1]), strict=True)]
        phase = at[0] % conv.stride[0], at[1] % conv.stride[1]
        if phase not in grids:
            grids[phase] = _grid(x, phase, conv.stride, conv.padding, size)
        start = at[0] // conv.stride[0] * size[1] + at[1] // conv.stride[1]
        right = grids[phase][start : start + x.shape[1] * row].view(x.shape[1], row)
        totals[tap] = _sampled(kept, tap, left, right, totals[tap])


def _grid(
    images: Tensor, phase: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Every ``stride``-th row and column of the padded images from ``phase`` on, (channels, examples, *size) flat.

    Some zeros follow, so that the rows may be read from a later start.
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
    flat = torch.zeros(total + size[0] * size[1], dtype=_type(images), device=images.device)
    if channels > 1 and images.is_contiguous(memory_format=torch.channels_last):
        padded = images.new_zeros(examples, *size, channels)
        padded[:, down, across] = images.permute(0, 2, 3, 1)[:, rows, columns]
        flat[:total].view(channels, -1).copy_(_by_column(padded.view(-1, channels)))
    else:
        flat[:total].view(channels, examples, *size)[:, :, down, across] = images.transpose(0, 1)[:, :, rows, columns]
    return flat


def _chosen(kept: SparseParameter, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of the product of the touched rows or columns."""
    assert kept.touched is not None
    return (g, x.index_select(1, kept.touched)) if kept.by_column else (g.index_select(1, kept.touched), x)


def _by_column(matrix: Tensor) -> Tensor:
    """Transposed, rows contiguous, in the sampled product's type.

    As the product with blocks of the unit matrix, which is exact: torch's own transposing copy uses one thread only.
    """
    matrix = matrix.to(_type(matrix))
    tokens, width = matrix.shape
    if width % UNIT or not tokens:
        return matrix.t().contiguous()
    unit = torch.eye(UNIT, dtype=matrix.dtype, device=matrix.device).expand(width // UNIT, UNIT, UNIT)
    return torch.bmm(unit, matrix.reshape(tokens, -1, UNIT).permute(1, 2, 0)).view(width, tokens)


def _type(tensor: Tensor) -> torch.dtype:
    """What the sampled product knows."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _pick(kept: SparseParameter, block: Tensor) -> Tensor:
    """The kept entries of the product of the touched rows or columns."""
    outputs = len(kept.weight)
    line = torch.repeat_interleave(kept.row_starts.diff(dim=1).flatten()).long()  # tap * outputs + row of each entry
    row, tap, column = line % outputs, line // outputs, kept.column_of.long()
    assert kept.touched is not None
    if kept.by_column:
        column = torch.searchsorted(kept.touched.long(), column)
    else:
        row = torch.searchsorted(kept.touched.long(), row)
    return block.reshape(*block.shape[:2], -1)[row, column, tap].to(kept.values.dtype)


def _sampled(kept: SparseParameter, tap: int, left: Tensor, right: Tensor, total: Any) -> Tensor:
    """``total`` plus the kept entries of ``left @ right.T``, for two matrices of long rows."""
    assert samples()  # and torch has said once what it says of CSR
    columns = kept.column_of[kept.taps[tap] : kept.taps[tap + 1]]
    if total is None:
        total = left.new_zeros(len(columns))
    size = len(left), len(right)
    pattern = torch.sparse_csr_tensor(kept.row_starts[tap], columns, total, size, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, left, right.t()).values()
