"""The kept entries of a weight: values that train in its place, and where in it they are."""

import weakref
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

Way: TypeAlias = Literal["sampled", "touched", "dense"]

MANY = 0.4  # with more of its rows (or columns) touched than this, a matrix is not worth compressing

_OWNERS: MutableMapping[Tensor, "weakref.ref[Kept]"] = WeakTensorKeyDictionary()  # values -> whose they are


class Kept(nn.Module):
    """The kept entries of one weight: ``values``, a parameter that trains in the weight's place, and their positions.

    It sits beside the weight in the module that owns it and goes where the model goes: to another device or type, into
    a copy or a pickle, but not into ``state_dict()``, which has the weight itself.

    Attributes:
        weight: The weight, shared with its module.
        values: (kept,) the kept entries, in the weight's type.
        positions: (kept,) their places in the flattened weight: ascending, but those of a convolution one tap after
            the other.
        rows, columns: Of a Linear's, convolution's or embedding's weight, the outputs and inputs that hold kept
            entries; None where many do.
        row_starts, column_of: (taps, rows + 1) and (kept,): the kept entries of the touched rows and columns in CSR
            form, tap by tap. A Linear has one tap, a 3x3 convolution nine.
        taps: Where each tap's entries begin, and the last one's end.
        way: How the gradient is found; None for :func:`fishexp.rule.choose`.
        found: The way of the last backward pass, None before the first.
    """

    weight: nn.Parameter
    values: nn.Parameter
    positions: Tensor
    rows: Tensor | None
    columns: Tensor | None
    row_starts: Tensor
    column_of: Tensor
    taps: list[int]
    way: Way | None
    found: Way | None

    def __init__(self, weight: nn.Parameter, mask: Tensor, user: nn.Module | None, way: Way | None) -> None:
        """``user`` is the Linear, convolution or embedding, if any, whose weight it is."""
        super().__init__()
        index = torch.int32 if weight.numel() < 2**31 else torch.int64
        positions = mask.to(weight.device).flatten().nonzero().squeeze(1)
        if user is not None:
            positions, table = _product(positions, weight.shape, getattr(user, "groups", 1))
            for name, entries in table.items():
                self.register_buffer(name, None if entries is None else entries.to(index), persistent=False)
            self.taps = [0, *self.row_starts[:, -1].cumsum(0).tolist()]
        self.weight = weight
        self.values = nn.Parameter(weight.detach().take(positions))
        self.register_buffer("positions", positions.to(index), persistent=False)
        self.way = way
        self.found = None
        _OWNERS[self.values] = weakref.ref(self)

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy or a pickle
        super().__setstate__(state)
        _OWNERS[self.values] = weakref.ref(self)

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

    def _save_to_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        """Nothing: the weight holds the values."""

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        """Nothing: the weight is loaded, and the next step starts from it."""


def _product(positions: Tensor, shape: torch.Size, groups: int) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The kept positions tap by tap, and for each tap the sparse matrix of outputs by inputs that they make up."""
    outputs, inputs, taps = shape[0], shape[1], shape[2:].numel()
    row, tap = positions // (inputs * taps), positions % taps
    column = positions // taps % inputs + row // (outputs // groups) * inputs  # among the inputs of all groups
    order = (tap * outputs + row).argsort(stable=True)
    rows, row_of = _touched(row[order], outputs)
    columns, column_of = _touched(column[order], inputs * groups)
    height = outputs if rows is None else len(rows)
    counts = torch.bincount(tap[order] * height + row_of, minlength=taps * height).view(taps, height)
    starts = F.pad(counts.cumsum(1), (1, 0))
    return positions[order], {"rows": rows, "columns": columns, "row_starts": starts, "column_of": column_of}


def _touched(index: Tensor, size: int) -> tuple[Tensor | None, Tensor]:
    """The different values of ``index`` and the place of each entry among them; None where they are many."""
    found, place = index.unique(return_inverse=True)
    return (None, index) if len(found) > MANY * size else (found, place)


def owners(parameters: Iterable[Tensor]) -> Iterator[Kept]:
    """Those of ``parameters`` that are kept values of a living model."""
    for reference in map(_OWNERS.get, parameters):
        kept = None if reference is None else reference()
        if kept is not None:
            yield kept


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters by name, without the kept values that stand beside them."""
    return {name: p for name, p in model.named_parameters() if p not in _OWNERS}
