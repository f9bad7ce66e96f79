"""The kept entries of a weight: values that train in its place, and where in it they are."""

import weakref
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

Way: TypeAlias = Literal["sampled", "touched", "dense"]

NEARLY_ALL = 0.75  # with more of its rows (or columns) touched than this, a matrix is not worth compressing

_OWNERS: MutableMapping[Tensor, "weakref.ref[Kept]"] = WeakTensorKeyDictionary()  # values -> whose they are


class Kept(nn.Module):
    """The kept entries of one weight: ``values``, a parameter that trains in the weight's place, and their positions.

    It sits beside the weight in the module that owns it and goes where the model goes: to another device or type, into
    a copy or a pickle, but not into ``state_dict()``, which has the weight itself.

    Attributes:
        weight: The weight, shared with its module.
        values: (kept,) the kept entries, in the weight's type.
        positions: (kept,) places in the flattened weight, ascending.
        rows, columns: Of a Linear's weight, those that hold kept entries; None where nearly all do.
        row_starts, column_of: The kept entries of the touched rows and columns in CSR form.
        way: How the gradient is found; None for :func:`choose`.
        found: The way of the last backward pass, None before the first.
    """

    def __init__(self, weight: nn.Parameter, mask: Tensor, *, linear: bool, way: Way | None) -> None:
        super().__init__()
        positions = mask.to(weight.device).flatten().nonzero().squeeze(1)
        index = torch.int32 if weight.numel() < 2**31 else torch.int64
        self.weight = weight
        self.values = nn.Parameter(weight.detach().take(positions))
        _OWNERS[self.values] = weakref.ref(self)
        self.register_buffer("positions", positions.to(index), persistent=False)
        self.way = way
        self.found: Way | None = None
        if linear:
            rows, row_of = _touched(positions // weight.shape[1], weight.shape[0])
            columns, column_of = _touched(positions % weight.shape[1], weight.shape[1])
            counts = torch.bincount(row_of, minlength=weight.shape[0] if rows is None else len(rows))
            self.register_buffer("rows", None if rows is None else rows.to(index), persistent=False)
            self.register_buffer("columns", None if columns is None else columns.to(index), persistent=False)
            self.register_buffer("row_starts", F.pad(counts.cumsum(0), (1, 0)).to(index), persistent=False)
            self.register_buffer("column_of", column_of.to(index), persistent=False)

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy or a pickle
        super().__setstate__(state)
        _OWNERS[self.values] = weakref.ref(self)

    @property
    def shape(self) -> tuple[int, int]:
        """Touched rows and columns of a Linear's weight."""
        rows, columns = self.weight.shape
        return rows if self.rows is None else len(self.rows), columns if self.columns is None else len(self.columns)

    def gather(self, dense: Tensor) -> Tensor:
        """The kept entries of a tensor of the weight's shape."""
        dense = dense.to_dense() if dense.is_sparse else dense
        return dense.take(self.positions.long()).to(self.values.dtype)

    def read_(self) -> None:
        """``values`` from the weight."""
        self.values.data.copy_(self.weight.detach().take(self.positions.long()))

    def write_(self) -> None:
        """``values`` into the weight, whose version counter does not move: a graph may hold it."""
        self.weight.data.put_(self.positions.long(), self.values.detach())

    def _save_to_state_dict(self, *arguments: Any) -> None:
        """Nothing: the weight holds the values."""

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """Nothing: the weight is loaded, and the next step starts from it."""


def _touched(index: Tensor, size: int) -> tuple[Tensor | None, Tensor]:
    """The different values of ``index`` and the place of each entry among them; None where they are nearly all."""
    found, place = index.unique(return_inverse=True)
    return (None, index) if len(found) > NEARLY_ALL * size else (found, place)


def owners(parameters: Iterable[Tensor]) -> Iterator[Kept]:
    """Those of ``parameters`` that are kept values of a living model."""
    for reference in (_OWNERS[p] for p in parameters if p in _OWNERS):
        kept = reference()
        if kept is not None:
            yield kept


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters by name, without the kept values that stand beside them."""
    return {name: p for name, p in model.named_parameters() if p not in _OWNERS}
