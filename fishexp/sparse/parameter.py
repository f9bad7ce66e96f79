"""The kept entries of a weight: values that train in its place, and where in it they are."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishexp.delta.fingerprint import bits
from fishexp.errors import FishexpError
from fishexp.sparse.ranks import check_ranks

GradientMethod: TypeAlias = Literal["sddmm", "submatrix", "dense"]

# share of a matrix's rows or columns; if more than this of both hold kept entries, no submatrix is worth its selection
MAX_SUBMATRIX_SHARE = 0.4

# warning of a read
_BOTH_CHANGED = (
    "both the kept entries of a weight and the weight itself were written since it was last read; the kept entries' "
    "values count. Write either; the weight through its module, as in module.weight"
)

# attributes of a SparseParameter that are index tensors, where it has them
INDICES = ("positions", "crow_indices", "col_indices", "submatrix_lines")


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

    The values are the truth: whoever writes them, an optimiser of any kind or not, the weight has them from the next
    time that it is read through its module (:meth:`reconcile`). It sits beside the weight in the module that owns it
    and goes where the model goes: to another device or type, into a copy or a pickle, but not into ``state_dict()``,
    which has the weight itself.

    It is no :mod:`torch.nn.utils.parametrize`: that would copy the whole weight in each forward pass and form its whole
    gradient in each backward pass, and ``state_dict()`` would have other names.

    Attributes:
        weight: The weight, shared with its module.
        values: (kept,) the kept entries, in the weight's type.
        synced: (kept,) the values that values and weight had when they last agreed.
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
    synced: Tensor
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
        self.synced = self.values.detach().clone()
        self.positions = positions.to(index)
        self.way = way
        self.last_method = None
        self._versions = self._read_versions()
        self._forget_memory_layout()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SparseParameter":
        """Move the other tensors as well. They are no buffers, which others would broadcast, average or count."""
        self.reconcile()
        super()._apply(fn, recurse)
        self._forget_memory_layout()
        for name in ("synced", *INDICES):
            if isinstance(tensor := getattr(self, name, None), Tensor):
                setattr(self, name, fn(tensor))
        return self

    def gather(self, dense: Tensor) -> Tensor:
        """Return the kept entries of a tensor of the weight's shape."""
        dense = dense.to_dense() if dense.is_sparse else dense
        return dense.take(self.positions.long()).to(self.values.dtype)

    def reconcile(self) -> None:
        """Write the values into the weight if they have changed since the last time, else take those of the weight.

        Where both have changed, the values count. What has changed is found by looking, as version counters do not tell
        of fused optimisers, or of what writes to ``.data``. Where the weight is written, its counter is raised only if
        something has changed: a backward pass is then refused if the weight is no longer that of its forward pass.
        """
        if waits_for(self.weight):
            self._reconcile_without_waiting()
            return
        weight_changed = not torch.equal(_bits(self._of_weight()), _bits(self.synced))
        if not torch.equal(_bits(self.values), _bits(self.synced)):
            if weight_changed:
                warnings.warn(_BOTH_CHANGED, stacklevel=2)
            with torch.no_grad():
                self._write(self.weight, self.values)
                self.synced.copy_(self.values)
        elif weight_changed:
            self.take_weight()

    @torch.no_grad()
    def _reconcile_without_waiting(self) -> None:
        """Do the same on a device whose answers the host would have to wait for: the weight is always written.

        Its version counter is raised if another counter has been.
        """
        changed = (_bits(self.values) != _bits(self.synced)).any()
        now = torch.where(changed, self.values, self._of_weight())
        raised = self._read_versions() != self._versions
        self._write(self.weight if raised else self.weight.data, now)
        self.values.data.copy_(now)
        self.synced.copy_(now)
        self._versions = self._read_versions()

    def _read_versions(self) -> tuple[int, int]:
        return self.values._version, self.weight._version

    @torch.no_grad()
    def take_weight(self) -> None:
        """Take the values from the weight, whatever they were."""
        now = self._of_weight()
        self.values.copy_(now)
        self.synced.copy_(now)

    def _of_weight(self) -> Tensor:
        """Return the kept entries as the weight has them."""
        memory, places = self._in_memory(self.weight.detach())
        return memory.index_select(0, places)

    def _write(self, weight: Tensor, values: Tensor) -> None:
        memory, places = self._in_memory(weight)
        memory.scatter_(0, places.long(), values)

    def _in_memory(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight as a vector in the order of its memory, and the places of the kept entries there."""
        if weight.is_contiguous():
            return weight.view(-1), self.positions
        if self._strides != weight.stride():  # such as channels last
            index = torch.unravel_index(self.positions.long(), weight.shape)
            places = torch.stack([i * stride for i, stride in zip(index, weight.stride(), strict=True)]).sum(0)
            self._strides, self._places = weight.stride(), places.to(self.positions.dtype)
        length = 1 + sum((size - 1) * stride for size, stride in zip(weight.shape, self._strides, strict=True))
        return weight.as_strided((length,), (1,)), self._places

    def _forget_memory_layout(self) -> None:
        self._strides: tuple[int, ...] = ()
        self._places = self.positions

    def _save_to_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        """Save nothing: the weight, which has been saved by reference, holds the values from here on."""
        self.reconcile()

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        """Take the values from the weight, which has been loaded by now."""
        self.take_weight()


def _bits(values: Tensor) -> Tensor:
    values = values.detach()
    return bits(torch.view_as_real(values) if values.is_complex() else values)


def waits_for(tensor: Tensor) -> bool:
    """Tell whether the host would have to wait for the tensor's device to look at a number of it."""
    return tensor.device.type != "cpu"


def write_entries(tensor: Tensor, positions: Tensor, values: Tensor) -> None:
    """Set entries of a tensor in place.

    Args:
        tensor: In any memory layout.
        positions: (entries,) int64, different places in the flattened tensor.
        values: (entries,) in the tensor's type.
    """
    if tensor.is_contiguous():
        tensor.view(-1).scatter_(0, positions, values)
    else:
        tensor.index_put_(torch.unravel_index(positions, tensor.shape), values)


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
    """Bring the module's weight ``name`` up to date; return its SparseParameter, None if it is not partly kept.

    The weight may have been assigned anew; it is then that weight whose entries train.
    """
    kept = module._modules.get(f"{name}_kept")
    if kept is None:
        return None
    if kept.weight is not module._parameters[name]:
        kept.weight = module._parameters[name].requires_grad_(False)
    kept.reconcile()
    check_ranks(kept)
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


class _Retired(nn.Parameter):
    """Refuse to be moved by an optimiser, which asks for the gradient first."""

    @property
    def grad(self) -> NoReturn:  # pyright: ignore[reportIncompatibleVariableOverride]
        raise FishexpError("an optimiser of an earlier mask cannot step; make one of the parameters that train now")


def retire(kept: SparseParameter) -> None:
    """Let no optimiser move these values any more: the model no longer trains through them."""
    kept.values.__class__ = _Retired


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the model's own floating-point and complex parameters by name, up to date, without the kept values."""
    values = {kept.values for kept in _up_to_date(model)}
    return {
        name: p for name, p in model.named_parameters() if p not in values and (p.is_floating_point() or p.is_complex())
    }


def _up_to_date(model: nn.Module) -> Iterator[SparseParameter]:
    """Bring all partly kept weights of a model up to date; yield their kept entries."""
    for module in model.modules():
        for name, child in module._modules.items():
            if isinstance(child, SparseParameter):
                yield kept_entries(module, name.removesuffix("_kept"))
