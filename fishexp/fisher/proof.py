"""Which example each part of an activation's gradient belongs to, proven from the graph of autograd.

A rule for each kind of node says where the examples of its output are in its inputs, whatever the numbers are. Where a
node has no rule, or none that holds, nothing is known of what lies behind it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from fishexp.fisher.layouts import Blocks

End: TypeAlias = tuple[Any, int]  # a node and the number of its output: where a tensor's gradient arrives
Shape: TypeAlias = tuple[int, ...]

# where the examples are in each input of a node: (node, dimension in the output, output's shape, inputs' shapes) ->
# dimension, None where it is not known
NodeRule: TypeAlias = Callable[[Any, int, Shape, Sequence[Shape]], Sequence[int | None]]


class Graph:
    """Follow the examples from the logits, (examples, ...), to all that they were computed from.

    Attributes:
        leaves: Tensors at which the graph ends.
    """

    def __init__(self, logits: Tensor, examples: int) -> None:
        self.examples, self.leaves = examples, list[Tensor]()
        self._layouts: dict[End, Blocks | None] = {}
        if logits.requires_grad:
            self._layouts[self.end_of(logits)] = Blocks(examples, 0)
            for node in _in_order(self.end_of(logits)[0]):
                self._follow(node)

    @staticmethod
    def end_of(tensor: Tensor) -> End:
        """Return where in the graph a tensor's gradient arrives."""
        edge = get_gradient_edge(tensor)
        return edge.node, edge.output_nr

    def layout_of(self, end: End) -> Blocks | None:
        """Return where the examples are in the gradient that arrives there; None if that is not proven."""
        if end not in self._layouts:
            return Blocks(self.examples, 0)  # no gradient arrives
        return self._layouts[end]

    def _follow(self, node: Any) -> None:
        """Pass on where the examples are to the inputs of a node, whose outputs are all known."""
        if hasattr(node, "variable"):
            self.leaves.append(node.variable)
            return
        shapes = [_shape(following, number) if following else () for following, number in node.next_functions]
        inputs: list[Blocks | None] | None = None
        for number in range(len(node._input_metadata)):
            if (node, number) in self._layouts:
                found = self._inputs(node, number, shapes)
                same = inputs is None or inputs == found
                inputs = found if same else [None for _ in shapes]
        for (following, number), layout in zip(node.next_functions, inputs or [None] * len(shapes), strict=True):
            if following is not None:
                end = following, number
                self._layouts[end] = layout if self._layouts.get(end, layout) == layout else None

    def _inputs(self, node: Any, number: int, shapes: list[Shape]) -> list[Blocks | None]:
        """Return where the examples are in each input, going by one output."""
        layout, name, shape = self._layouts[node, number], node.name().partition("Backward")[0], _shape(node, number)
        if layout is None or not layout.fits(shape):
            return [None] * len(shapes)
        if name in RESHAPES:
            return [_reshaped(layout, shape, shapes[0])] + [None] * (len(shapes) - 1)
        found = list(NODE_RULES[name](node, layout.dim, shape, shapes)) if name in NODE_RULES else []
        found += [None] * (len(shapes) - len(found))
        layouts = [None if dim is None else replace(layout, dim=dim) for dim in found]
        return [p if p and p.fits(s) else None for p, s in zip(layouts, shapes, strict=True)]


def _in_order(root: Any) -> list[Any]:
    """Return the nodes behind ``root``, each after all that follow it in the forward pass."""
    order, seen, todo = [], {root}, [(root, iter(root.next_functions))]
    while todo:
        node, following = todo[-1]
        for behind, _ in following:
            if behind is not None and behind not in seen:
                seen.add(behind)
                todo.append((behind, iter(behind.next_functions)))
                break
        else:
            order.append(node)
            todo.pop()
    return order[::-1]


def _shape(node: Any, number: int) -> Shape:
    return tuple(node._input_metadata[number].shape)


def _saved(node: Any, name: str, rank: int) -> list[int]:
    """Return saved dimensions, counted from the first; all where none were given."""
    value = getattr(node, f"_saved_{name}", None)
    values = [value] if isinstance(value, int) else list(value or range(rank))
    return [(v - 2**64 if v >= 2**63 else v) % max(rank, 1) for v in values]


def _reshaped(layout: Blocks, out: Shape, shape: Shape) -> Blocks | None:
    """Find the examples in another shape of the same entries in the same order."""
    parts = prod(out[: layout.dim]) * layout.groups  # each with all examples
    dim = next(d for d in range(len(shape)) if prod(shape[: d + 1]) > parts)
    before = prod(shape[:dim])
    whole = parts % before == 0 and prod(shape[: dim + 1]) % (parts * layout.examples) == 0
    return Blocks(layout.examples, dim, parts // before) if whole else None


def _entry_by_entry(node: Any, dim: int, out: Shape, inputs: Sequence[Shape]) -> list[int | None]:
    """Cover functions of entries, whose inputs may be broadcast along other dimensions."""
    dims = [dim - len(out) + len(shape) for shape in inputs]
    return [d if d >= 0 and shape[d] == out[dim] else None for d, shape in zip(dims, inputs, strict=True)]


def _in_first_input(names: str = "", *, first: bool = False) -> NodeRule:
    """Make a rule of functions that keep dimensions in their places and treat each part along ``dim`` on its own.

    Args:
        names: The saved dimensions along which they do mix entries.
        first: Whether only the first dimension is surely on its own.
    """

    def rule(node: Any, dim: int, out: Shape, inputs: Sequence[Shape]) -> list[int | None]:
        shape = inputs[0]
        mixed = _saved(node, names, len(shape)) if names else []
        whole = len(shape) == len(out) and shape[dim] == out[dim] and dim not in mixed
        return [dim if whole and (dim == 0 or not first) else None]

    return rule


def _reduced(node: Any, dim: int, out: Shape, inputs: Sequence[Shape]) -> list[int | None]:
    """Cover sums, means and the like over some dimensions."""
    rank = len(inputs[0])
    gone = _saved(node, "dim", rank)
    if getattr(node, "_saved_keepdim", len(out) == rank):
        return [None if dim in gone else dim]
    return [[d for d in range(rank) if d not in gone][dim]]


def _selected(node: Any, dim: int, out: Shape, inputs: Sequence[Shape]) -> list[int | None]:
    """Cover one entry of a dimension, which is gone then."""
    (gone,) = _saved(node, "dim", len(inputs[0]))
    return [dim + (dim >= gone)]


def _transposed(node: Any, dim: int, out: Shape, inputs: Sequence[Shape]) -> list[int | None]:
    one, other = (_saved(node, name, len(out))[0] for name in ("dim0", "dim1"))
    return [{one: other, other: one}.get(dim, dim)]


def _permuted(node: Any, dim: int, out: Shape, inputs: Sequence[Shape]) -> list[int | None]:
    return [_saved(node, "dims", len(out))[dim]]


def _joined(node: Any, dim: int, out: Shape, inputs: Sequence[Shape]) -> list[int | None]:
    """Cover tensors put behind each other along a dimension."""
    (along,) = _saved(node, "dim", len(out))
    return [dim if dim != along and len(shape) == len(out) and shape[dim] == out[dim] else None for shape in inputs]


def _stacked(node: Any, dim: int, out: Shape, inputs: Sequence[Shape]) -> list[int | None]:
    (along,) = _saved(node, "dim", len(out))
    return [None if dim == along else dim - (dim > along) for _ in inputs]


def _times_weight(input_number: int) -> NodeRule:
    """Make a rule of the product of two matrices, of which the first has the examples in its rows."""

    def rule(node: Any, dim: int, out: Shape, inputs: Sequence[Shape]) -> list[int | None]:
        return [0 if dim == 0 and n == input_number else None for n in range(len(inputs))]

    return rule


def _matrix_by_matrix(node: Any, dim: int, out: Shape, inputs: Sequence[Shape]) -> list[int | None]:
    """Cover products of as many pairs of matrices, of which each row or column may be an example's own."""
    return [0, 0] if dim == 0 else [1, None] if dim == 1 else [None, 2]


def _attention(node: Any, dim: int, out: Shape, inputs: Sequence[Shape]) -> list[int | None]:
    """Cover attention, in which the first dimension stays apart."""
    return [0 if dim == 0 and shape and shape[0] == out[0] and len(shape) == len(out) else None for shape in inputs]


def _layer_norm(node: Any, dim: int, out: Shape, inputs: Sequence[Shape]) -> list[int | None]:
    return [dim if dim < len(out) - len(node._saved_normalized_shape) else None]


def _batch_norm(node: Any, dim: int, out: Shape, inputs: Sequence[Shape]) -> list[int | None]:
    return [0 if dim == 0 and not node._saved_training else None]


def _padded(node: Any, dim: int, out: Shape, inputs: Sequence[Shape]) -> list[int | None]:
    first_padded = len(out) - len(node._saved_pad) // 2
    return [dim if dim < first_padded else None]


def _indexed(node: Any, dim: int, out: Shape, inputs: Sequence[Shape]) -> list[int | None]:
    """Cover as many entries of each example, such as its last token, and indices of other dimensions."""
    indices, count = list(node._saved_indices), inputs[0][0]
    given = [index for index in indices if index is not None]
    masks = [index for index in given if index.dtype in (torch.bool, torch.uint8)]
    if dim != 0 or not given:
        return [None]
    if masks:
        alone = len(given) == 1 and indices[0] is not None and masks[0].dtype == torch.bool
        chosen = masks[0].reshape(len(masks[0]), -1).sum(1) if alone else None
        return [0 if chosen is not None and bool((chosen == chosen[0]).all()) else None]
    if indices[0] is None:
        return [0 if len(given) == 1 and out[0] == count else None]
    numbers = torch.arange(count, device=given[0].device)
    adjacent = all(index is not None for index in indices[: len(given)])
    alone = given[0].dim() == 1 and torch.equal(given[0], numbers) and all(i.shape == given[0].shape for i in given)
    return [0 if adjacent and alone else None]


def _restrided(node: Any, dim: int, out: Shape, inputs: Sequence[Shape]) -> list[int | None]:
    """Cover the new strides that pooling to a single pixel gives to a mean, for dimensions of size 1 only."""
    strides = [prod(out[d + 1 :]) for d in range(len(out))]
    same = inputs[0] == out and all(
        size == 1 or stride == given for size, stride, given in zip(out, strides, node._saved_stride, strict=True)
    )
    return [dim if same and node.next_functions[0][0].name().startswith("Mean") else None]


_ENTRIES = (
    "Abs Acos Add Addcdiv Addcmul Alias Asin Atan Ceil Celu Clamp ClampMax ClampMin Clone Cos Cosh Detach Div Elu Erf "
    "Erfc Exp Expand Expm1 Gelu Hardshrink Hardsigmoid Hardswish Hardtanh LeakyRelu Lerp Log Log10 Log1p Log2 "
    "LogSigmoid MaskedFill Maximum Minimum Mish Mul Neg Pow Reciprocal Relu Rsqrt Rsub Sigmoid Silu Sin Sinh Softplus "
    "Softshrink Softsign Sqrt Sub Tan Tanh Threshold ToCopy Where Xlogy"
)

_REDUCTIONS = "Amax Amin LinalgVectorNorm Logsumexp Max Mean Min Norm Prod Std Sum Var"

# names of nodes of autograd, without "Backward...", that give the same entries in the same order another shape
RESHAPES = {"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze"}

# names of nodes -> their rules
NODE_RULES: dict[str, NodeRule] = {
    **dict.fromkeys(_ENTRIES.split(), _entry_by_entry),
    **dict.fromkeys(_REDUCTIONS.split(), _reduced),
    **dict.fromkeys(["Softmax", "LogSoftmax", "SafeSoftmax", "Slice", "Cumsum", "Split", "Gather", "IndexSelect"],
                    _in_first_input("dim")),
    **dict.fromkeys(["Flip", "Roll"], _in_first_input("dims")),
    **dict.fromkeys([
        "AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D", "AvgPool2D", "AvgPool3D",
        "Convolution", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "NativeGroupNorm", "UpsampleBicubic2D",
        "UpsampleBilinear2D", "UpsampleLinear1D", "UpsampleNearest1D", "UpsampleNearest2D",
    ], _in_first_input(first=True)),
    **dict.fromkeys([
        "ScaledDotProductCudnnAttention", "ScaledDotProductEfficientAttention", "ScaledDotProductFlashAttention",
        "ScaledDotProductFlashAttentionForCpu",
    ], _attention),
    **dict.fromkeys(["NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"], _batch_norm),
    **dict.fromkeys(["NativeLayerNorm", "FusedRmsNorm"], _layer_norm),
    **dict.fromkeys(["Select", "Unbind"], _selected),
    "AsStrided": _restrided,
    "Addmm": _times_weight(1),
    "Bmm": _matrix_by_matrix,
    "Cat": _joined,
    "ConstantPadNd": _padded,
    "Index": _indexed,
    "Mm": _times_weight(0),
    "Permute": _permuted,
    "Stack": _stacked,
    "T": lambda node, dim, out, inputs: [1 - dim],
    "Transpose": _transposed,
}  # fmt: skip
