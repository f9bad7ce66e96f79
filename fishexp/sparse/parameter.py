"""The kept entries of a weight: values that train in its place, and where in it they are."""

import weakref
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from fishexp.errors import FishexpError

GradientMethod: TypeAlias = Literal["sddmm", "submatrix", "dense"]

# share of a matrix's rows or columns; if more than this of both hold kept entries, no submatrix is worth its selection
MAX_SUBMATRIX_SHARE = 0.4

# attributes of a SparseParameter that are index tensors, where it has them
INDICES = ("positions", "crow_indices", "col_indices", "submatrix_lines")

# values -> a function that returns the SparseParameter they belong to, None after its death
_OWNERS: MutableMapping[Tensor, Callable[[], "SparseParameter | None"]] = WeakTensorKeyDictionary()


class Layout(NamedTuple):
    """Place the kept entries of a weight in the matrices that its layer multiplies by, one for each kernel offset.

    Attributes:
        offset: (kept,) the matrix of each kept entry; all 0 for a layer without a kernel.
        row: (kept,) its row there: the output that it adds to.
        column: (kept,) its column there: the input that it is multiplied by.
        shape: Numbers of matrices, rows and columns.
        groups: Parts into which a convolution divides its channels.
    """

    offset: Tensor
    row: Tensor
    column: Tensor
    shape: tuple[int, int, int]
    groups: int = 1


class LayerKind(NamedTuple):
    """Describe how layers of a kind train through the kept entries of their weights.

    Attributes:
        forward: (module, *inputs) -> output; takes the place of the class's own ``forward``.
        layout: (module, positions, weight's shape) -> the layout of the kept entries at these ascending positions.
    """

    forward: Callable[..., Tensor]
    layout: Callable[[Any, Tensor, torch.Size], Layout]


class SparseParameter(nn.Module):
    """Hold the kept entries of a weight: ``values``, a parameter that trains in its place, and their positions.

    It sits beside the weight in the module that owns it and goes where the model goes: to another device or type, into
    a copy or a pickle, but not into ``state_dict()``, which has the weight itself.

    Attributes:
        weight: The weight, shared with its module.
        values: (kept,) the kept entries, in the weight's type.
        positions: (kept,) their places in the flattened weight: ascending, but those of a convolution kernel offset by
            kernel offset.
        crow_indices, col_indices: (kernel offsets, outputs + 1) and (kept,): the kept entries of a weight with a layout
            as sparse matrices of outputs by inputs in CSR form, one for each kernel offset. A Linear has one offset, a
            3x3 convolution nine.
        submatrix_lines: The inputs that hold kept entries, if ``by_column``, or the outputs: whichever are the fewer;
            None where both are many, or the convolution is in groups.
        groups: Groups of the convolution, 1 for all other layers.
        offset_starts: Where each kernel offset's entries begin, and the last one's end.
        way: The method that forms the gradient; None for :func:`fishexp.sparse.cost_model.choose`.
        last_method: The method of the last backward pass, None before the first.
    """

    weight: nn.Parameter
    values: nn.Parameter
    positions: Tensor
    crow_indices: Tensor
    col_indices: Tensor
    submatrix_lines: Tensor | None
    by_column: bool
    groups: int
    offset_starts: list[int]
    way: GradientMethod | None
    last_method: GradientMethod | None

    def __init__(
        self, weight: nn.Parameter, positions: Tensor, layout: Layout | None, way: GradientMethod | None
    ) -> None:
        """Take the values from ``weight``.

        Args:
            positions: (kept,) ascending places in the flattened weight.
            layout: None if no layer of a registered kind has the weight.
        """
        super().__init__()
        index = torch.int32 if weight.numel() < 2**31 else torch.int64
        self.groups = 1
        if layout is not None:
            self.groups = layout.groups
            order, starts, columns = _csr(layout)
            lines, self.by_column = _submatrix_lines(starts, columns, layout)
            positions = positions[order]
            self.offset_starts = [0, *starts[:, -1].cumsum(0).tolist()]
            self.crow_indices, self.col_indices = starts.to(index), columns.to(index)
            self.submatrix_lines = None if lines is None else lines.to(index)
        self.weight = weight
        self.values = nn.Parameter(weight.detach().take(positions))
        self.positions = positions.to(index)
        self.way = way
        self.last_method = None
        _OWNERS[self.values] = weakref.ref(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SparseParameter":
        """Move the indices as well. They are no buffers, which others would broadcast, average or count."""
        super()._apply(fn, recurse)
        for name in INDICES:
            if isinstance(index := getattr(self, name, None), Tensor):
                setattr(self, name, fn(index))
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy or a pickle
        super().__setstate__(state)
        _OWNERS[self.values] = weakref.ref(self)

    def gather(self, dense: Tensor) -> Tensor:
        """Return the kept entries of a tensor of the weight's shape."""
        dense = dense.to_dense() if dense.is_sparse else dense
        return dense.take(self.positions.long()).to(self.values.dtype)

    def read_(self) -> None:
        """Copy the kept entries of the weight into ``values``."""
        self.values.detach().copy_(self.weight.detach().take(self.positions.long()))

    def write_(self) -> None:
        """Copy ``values`` into the weight."""
        with torch.no_grad():
            self.weight.put_(self.positions.long(), self.values)

    def _save_to_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        """Save nothing: the weight holds the values."""

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        """Take the values from the weight, which has been loaded by now."""
        self.read_()


def _csr(layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Return the entries' order matrix by matrix, (matrices, rows + 1) starts of rows, and each entry's column."""
    matrices, rows, _ = layout.shape
    line = layout.offset * rows + layout.row
    order = line.argsort(stable=True)
    counts = torch.bincount(line, minlength=matrices * rows).view(matrices, rows)
    return order, F.pad(counts.cumsum(1), (1, 0)), layout.column[order]


def _submatrix_lines(starts: Tensor, columns: Tensor, layout: Layout) -> tuple[Tensor | None, bool]:
    """Return the columns (true) or rows (false) with kept entries, whichever are the smaller share; None if large."""
    if layout.groups > 1:
        return None, False  # some channels of a group are no convolution of their own
    rows, used = starts.diff(dim=1).any(0).nonzero().squeeze(1), columns.unique()
    shares = len(rows) / layout.shape[1], len(used) / layout.shape[2]
    by_column = shares[1] <= shares[0]
    return (None if min(shares) > MAX_SUBMATRIX_SHARE else used if by_column else rows), by_column


def matrix_layout(module: nn.Module, positions: Tensor, shape: torch.Size) -> Layout:
    """Lay out the kept entries of a weight that is itself the matrix of outputs by inputs."""
    return Layout(torch.zeros_like(positions), positions // shape[1], positions % shape[1], (1, shape[0], shape[1]))


def kept_entries(module: Any, name: str) -> Any:
    """Return the module's SparseParameter of its weight ``name``, which may have been assigned anew; None if whole."""
    kept = module._modules.get(f"{name}_kept")
    if kept is not None and kept.weight is not module._parameters[name]:
        kept.weight = module._parameters[name]
    return kept


def function_arguments(module: Any, x: Tensor) -> tuple[Any, ...]:
    """Return what the autograd Function of a layer with weight and bias takes.

    Returns:
        Input, weight and bias, under autocast in its type; the kept values of weight and of bias; their
        SparseParameters. The last four are None where a parameter is not partly kept.
    """
    kept = {name: kept_entries(module, name) for name in ("weight", "bias")}
    weight, bias = (getattr(module, name) if own is None else module._parameters[name] for name, own in kept.items())
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    values = (None if own is None else own.values for own in kept.values())
    return x, weight, bias, *values, *kept.values()


def retire(kept: SparseParameter) -> None:
    """Let no optimiser move these values any more: another mask has taken the place of theirs."""
    _OWNERS[kept.values] = _retired


def _retired() -> SparseParameter:
    raise FishexpError("an optimiser of an earlier mask cannot step; make one of the new sparse.parameters()")


def _owners(optimizer: Optimizer) -> Iterator[SparseParameter]:
    """Yield those whose values the optimiser moves, of models that live."""
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        owner = _OWNERS.get(p)
        if owner is not None and (kept := owner()) is not None:
            yield kept


# Hooks around each step, since no version counter tells that one happened (fused steps raise none). The weights are
# what counts: values loaded into them after `sparsify` are where the step starts from. They are registered here, where
# an unpickled model's values come from.


def _before_step(optimizer: Optimizer, *_: object) -> None:
    for kept in _owners(optimizer):
        if isinstance(optimizer, torch.optim.LBFGS):
            raise FishexpError(
                "LBFGS looks at the loss within a step, where the model has the old weights; take another"
            )
        kept.read_()


def _after_step(optimizer: Optimizer, *_: object) -> None:
    for kept in _owners(optimizer):
        kept.write_()


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the model's own floating-point and complex parameters by name, without the kept values beside them."""
    return {
        name: p
        for name, p in model.named_parameters()
        if p not in _OWNERS and (p.is_floating_point() or p.is_complex())
    }
